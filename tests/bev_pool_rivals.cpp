// What tests/benchmark_bev_pool.py compares the pool with: the per-point interval kernel of the field, tuned
// like ours (vector accumulators, one owner per cell, empty cells in the same pass), and plain copies of memory.
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace {

constexpr int kLanes = 16;
typedef float Vector __attribute__((vector_size(4 * kLanes)));

inline Vector load(const float* from) {
  Vector value;
  memcpy(&value, from, sizeof(value));
  return value;
}

template <typename Work>
void in_parts(int num_threads, const Work& work) {
  std::vector<std::thread> threads;
  for (int part = 1; part < num_threads; ++part) threads.emplace_back(work, part);
  work(0);
  for (std::thread& thread : threads) thread.join();
}

// 80 channels as five vectors that stay in registers.
void interval_cells(const float* depth, const float* feat, const int32_t* point_depth,
                    const int32_t* point_feat, const int32_t* cell_start, int32_t first,
                    int32_t last, float* bev) {
  for (int32_t cell = first; cell < last; ++cell) {
    Vector a{}, b{}, c{}, d{}, e{};
    for (int32_t point = cell_start[cell]; point < cell_start[cell + 1]; ++point) {
      const float weight = depth[point_depth[point]];
      const float* pixel = feat + 80LL * point_feat[point];
      a += weight * load(pixel);
      b += weight * load(pixel + kLanes);
      c += weight * load(pixel + 2 * kLanes);
      d += weight * load(pixel + 3 * kLanes);
      e += weight * load(pixel + 4 * kLanes);
    }
    Vector* out = reinterpret_cast<Vector*>(bev + 80LL * cell);  // aligned: checked by the caller
    int lane = 0;
    for (const Vector& value : {a, b, c, d, e}) {
#if defined(__AVX512F__)
      __builtin_ia32_movntps512(reinterpret_cast<float*>(out + lane++), value);
#else
      out[lane++] = value;
#endif
    }
  }
}

}  // namespace

// bev_pool_v2 (Huang et al. 2022) with starts for all cells; 80 channels, bev aligned to 64 bytes.
extern "C" void interval_forward(const float* depth, const float* feat, const int32_t* point_depth,
                                 const int32_t* point_feat, const int32_t* cell_start,
                                 int32_t num_cells, int32_t num_threads, float* bev) {
  in_parts(num_threads, [=](int part) {
    const auto edge = [=](int32_t index) {
      const int64_t share = int64_t{cell_start[num_cells]} * index / num_threads;
      return index == num_threads ? num_cells
                                  : static_cast<int32_t>(std::lower_bound(cell_start, cell_start + num_cells, share) - cell_start);
    };
    interval_cells(depth, feat, point_depth, point_feat, cell_start, edge(part), edge(part + 1), bev);
  });
}

// The pool's least traffic: reads `read` floats once and writes `written` floats once.
extern "C" float stream(const float* from, int64_t read, float* to, int64_t written,
                        int32_t num_threads) {
  std::vector<float> sums(static_cast<size_t>(num_threads) * kLanes);
  in_parts(num_threads, [&](int part) {
    const int64_t vectors = read / kLanes, outputs = written / kLanes;
    Vector sum{};
    for (int64_t i = vectors * part / num_threads; i < vectors * (part + 1) / num_threads; ++i) {
      sum += load(from + i * kLanes);
    }
    memcpy(&sums[static_cast<size_t>(part) * kLanes], &sum, sizeof(sum));
    const Vector value{};
    for (int64_t i = outputs * part / num_threads; i < outputs * (part + 1) / num_threads; ++i) {
#if defined(__AVX512F__)
      __builtin_ia32_movntps512(to + i * kLanes, value);
#else
      memcpy(to + i * kLanes, &value, sizeof(value));
#endif
    }
  });
  return sums[0];
}
