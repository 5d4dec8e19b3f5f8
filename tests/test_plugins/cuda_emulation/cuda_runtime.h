// A CUDA grid on the CPU, for tests: a kernel launched through cudaLaunchKernelEx runs block by block and
// warp by warp; the 32 lanes of a warp are fibers that meet at each shuffle. Blocks must be 32 wide and may
// not use shared memory or __syncthreads. Lanes that do not meet at the same shuffle fail the launch.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <type_traits>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

using std::min;

namespace cuda_emulation {

constexpr int kLanes = 32;
inline dim3 block_index, thread_index;

class Warp {
 public:
  // Runs `body` once per lane. False where some lanes ended while others waited at a shuffle.
  bool run(const std::function<void()>& body, unsigned warp) {
    body_ = &body;
    for (int lane = 0; lane < kLanes; ++lane) {
      getcontext(&lanes_[lane]);
      lanes_[lane].uc_stack.ss_sp = stacks_.get() + lane * kStack;
      lanes_[lane].uc_stack.ss_size = kStack;
      lanes_[lane].uc_link = &scheduler_;
      makecontext(&lanes_[lane], enter, 0);
    }
    for (int ended = 0; ended == 0;) {
      for (lane_ = 0; lane_ < kLanes; ++lane_) {
        thread_index = dim3(lane_, warp, 0);
        waits_ = false;
        current = this;
        swapcontext(&scheduler_, &lanes_[lane_]);
        ended += !waits_;
      }
      if (ended != 0 && ended != kLanes) return false;
      round_ ^= 1;
    }
    return true;
  }

  float shuffle_down(float value, int delta) {
    const int lane = lane_, round = round_;
    values_[round][lane] = value;
    waits_ = true;
    swapcontext(&lanes_[lane], &scheduler_);
    return values_[round][lane + delta < kLanes ? lane + delta : lane];
  }

  static inline Warp* current;

 private:
  static void enter() { (*current->body_)(); }

  static constexpr size_t kStack = 64 << 10;
  std::unique_ptr<char[]> stacks_{new char[kStack * kLanes]};
  ucontext_t scheduler_, lanes_[kLanes];
  float values_[2][kLanes];
  const std::function<void()>* body_;
  int lane_ = 0, round_ = 0;
  bool waits_ = false;
};

}  // namespace cuda_emulation

#define blockIdx cuda_emulation::block_index
#define threadIdx cuda_emulation::thread_index

inline float __shfl_down_sync(unsigned mask, float value, int delta) {
  if (mask != 0xffffffffu) std::abort();
  return cuda_emulation::Warp::current->shuffle_down(value, delta);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (config->blockDim.x != cuda_emulation::kLanes || config->blockDim.z != 1) std::abort();
  const std::function<void()> body = [&] { kernel(arguments...); };
  cuda_emulation::Warp warp;
  for (unsigned y = 0; y < config->gridDim.y; ++y) {
    for (unsigned x = 0; x < config->gridDim.x; ++x) {
      blockIdx = dim3(x, y, 0);
      for (unsigned w = 0; w < config->blockDim.y; ++w) {
        if (!warp.run(body, w)) return cudaErrorUnknown;
      }
    }
  }
  return cudaSuccess;
}
