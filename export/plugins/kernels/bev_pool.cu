// A warp owns a cell: lane groups take the rows of its runs in turn, a lane some of the channels.
//
//   c = 80, f16:   lanes 0..9   channels 0..79   rows 0, 3, 6, ...
//                  lanes 10..19 channels 0..79   rows 1, 4, 7, ...
//                  lanes 20..29 channels 0..79   rows 2, 5, 8, ...
//
// So a warp has no lanes that wait for a fuller neighbour cell, and the fullest cell (875 points on real
// calibration, 23 on average) takes a third of the steps. Rows are split between lanes, which is why the loop
// of bev_pool_cell.h, one after the other, is not used here.
//
// A block takes a square of cells: cells beside each other look at the same image columns. With real
// calibration 73 MB of feature rows travel from L2 instead of 268 MB; blocks of a row of cells save nothing.

#include "bev_pool_cuda.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <limits>

namespace {

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kTile = 8;          // edge of a block's square of cells
constexpr int kCellsPerWarp = 4;  // beside each other: their table entries share cache lines
constexpr int kWarps = kTile * kTile / kCellsPerWarp;
constexpr int kBlocksPerSm = 2;  // 64 registers a thread

struct Sizes {
  int32_t num_cells, width, channels, grid_width;
  int32_t lanes;    // lanes of a group: what it takes for the channels of one row, 32 at most
  int32_t tiles_x;  // tiles in a row of tiles
};

template <typename Value, int kWidth>
struct alignas(kWidth * sizeof(Value)) Vector {
  Value value[kWidth];
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline void store(float* to, float value) { *to = value; }
__device__ inline void store(__half* to, float value) { *to = __float2half_rn(value); }

// A lane's share of a cell's channels: kVectors vectors, `lanes` vectors apart.
template <typename Value, int kWidth, int kVectors>
struct LaneSum {
  static constexpr int kBatch = 4 / kVectors;  // rows whose loads are under way at a time: 64 bytes

  struct Rows {  // where the next row of a lane group lies, and what lies between two of its rows
    const Value* weight;
    const Vector<Value, kWidth>* pixel;
    int64_t step, pixel_step;
    int count, lanes;
  };

  float sum[kVectors][kWidth] = {};

  // Loads all before it adds: left to itself, the compiler waits for one row before it loads the next.
  template <int kRows>
  __device__ void add_rows(Rows& at) {
    Value weight[kRows];
    Vector<Value, kWidth> part[kRows][kVectors];
#pragma unroll
    for (int row = 0; row < kRows; ++row, at.weight += at.step, at.pixel += at.pixel_step) {
      weight[row] = *at.weight;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (v == 0 || v < at.count) part[row][v] = at.pixel[v * at.lanes];
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float scale = to_float(weight[row]);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (v > 0 && v >= at.count) continue;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sum[v][i] += scale * to_float(part[row][v].value[i]);
      }
    }
  }

  // Adds the rows group, group + num_groups, ... of a run; only the first `count` vectors exist.
  __device__ void add_run(const Value* depth, const Vector<Value, kWidth>* feat, const int32_t* run,
                          int group, int num_groups, int count, const Sizes& sizes) {
    const int vectors_per_pixel = sizes.channels / kWidth;
    const int rows = run[2];
    const int64_t offset = static_cast<int64_t>(group) * sizes.width;
    Rows at{depth + run[0] + offset, feat + (run[1] + offset) * vectors_per_pixel,
            static_cast<int64_t>(num_groups) * sizes.width, 0, count, sizes.lanes};
    at.pixel_step = at.step * vectors_per_pixel;
    int row = group;
    for (; row + (kBatch - 1) * num_groups < rows; row += kBatch * num_groups) add_rows<kBatch>(at);
    if (kBatch > 2 && row + num_groups < rows) {
      add_rows<2>(at);
      row += 2 * num_groups;
    }
    if (row < rows) add_rows<1>(at);
  }

  // Adds the groups' sums as a tree into the first group; every lane of the warp takes part.
  __device__ void add_groups(int group, int num_groups, int lanes) {
    for (int span = num_groups; span > 1;) {
      const int half = (span + 1) / 2;
      const bool has_partner = group + half < span;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const float other = __shfl_down_sync(kAllLanes, sum[v][i], half * lanes);
          if (has_partner) sum[v][i] += other;
        }
      }
      span = half;
    }
  }

  __device__ void write(Vector<Value, kWidth>* bev, int count, int lanes) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (v >= count) continue;
      Vector<Value, kWidth> part;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) store(&part.value[i], sum[v][i]);
      bev[v * lanes] = part;
    }
  }
};

template <typename Value, int kWidth, int kVectors>
__global__ void __launch_bounds__(kLanes* kWarps, kBlocksPerSm)
    pool_tile(const Value* __restrict__ depth, const Value* __restrict__ feat,
              const int32_t* __restrict__ runs, const int32_t* __restrict__ cell_start,
              Value* __restrict__ bev, const Sizes sizes) {
  using Channels = Vector<Value, kWidth>;
  const int lane = threadIdx.x;
  const int group = lane / sizes.lanes;
  const int num_groups = kLanes / sizes.lanes;
  const int vectors_per_pixel = sizes.channels / kWidth;
  // vectors first, first + lanes, ...: neighbour lanes read neighbour bytes
  const int first = blockIdx.y * sizes.lanes * kVectors + lane % sizes.lanes;
  const int count = min((vectors_per_pixel - first + sizes.lanes - 1) / sizes.lanes, kVectors);
  const bool works = group < num_groups && first < vectors_per_pixel;
  const int in_tile = threadIdx.y * kCellsPerWarp;
  const int x = blockIdx.x % sizes.tiles_x * kTile + in_tile % kTile;
  const int64_t y = static_cast<int64_t>(blockIdx.x / sizes.tiles_x) * kTile + in_tile / kTile;

  for (int i = 0; i < kCellsPerWarp; ++i) {
    const int64_t cell = y * sizes.grid_width + x + i;
    if (x + i >= sizes.grid_width || cell >= sizes.num_cells) return;
    const int32_t first_run = cell_start[cell];
    const int32_t last_run = cell_start[cell + 1];
    LaneSum<Value, kWidth, kVectors> sum;
    if (first_run < last_run) {
      const auto* pixels = reinterpret_cast<const Channels*>(feat) + first;
      for (int32_t run = first_run; works && run < last_run; ++run) {
        sum.add_run(depth, pixels, runs + 3LL * run, group, num_groups, count, sizes);
      }
      sum.add_groups(group, num_groups, sizes.lanes);
    }
    if (works && group == 0) {
      auto* row = reinterpret_cast<Channels*>(bev) + cell * vectors_per_pixel + first;
      sum.write(row, count, sizes.lanes);
    }
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename Value, int kWidth, int kVectors>
cudaError_t launch_tiles(const Value* depth, const Value* feat, const int32_t* runs,
                         const int32_t* cell_start, Value* bev, Sizes sizes, cudaStream_t stream) {
  const int64_t lanes = ceil_div(sizes.channels / kWidth, kVectors);
  sizes.lanes = static_cast<int32_t>(lanes < kLanes ? lanes : kLanes);
  sizes.tiles_x = static_cast<int32_t>(ceil_div(sizes.grid_width, kTile));
  const int64_t tiles_y = ceil_div(ceil_div(sizes.num_cells, sizes.grid_width), kTile);
  const int64_t tiles = sizes.tiles_x * tiles_y;
  const int64_t parts = ceil_div(lanes, kLanes);  // a block covers 32 lanes of channels
  if (tiles > std::numeric_limits<int32_t>::max() || parts > 65535) return cudaErrorInvalidValue;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(parts));
  config.blockDim = dim3(kLanes, kWarps);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, pool_tile<Value, kWidth, kVectors>, depth, feat, runs,
                            cell_start, bev, sizes);
}

bool on_16_bytes(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// kVectors: a lane has eight channels in either precision, which keeps the other costs of a row small.
template <typename Value>
cudaError_t launch(const Value* depth, const Value* feat, const int32_t* runs,
                   const int32_t* cell_start, Value* bev, int32_t num_cells, int32_t width,
                   int32_t channels, int32_t grid_width, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(Value);
  if (num_cells < 0 || width < 1 || channels < 1 || grid_width < 0) return cudaErrorInvalidValue;
  if (num_cells == 0) return cudaSuccess;
  if (cell_start == nullptr || bev == nullptr) return cudaErrorInvalidValue;
  if (grid_width == 0) grid_width = kTile;
  if (grid_width > num_cells) grid_width = num_cells;  // no blocks without a cell
  const Sizes sizes{num_cells, width, channels, grid_width, 0, 0};
  if (channels % kWidth == 0 && on_16_bytes(feat) && on_16_bytes(bev)) {
    return launch_tiles<Value, kWidth, 8 / kWidth>(depth, feat, runs, cell_start, bev, sizes,
                                                   stream);
  }
  return launch_tiles<Value, 1, 1>(depth, feat, runs, cell_start, bev, sizes, stream);
}

}  // namespace

cudaError_t bev_pool_launch_f32(const float* depth, const float* feat, const int32_t* runs,
                                const int32_t* cell_start, float* bev, int32_t num_cells,
                                int32_t width, int32_t channels, int32_t grid_width,
                                cudaStream_t stream) {
  return launch(depth, feat, runs, cell_start, bev, num_cells, width, channels, grid_width, stream);
}

cudaError_t bev_pool_launch_f16(const uint16_t* depth, const uint16_t* feat, const int32_t* runs,
                                const int32_t* cell_start, uint16_t* bev, int32_t num_cells,
                                int32_t width, int32_t channels, int32_t grid_width,
                                cudaStream_t stream) {
  return launch(reinterpret_cast<const __half*>(depth), reinterpret_cast<const __half*>(feat), runs,
                cell_start, reinterpret_cast<__half*>(bev), num_cells, width, channels, grid_width,
                stream);
}
