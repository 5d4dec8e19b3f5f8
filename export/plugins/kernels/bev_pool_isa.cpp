// One instruction set's kernels. Only internal names and no library templates: the linker keeps one copy
// of what has the same name in several object files, and it might keep one that this processor cannot run.
#include "bev_pool_isa.h"

#include <string.h>

#if defined(__SSE__)
#include <immintrin.h>
#endif

#include "bev_pool_cell.h"

#define BEV_POOL_JOIN(a, b) a##b
#define BEV_POOL_JOINED(a, b) BEV_POOL_JOIN(a, b)
#define BEV_POOL_NAME(isa) BEV_POOL_JOINED(kernels_, isa)
#define BEV_POOL_TEXT_OF(isa) #isa
#define BEV_POOL_TEXT(isa) BEV_POOL_TEXT_OF(isa)

namespace bev_pool {
namespace {

// Channels of a vector, and vectors that a cell's sum may fill at a time.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 10;
#else
constexpr int kLanes = 4, kRegisters = 10;
#endif
#if defined(BEV_POOL_FEW_VECTORS)
constexpr int kMostVectors = 2;  // the same code, compiled in a fifth of the time, for the sanitizers
#else
constexpr int kMostVectors = kRegisters;
#endif

template <int N>
struct Vector {
  typedef float type __attribute__((vector_size(4 * N)));
};
template <>
struct Vector<1> {
  typedef float type;
};
template <int N>
using Vec = typename Vector<N>::type;

template <int N>
BEV_POOL_INLINE Vec<N> load(const float* from) {
  Vec<N> value;
  memcpy(&value, from, sizeof(value));
  return value;
}

template <int N>
BEV_POOL_INLINE void store(float* to, const Vec<N>& value) {
  memcpy(to, &value, sizeof(value));
}

// --- half precision: stored as 16 bits, summed as float

#if defined(__aarch64__)
BEV_POOL_INLINE float float_of(uint16_t half) {
  __fp16 value;
  memcpy(&value, &half, sizeof(half));
  return value;
}
BEV_POOL_INLINE uint16_t half_of(float value) {
  const __fp16 rounded = static_cast<__fp16>(value);
  uint16_t half;
  memcpy(&half, &rounded, sizeof(half));
  return half;
}
#elif defined(__F16C__)
BEV_POOL_INLINE float float_of(uint16_t half) { return _cvtsh_ss(half); }
BEV_POOL_INLINE uint16_t half_of(float value) {
  return static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
}
#else
BEV_POOL_INLINE float float_of(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t bits = magnitude << 13;
  float value;
  memcpy(&value, &bits, sizeof(bits));
  value *= 0x1p112f;  // the exponents' biases differ by 112; subnormal numbers come out right, too
  uint32_t result;
  memcpy(&result, &value, sizeof(value));
  if (magnitude >= 0x7c00u) result |= 0x7f800000u;  // infinity and NaN
  result |= static_cast<uint32_t>(half & 0x8000u) << 16;
  memcpy(&value, &result, sizeof(value));
  return value;
}
BEV_POOL_INLINE uint16_t half_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (bits < 0x38800000u) {  // below 2^-14: in steps of 2^-24, which are those of a float in 0.5..1
    float magnitude;
    memcpy(&magnitude, &bits, sizeof(bits));
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + (bits >> 13 & 1u);  // to nearest, ties to even
  return static_cast<uint16_t>(sign | (bits - (112u << 23)) >> 13);
}
#endif

template <int N>
BEV_POOL_INLINE Vec<N> load(const uint16_t* from) {
  Vec<N> value;
  if constexpr (N == 1) {
    value = float_of(*from);
#if defined(__AVX512F__)
  } else if constexpr (N == 16) {
    // masked only because g++ 12 warns about its own unmasked form
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    value = (Vec<N>)_mm512_maskz_cvtph_ps(0xffff, halves);
#endif
#if defined(__F16C__)
  } else if constexpr (N == 8) {
    value = (Vec<N>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
  } else {
    for (int lane = 0; lane < N; ++lane) value[lane] = float_of(from[lane]);
  }
  return value;
}

template <int N>
BEV_POOL_INLINE void store(uint16_t* to, const Vec<N>& value) {
  if constexpr (N == 1) {
    *to = half_of(value);
#if defined(__AVX512F__)
  } else if constexpr (N == 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__F16C__)
  } else if constexpr (N == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#endif
  } else {
    for (int lane = 0; lane < N; ++lane) to[lane] = half_of(value[lane]);
  }
}

BEV_POOL_INLINE float float_of(float value) { return value; }

// Past the caches where there is such an instruction; `to` is aligned to a vector.
template <int N, typename Value>
BEV_POOL_INLINE void store_streaming(Value* to, const Vec<N>& value) {
#if defined(__AVX512F__)
  if constexpr (N == 16 && sizeof(Value) == 4) return _mm512_stream_ps(to, (__m512)value);
#endif
#if defined(__AVX__)
  if constexpr (N == 8 && sizeof(Value) == 4) return _mm256_stream_ps(to, (__m256)value);
#elif defined(__SSE__)
  if constexpr (N == 4 && sizeof(Value) == 4) return _mm_stream_ps(to, (__m128)value);
#endif
  store<N>(to, value);
}

// --- forward

// R vectors of N channels. A list of members, not an array: that one g++ keeps in memory.
template <int N, int R>
struct Sum {
  Vec<N> first{};
  Sum<N, R - 1> rest;

  template <typename Value>
  __attribute__((always_inline)) void add(Value weight, const Value* pixel) {
    first += float_of(weight) * load<N>(pixel);
    rest.add(weight, pixel + N);
  }
  template <typename Value>
  __attribute__((always_inline)) void write(bool stream, Value* to) const {
    stream ? store_streaming<N>(to, first) : store<N>(to, first);
    rest.write(stream, to + N);
  }
};
template <int N>
struct Sum<N, 0> {
  template <typename Value>
  __attribute__((always_inline)) void add(Value, const Value*) {}
  template <typename Value>
  __attribute__((always_inline)) void write(bool, Value*) const {}
};

// Channels c .. c + R * N - 1 of a cell.
template <int N, int R, typename Value>
BEV_POOL_INLINE void write_channels(const Forward<Value>& pool, int32_t cell, int c) {
  Sum<N, R> sum;
  add_runs(sum, pool.depth, pool.feat + c, pool.runs, pool.cell_start[cell],
           pool.cell_start[cell + 1], pool.width, pool.channels);
  sum.write(pool.stream, pool.bev + static_cast<int64_t>(cell) * pool.channels + c);
}

// As many vectors at a time as are left, up to R.
template <int N, int R, typename Value>
BEV_POOL_INLINE int write_vectors(const Forward<Value>& pool, int32_t cell, int c) {
  if (c + R * N <= pool.channels) {
    write_channels<N, R>(pool, cell, c);
    return c + R * N;
  }
  if constexpr (R > 1) return write_vectors<N, R - 1>(pool, cell, c);
  return c;
}

template <int N, typename Value>
void cells(const Forward<Value>& pool, int32_t first, int32_t last) {
  for (int32_t cell = first; cell < last; ++cell) {
    int c = 0;
    while (c + N <= pool.channels) c = write_vectors<N, kMostVectors>(pool, cell, c);
    // the rest as one more vector that ends with the last channel: some are written twice, alike
    if (c < pool.channels) write_channels<N, 1>(pool, cell, pool.channels - N);
  }
#if defined(__SSE__)
  if (pool.stream) _mm_sfence();
#endif
}

template <typename Value>
void cells_of_any(const Forward<Value>& pool, int32_t first, int32_t last) {
  if (pool.channels >= kLanes) return cells<kLanes>(pool, first, last);
  if (pool.channels >= 4) return cells<4>(pool, first, last);
  cells<1>(pool, first, last);
}

// --- backward

template <int N>
BEV_POOL_INLINE float total(const Vec<N>& value) {
  if constexpr (N == 1) {
    return value;
  } else if constexpr (N == 2) {
    return value[0] + value[1];
  } else {
    Vec<N / 2> low, high;
    memcpy(&low, &value, sizeof(low));
    memcpy(&high, reinterpret_cast<const char*>(&value) + sizeof(low), sizeof(high));
    return total<N / 2>(low + high);
  }
}

// R vectors of a cell's gradient, which stay in registers over the rows of a run.
template <int R>
struct CellGradient {
  Vec<kLanes> first;
  CellGradient<R - 1> rest;

  __attribute__((always_inline)) explicit CellGradient(const float* from)
      : first(load<kLanes>(from)), rest(from + kLanes) {}
  __attribute__((always_inline)) Vec<kLanes> times(const float* pixel) const {
    return first * load<kLanes>(pixel) + rest.times(pixel + kLanes);
  }
  __attribute__((always_inline)) void add_to(float* grad_pixel, float weight) const {
    store<kLanes>(grad_pixel, load<kLanes>(grad_pixel) + weight * first);
    rest.add_to(grad_pixel + kLanes, weight);
  }
};
template <>
struct CellGradient<0> {
  __attribute__((always_inline)) explicit CellGradient(const float*) {}
  __attribute__((always_inline)) Vec<kLanes> times(const float*) const { return Vec<kLanes>{}; }
  __attribute__((always_inline)) void add_to(float*, float) const {}
};

// One image column at work: its features and their gradients, rows of whole vectors.
struct Column {
  const float* pixels;
  float* grad_pixels;
  float* products;  // gradient of depth, per row of the run
  int row_floats;
};

template <int R>
BEV_POOL_INLINE int run_vectors(const Column& column, const ColumnRun& run, const float* grad_cell,
                                const float* depth, int width, int c) {
  if (c + R * kLanes <= column.row_floats) {
    const CellGradient<R> gradient(grad_cell + c);
    const int64_t first = static_cast<int64_t>(run.row) * column.row_floats + c;
    const float* pixel = column.pixels + first;
    float* grad_pixel = column.grad_pixels + first;
    for (int k = 0; k < run.rows; ++k) {
      const float product = total<kLanes>(gradient.times(pixel));
      column.products[k] = c == 0 ? product : column.products[k] + product;
      gradient.add_to(grad_pixel, depth[static_cast<int64_t>(k) * width]);
      pixel += column.row_floats;
      grad_pixel += column.row_floats;
    }
    return c + R * kLanes;
  }
  if constexpr (R > 1) return run_vectors<R - 1>(column, run, grad_cell, depth, width, c);
  return c;
}

void backward_columns(const Backward& pool, int32_t first, int32_t last, float* workspace) {
  const int channels = pool.channels, height = pool.height, width = pool.width;
  const int row_floats = (channels + kLanes - 1) / kLanes * kLanes;
  const int64_t column_floats = static_cast<int64_t>(height) * row_floats;
  float* const pixels = workspace;
  float* const grad_pixels = pixels + column_floats;
  float* const padded = grad_pixels + column_floats;
  const Column column{pixels, grad_pixels, padded + row_floats, row_floats};
  memset(workspace, 0, sizeof(float) * (2 * column_floats + row_floats));
  for (int32_t index = first; index < last; ++index) {
    const int64_t top = static_cast<int64_t>(index / width) * height * width + index % width;
    for (int h = 0; h < height; ++h) {
      memcpy(pixels + static_cast<int64_t>(h) * row_floats,
             pool.feat + (top + static_cast<int64_t>(h) * width) * channels,
             sizeof(float) * channels);
    }
    memset(grad_pixels, 0, sizeof(float) * column_floats);
    for (int32_t i = pool.column_start[index]; i < pool.column_start[index + 1]; ++i) {
      const ColumnRun run = pool.runs[i];
      const float* grad_cell = pool.grad_bev + static_cast<int64_t>(run.cell) * channels;
      if (row_floats != channels) {
        grad_cell = static_cast<const float*>(memcpy(padded, grad_cell, sizeof(float) * channels));
      }
      for (int c = 0; c < row_floats;) {
        c = run_vectors<kMostVectors>(column, run, grad_cell, pool.depth + run.point, width, c);
      }
      for (int k = 0; k < run.rows; ++k) {
        pool.grad_depth[run.point + static_cast<int64_t>(k) * width] += column.products[k];
      }
    }
    for (int h = 0; h < height; ++h) {
      memcpy(pool.grad_feat + (top + static_cast<int64_t>(h) * width) * channels,
             grad_pixels + static_cast<int64_t>(h) * row_floats, sizeof(float) * channels);
    }
  }
}

const Kernels kKernels = {BEV_POOL_TEXT(BEV_POOL_ISA), 4 * kLanes, cells_of_any<float>,
                          cells_of_any<uint16_t>, backward_columns};

}  // namespace

const Kernels* BEV_POOL_NAME(BEV_POOL_ISA)() { return &kKernels; }

}  // namespace bev_pool
