// Work in parts on a few threads of this call's own. Which thread does which part changes nothing: each
// part writes its own elements.
#pragma once

#include <stdint.h>

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace bev_pool {

// Calls work(part) for each part; the caller's thread helps. Where the system gives no more threads
// those that there are do it all.
template <typename Work>
void for_each_part(int32_t num_parts, int32_t num_threads, const Work& work) {
  std::atomic<int32_t> next{0};
  const auto help = [&] {
    for (int32_t part = next++; part < num_parts; part = next++) work(part);
  };
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(num_threads));
  try {
    while (static_cast<int32_t>(helpers.size()) < num_threads - 1) helpers.emplace_back(help);
  } catch (const std::system_error&) {
  }
  help();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace bev_pool
