#include "bev_pool.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <new>
#include <vector>

#include "bev_pool_isa.h"
#include "threads.h"

namespace bev_pool {
namespace {

constexpr int32_t kVersion = 3;
constexpr int32_t kPartsPerThread = 8;  // a part takes longer near the car: the quick ones take more
constexpr int32_t kColumnsAtOnce = 16;  // of depth's gradient: a cache line

// The best that this processor can run, or the one that BEV_PLUGINS_ISA names, for tests.
const Kernels* choose_kernels() {
  const Kernels* candidates[] = {
#if defined(BEV_POOL_X86)
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("f16c")
          ? kernels_avx512()
          : nullptr,
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c")
          ? kernels_avx2()
          : nullptr,
#endif
      kernels_baseline()};
  const char* wanted = getenv("BEV_PLUGINS_ISA");
  const Kernels* chosen = kernels_baseline();
  for (const Kernels* kernels : candidates) {
    if (kernels == nullptr) continue;
    if (wanted == nullptr || strcmp(wanted, kernels->name) == 0) return kernels;
  }
  return chosen;
}

const Kernels& kernels() {
  static const Kernels* const chosen = choose_kernels();
  return *chosen;
}

// An output larger than this is written past the caches: it would leave them before it is read, and take
// the features with it. Not the size that the system gives: in a virtual machine that is the whole socket's
// (335 MB where 42 MB went through 30 % slower without).
#if defined(BEV_POOL_CACHE_BYTES)
constexpr int64_t kCacheBytes = BEV_POOL_CACHE_BYTES;  // small, for the sanitizers
#else
constexpr int64_t kCacheBytes = int64_t{16} << 20;
#endif

template <typename Value>
bool fits(const Value* depth, const Value* feat, const int32_t* runs, const int32_t* cell_start,
          int32_t num_cells, int32_t width, int32_t channels, const Value* bev) {
  const bool pointers = depth != nullptr && feat != nullptr && cell_start != nullptr && bev != nullptr;
  return pointers && num_cells >= 1 && width >= 1 && channels >= 1 &&
         (runs != nullptr || cell_start[num_cells] == 0);
}

template <typename Value>
Forward<Value> forward_of(const Value* depth, const Value* feat, const int32_t* runs,
                          const int32_t* cell_start, int32_t num_cells, int32_t width,
                          int32_t channels, Value* bev) {
  const int64_t row_bytes = static_cast<int64_t>(channels) * static_cast<int64_t>(sizeof(Value));
  const int vector_bytes = kernels().vector_bytes;
  const bool stream = num_cells * row_bytes > kCacheBytes && row_bytes % vector_bytes == 0 &&
                      reinterpret_cast<uintptr_t>(bev) % static_cast<uintptr_t>(vector_bytes) == 0;
  return {depth, feat, runs, cell_start, width, channels, stream, bev};
}

// The runs sorted by image column, in the table's order within one.
void sort_by_column(const int32_t* runs, const int32_t* cell_start, int32_t num_cells,
                    int32_t height, int32_t width, std::vector<ColumnRun>& sorted,
                    std::vector<int32_t>& column_start) {
  const int32_t num_runs = cell_start[num_cells];
  std::vector<int32_t> column(static_cast<size_t>(num_runs));
  for (int32_t run = 0; run < num_runs; ++run) {
    const int32_t pixel = runs[3LL * run + 1];
    column[run] = pixel / (height * width) * width + pixel % width;
    ++column_start[column[run] + 1];
  }
  for (size_t i = 1; i < column_start.size(); ++i) column_start[i] += column_start[i - 1];
  std::vector<int32_t> next(column_start.begin(), column_start.end() - 1);
  sorted.resize(static_cast<size_t>(num_runs));
  for (int32_t cell = 0; cell < num_cells; ++cell) {
    for (int32_t run = cell_start[cell]; run < cell_start[cell + 1]; ++run) {
      const int32_t* entry = runs + 3LL * run;
      sorted[next[column[run]]++] = {entry[0], entry[1] / width % height, entry[2], cell};
    }
  }
}

// Depth's gradient in columns first .. last - 1 of one image, set to zero.
void clear_columns(float* grad_depth, int64_t image_rows, int32_t width, int32_t first,
                   int32_t last) {
  float* row = grad_depth + first / width * image_rows * width + first % width;
  for (int64_t i = 0; i < image_rows; ++i, row += width) {
    memset(row, 0, sizeof(float) * static_cast<size_t>(last - first));
  }
}

bool index_fits(int64_t images, int64_t depths, int64_t height, int64_t width) {
  if (images < 1 || depths < 1 || height < 1 || width < 1) return false;
  int64_t product = 1;
  for (const int64_t size : {images, depths, height, width}) {
    product *= size;  // below 2^31 before, so below 2^62 now
    if (product > INT32_MAX) return false;
  }
  return true;
}

}  // namespace
}  // namespace bev_pool

using namespace bev_pool;

extern "C" {

int bev_pool_cells_f32(const float* depth, const float* feat, const int32_t* runs,
                       const int32_t* cell_start, int32_t num_cells, int32_t width,
                       int32_t channels, int32_t first_cell, int32_t last_cell, float* bev) {
  if (!fits(depth, feat, runs, cell_start, num_cells, width, channels, bev) || first_cell < 0 ||
      last_cell > num_cells) {
    return BEV_POOL_BAD_SIZE;
  }
  kernels().cells_f32(
      forward_of(depth, feat, runs, cell_start, num_cells, width, channels, bev), first_cell,
      last_cell);
  return BEV_POOL_OK;
}

int bev_pool_cells_f16(const uint16_t* depth, const uint16_t* feat, const int32_t* runs,
                       const int32_t* cell_start, int32_t num_cells, int32_t width,
                       int32_t channels, int32_t first_cell, int32_t last_cell, uint16_t* bev) {
  if (!fits(depth, feat, runs, cell_start, num_cells, width, channels, bev) || first_cell < 0 ||
      last_cell > num_cells) {
    return BEV_POOL_BAD_SIZE;
  }
  kernels().cells_f16(
      forward_of(depth, feat, runs, cell_start, num_cells, width, channels, bev), first_cell,
      last_cell);
  return BEV_POOL_OK;
}

int32_t bev_pool_split(const int32_t* cell_start, int32_t num_cells, int32_t part, int32_t parts) {
  // A cell's work is its write and its runs, which take about four times as long each. Source: ours.
  const auto work_before = [&](int64_t cell) { return cell + 4 * int64_t{cell_start[cell]}; };
  if (part <= 0) return 0;
  if (part >= parts) return num_cells;
  const int64_t share = work_before(num_cells) * part / parts;
  int32_t low = 0, high = num_cells;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (work_before(middle) < share) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

int bev_pool_forward_f32(const float* depth, const float* feat, const int32_t* runs,
                         const int32_t* cell_start, int32_t num_cells, int32_t width,
                         int32_t channels, int32_t num_threads, float* bev) {
  if (!fits(depth, feat, runs, cell_start, num_cells, width, channels, bev) || num_threads < 1) {
    return BEV_POOL_BAD_SIZE;
  }
  const auto pool = forward_of(depth, feat, runs, cell_start, num_cells, width, channels, bev);
  const int32_t threads = std::min(num_threads, kMostThreads);
  const int32_t parts = threads == 1 ? 1 : threads * kPartsPerThread;
  try {
    for_each_part(parts, threads, [&](int32_t part) {
      kernels().cells_f32(pool, bev_pool_split(cell_start, num_cells, part, parts),
                          bev_pool_split(cell_start, num_cells, part + 1, parts));
    });
  } catch (const std::bad_alloc&) {
    return BEV_POOL_NO_MEMORY;
  }
  return BEV_POOL_OK;
}

int bev_pool_backward_f32(const float* grad_bev, const float* depth, const float* feat,
                          const int32_t* runs, const int32_t* cell_start, int32_t num_cells,
                          int32_t num_images, int32_t num_depths, int32_t height, int32_t width,
                          int32_t channels, int32_t num_threads, float* grad_depth,
                          float* grad_feat) {
  if (!fits(depth, feat, runs, cell_start, num_cells, width, channels, grad_bev) ||
      grad_depth == nullptr || grad_feat == nullptr || num_threads < 1 ||
      !index_fits(num_images, num_depths, height, width)) {
    return BEV_POOL_BAD_SIZE;
  }
  try {
    std::vector<ColumnRun> sorted;
    std::vector<int32_t> column_start(static_cast<size_t>(num_images) * width + 1);
    sort_by_column(runs, cell_start, num_cells, height, width, sorted, column_start);
    const Backward pool{grad_bev, depth, feat, sorted.data(), column_start.data(), height,
                        width,    channels,  grad_depth, grad_feat};
    const int32_t parts_per_image = (width + kColumnsAtOnce - 1) / kColumnsAtOnce;
    const int32_t parts = num_images * parts_per_image;
    const int32_t threads = std::min({num_threads, kMostThreads, parts});
    const auto floats = static_cast<size_t>(backward_floats(height, channels));
    std::vector<float> workspace(floats * parts);
    for_each_part(parts, threads, [&](int32_t part) {
      const int32_t image = part / parts_per_image * width;
      const int32_t first = part % parts_per_image * kColumnsAtOnce;
      const int32_t last = std::min(first + kColumnsAtOnce, width);
      clear_columns(grad_depth, int64_t{num_depths} * height, width, image + first, image + last);
      kernels().backward_columns(pool, image + first, image + last,
                                 workspace.data() + floats * part);
    });
  } catch (const std::bad_alloc&) {
    return BEV_POOL_NO_MEMORY;
  }
  return BEV_POOL_OK;
}

int bev_pool_check_table(const int32_t* runs, int64_t num_runs, const int32_t* cell_start,
                         int32_t num_cells, int32_t num_images, int32_t num_depths, int32_t height,
                         int32_t width) {
  if (cell_start == nullptr || num_cells < 1 || num_runs < 0 ||
      (runs == nullptr && num_runs > 0) || !index_fits(num_images, num_depths, height, width)) {
    return BEV_POOL_BAD_SIZE;
  }
  if (cell_start[0] != 0) return BEV_POOL_BAD_START;
  for (int32_t cell = 0; cell < num_cells; ++cell) {
    if (cell_start[cell] > cell_start[cell + 1]) return BEV_POOL_BAD_ORDER;
  }
  if (cell_start[num_cells] > num_runs) return BEV_POOL_BAD_END;
  const int32_t plane = height * width;
  const int32_t num_points = num_images * num_depths * plane;
  for (int32_t run = 0; run < cell_start[num_cells]; ++run) {
    const int32_t point = runs[3LL * run], pixel = runs[3LL * run + 1], rows = runs[3LL * run + 2];
    if (rows < 1) return BEV_POOL_BAD_ROWS;
    if (point < 0 || point >= num_points) return BEV_POOL_BAD_POINT;
    const int32_t in_image = point % plane;
    if (pixel != point / (num_depths * plane) * plane + in_image) return BEV_POOL_BAD_PIXEL;
    if (rows > height - in_image / width) return BEV_POOL_BAD_RUN_END;
  }
  return BEV_POOL_OK;
}

int32_t bev_plugins_version(void) { return kVersion; }

const char* bev_plugins_isa(void) { return kernels().name; }

}  // extern "C"
