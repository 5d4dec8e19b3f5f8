// The pool's one loop: the sum over the runs of a cell. Without headers, so that g++, clang, nvcc and
// NVRTC take it alike; what holds the sum (a vector of channels, a thread's few) is the template's.
#pragma once

#ifndef BEV_POOL_INLINE
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define BEV_POOL_INLINE static __device__ __forceinline__
#else
#define BEV_POOL_INLINE static inline __attribute__((always_inline))
#endif
#endif

namespace bev_pool {

// Adds depth x feature over all rows of the runs first_run .. last_run - 1, in order.
//   Sum   has `add(Value weight, const Value* pixel)`: sum += weight * pixel, in fp32, over its own channels
//   depth /*[n, d, h, w]*/, feat /*[n, h, w, channels]*/ shifted to the first channel of `sum`
//   runs  /*[r, 3]*/ index of the first point in depth, index of its pixel in feat, number of rows
//   width pixels in a row of the image: what lies between two rows of a run, in depth and in feat
template <typename Sum, typename Value>
BEV_POOL_INLINE void add_runs(Sum& sum, const Value* depth, const Value* feat, const int* runs,
                              int first_run, int last_run, int width, int channels) {
  const long long row_stride = static_cast<long long>(width) * channels;
  for (int run = first_run; run < last_run; ++run) {
    const int* entry = runs + 3LL * run;
    const Value* weight = depth + entry[0];
    const Value* pixel = feat + static_cast<long long>(entry[1]) * channels;
    for (int rows = entry[2]; rows > 0; --rows, weight += width, pixel += row_stride) {
      sum.add(*weight, pixel);
    }
  }
}

}  // namespace bev_pool
