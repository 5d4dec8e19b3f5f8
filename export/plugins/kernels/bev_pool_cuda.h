// BEV pool on NVIDIA GPUs. Tensors and table are those of bev_pool.h, in device memory:
//   depth [n, d, h, w], feat [n, h, w, c], runs [r, 3], cell_start [num_cells + 1], bev [num_cells, c]
//
// One launch writes every element of `bev`, empty cells included: no memset before it, no workspace, no
// allocation, no synchronisation, no atomics. Sums are in fp32, whatever the type of the tensors.
// The rows of a run are dealt out to the lane groups of a warp and their sums added as a tree, so results
// differ from the CPU's in the last bits; they are equal bit for bit from run to run, on any number of
// multiprocessors, for any grid_width.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#pragma GCC visibility push(default)
#if defined(__cplusplus)
extern "C" {
#endif

// Sizes: num_cells >= 0, width (of the image features) >= 1, channels >= 1, grid_width >= 0. Anything else,
// or no cell_start or bev for num_cells > 0, is refused with cudaErrorInvalidValue. Any channel count works;
// 16-byte loads and stores need a multiple of 4 (f32) or 8 (f16) channels, and feat and bev on 16 bytes.
//   grid_width  cells in a row of the grid, 0 where it is not known. Only speed depends on it: it tells
//               which cells lie beside each other, so that a block takes a square of them and reads the
//               image columns that they share once.
// The table is trusted: see bev_pool_check_table.
cudaError_t bev_pool_launch_f32(const float* depth, const float* feat, const int32_t* runs,
                                const int32_t* cell_start, float* bev, int32_t num_cells,
                                int32_t width, int32_t channels, int32_t grid_width,
                                cudaStream_t stream);

// f16: IEEE half precision in and out.
cudaError_t bev_pool_launch_f16(const uint16_t* depth, const uint16_t* feat, const int32_t* runs,
                                const int32_t* cell_start, uint16_t* bev, int32_t num_cells,
                                int32_t width, int32_t channels, int32_t grid_width,
                                cudaStream_t stream);

#if defined(__cplusplus)
}  // extern "C"
#endif
#pragma GCC visibility pop
