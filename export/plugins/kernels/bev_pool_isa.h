// The inner loops of the pool, compiled once per instruction set; bev_pool.cpp picks one when it is loaded.
#pragma once

#include <stdint.h>

namespace bev_pool {

// A piece of an image column and its cell, for the backward pass, which goes column by column.
struct ColumnRun {
  int32_t point;  // index of the first point in depth
  int32_t row;    // image row of the first point
  int32_t rows;
  int32_t cell;
};

template <typename Value>
struct Forward {
  const Value* depth;
  const Value* feat;
  const int32_t* runs;
  const int32_t* cell_start;
  int32_t width;
  int32_t channels;
  bool stream;  // past the caches: the output is larger than they are
  Value* bev;
};

struct Backward {
  const float* grad_bev;
  const float* depth;
  const float* feat;
  const ColumnRun* runs;        // sorted by column
  const int32_t* column_start;  // the runs of column n * width + w
  int32_t height;
  int32_t width;
  int32_t channels;
  float* grad_depth;  // zeroed where this slice writes
  float* grad_feat;
};

struct Kernels {
  const char* name;
  int vector_bytes;
  // Write cells first .. last - 1.
  void (*cells_f32)(const Forward<float>&, int32_t first, int32_t last);
  void (*cells_f16)(const Forward<uint16_t>&, int32_t first, int32_t last);
  // Write columns first .. last - 1. `workspace` has backward_floats(height, channels) floats.
  void (*backward_columns)(const Backward&, int32_t first, int32_t last, float* workspace);
};

// Room for a column's features and their gradients, for one cell's gradient, all with rows of whole
// vectors, and for one product per row.
inline int64_t backward_floats(int32_t height, int32_t channels) {
  const int64_t row = (static_cast<int64_t>(channels) + 15) / 16 * 16;
  return (2 * static_cast<int64_t>(height) + 1) * row + height;
}

const Kernels* kernels_baseline();
#if defined(BEV_POOL_X86)
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
#endif

}  // namespace bev_pool
