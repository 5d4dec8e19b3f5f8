// Work in parts on a few threads of this call's own. Which thread does which part changes nothing: each
// part writes its own elements.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace bev_pool {

constexpr int32_t kMostThreads = 256;

// Calls work(part) for each part; the caller's thread helps. Where there are no more threads or no more
// memory to be had, those that there are do it all. The work itself must not throw.
template <typename Work>
void for_each_part(int32_t num_parts, int32_t num_threads, const Work& work) {
  std::atomic<int32_t> next{0};
  const auto help = [&] {
    for (int32_t part = next++; part < num_parts; part = next++) work(part);
  };
  const int32_t num_helpers = std::min({num_threads, num_parts, kMostThreads}) - 1;
  std::vector<std::thread> helpers;
  try {
    for (int32_t i = 0; i < num_helpers; ++i) helpers.emplace_back(help);
  } catch (...) {  // a helper that runs must be joined, whatever went wrong
  }
  help();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace bev_pool
