// The algorithms of BEVFusion's bev_pool (v1) and BEVDet's bev_pool_v2, written here for the comparison: a
// thread per cell and channel over lists of points; the output is zeroed by the caller, as in theirs.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kThreads = 256;

__device__ float to_float(float value) { return value; }
__device__ float to_float(__half value) { return __half2float(value); }
__device__ void store(float* to, float value) { *to = value; }
__device__ void store(__half* to, float value) { *to = __float2half_rn(value); }

unsigned blocks(int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

// v1, first half: the product of every point and channel, in the order of the cells.
template <typename Value>
__global__ void lift(const Value* depth, const Value* feat, const int32_t* point_depth,
                     const int32_t* point_feat, Value* products, int64_t points, int channels) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= points * channels) return;
  const int64_t point = i / channels;
  const float feature = to_float(feat[point_feat[point] * static_cast<int64_t>(channels) + i % channels]);
  store(products + i, to_float(depth[point_depth[point]]) * feature);
}

// v1, second half: the sum of a cell's products.
template <typename Value>
__global__ void sum_intervals(const Value* products, const int32_t* cell_start, Value* bev, int cells,
                              int channels) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= static_cast<int64_t>(cells) * channels) return;
  const int cell = static_cast<int>(i / channels);
  if (cell_start[cell] == cell_start[cell + 1]) return;
  float sum = 0;
  for (int64_t point = cell_start[cell]; point < cell_start[cell + 1]; ++point) {
    sum += to_float(products[point * channels + i % channels]);
  }
  store(bev + i, sum);
}

// v2: product and sum in one.
template <typename Value>
__global__ void pool_points(const Value* depth, const Value* feat, const int32_t* point_depth,
                            const int32_t* point_feat, const int32_t* cell_start, Value* bev,
                            int cells, int channels) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= static_cast<int64_t>(cells) * channels) return;
  const int cell = static_cast<int>(i / channels), channel = static_cast<int>(i % channels);
  if (cell_start[cell] == cell_start[cell + 1]) return;
  float sum = 0;
  for (int point = cell_start[cell]; point < cell_start[cell + 1]; ++point) {
    const Value* pixel = feat + point_feat[point] * static_cast<int64_t>(channels);
    sum += to_float(depth[point_depth[point]]) * to_float(pixel[channel]);
  }
  store(bev + i, sum);
}

template <typename Value>
int run(const void* depth, const void* feat, const int32_t* point_depth, const int32_t* point_feat,
        const int32_t* cell_start, void* products, void* bev, int64_t points, int cells, int channels,
        cudaStream_t stream) {
  const auto *d = static_cast<const Value*>(depth), *f = static_cast<const Value*>(feat);
  auto* to = static_cast<Value*>(bev);
  const int64_t outputs = static_cast<int64_t>(cells) * channels;
  cudaMemsetAsync(bev, 0, outputs * sizeof(Value), stream);
  if (products != nullptr) {
    auto* volume = static_cast<Value*>(products);
    lift<<<blocks(points * channels), kThreads, 0, stream>>>(d, f, point_depth, point_feat, volume,
                                                             points, channels);
    sum_intervals<<<blocks(outputs), kThreads, 0, stream>>>(volume, cell_start, to, cells, channels);
  } else {
    pool_points<<<blocks(outputs), kThreads, 0, stream>>>(d, f, point_depth, point_feat, cell_start, to,
                                                          cells, channels);
  }
  return cudaGetLastError();
}

}  // namespace

// v1 where there is room for the products, v2 where `products` is null.
extern "C" int pool_rival(int is_half, const void* depth, const void* feat, const int32_t* point_depth,
                          const int32_t* point_feat, const int32_t* cell_start, void* products,
                          void* bev, int64_t points, int cells, int channels, cudaStream_t stream) {
  return is_half ? run<__half>(depth, feat, point_depth, point_feat, cell_start, products, bev, points,
                               cells, channels, stream)
                 : run<float>(depth, feat, point_depth, point_feat, cell_start, products, bev, points,
                              cells, channels, stream);
}
