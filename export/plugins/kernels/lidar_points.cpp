// Compiled without contraction of a * b + c, and with each sum in the order of perception/geometry/
// lidar_points.py. Points go through in blocks: arithmetic without branches first, which compilers make
// vectors of, then what depends on a point.
#include "lidar_points.h"

#include <limits.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>

namespace {

constexpr int kBlock = 256;
constexpr int kRows = 5;  // x, y, z, intensity, age

template <typename Work>
void for_each_block(int64_t num_points, const Work& work) {
  for (int64_t first = 0; first < num_points; first += kBlock)
    work(first, static_cast<int>(std::min<int64_t>(kBlock, num_points - first)));
}

inline float affine(const float* row, float x, float y, float z) {
  return ((x * row[0] + y * row[1]) + z * row[2]) + row[3];
}

// One bit per cell of a volume; the rank of a bit says which of the set ones it is.
class CellSet {
 public:
  explicit CellSet(int64_t num_cells) : num_words_(num_cells / 64 + 1) {
    // pages of calloc that nothing is written to cost nothing: most of a volume is empty
    words_.reset(static_cast<uint64_t*>(calloc(static_cast<size_t>(num_words_), sizeof(uint64_t))));
    if (!words_) throw std::bad_alloc();
  }

  void insert(int32_t cell) { words_[cell >> 6] |= uint64_t{1} << (cell & 63); }

  // Lists the cells, growing; there is room for them.
  int64_t list(int32_t* cells) const {
    int64_t num = 0;
    for (int64_t word = 0; word < num_words_; ++word)
      for (uint64_t rest = words_[word]; rest != 0; rest &= rest - 1)
        cells[num++] = static_cast<int32_t>(word * 64 + __builtin_ctzll(rest));
    return num;
  }

  // To be called once all cells are in.
  void count() {
    before_.reset(new int32_t[num_words_]);
    int32_t num = 0;
    for (int64_t word = 0; word < num_words_; ++word) {
      before_[word] = num;
      num += __builtin_popcountll(words_[word]);
    }
  }

  // How many cells come before this one; -1 where it is not in.
  int32_t rank(int32_t cell) const {
    const uint64_t word = words_[cell >> 6], bit = uint64_t{1} << (cell & 63);
    return word & bit ? before_[cell >> 6] + __builtin_popcountll(word & (bit - 1)) : -1;
  }

 private:
  struct Free {
    void operator()(void* memory) const { free(memory); }
  };
  int64_t num_words_;
  std::unique_ptr<uint64_t[], Free> words_;
  std::unique_ptr<int32_t[]> before_;
};

int64_t num_cells(const lidar_points_volume& volume) {
  int64_t cells = 1;
  for (const int32_t size : {volume.nx, volume.ny, volume.num_slices}) {
    if (size < 1 || (cells *= size) > INT32_MAX) return -1;
  }
  return cells;
}

void block_cells(const float* x, const float* y, const float* z, const float* intensity, int num,
                 lidar_points_volume volume, int32_t* cell) {
  const float nx = static_cast<float>(volume.nx), ny = static_cast<float>(volume.ny);
  const int32_t last = volume.num_slices - 1, cells_per_slice = volume.nx * volume.ny;
  for (int i = 0; i < num; ++i) {
    const float u = (x[i] - volume.x_min) / volume.cell;
    const float v = (y[i] - volume.y_min) / volume.cell;
    const int32_t inside = (u >= 0) & (u < nx) & (v >= 0) & (v < ny) & (z[i] >= volume.z_min) &
                           (z[i] < volume.z_max) &
                           (std::fabs(intensity[i]) <= std::numeric_limits<float>::max());
    const int32_t iy = static_cast<int32_t>(inside ? v : 0.0f);
    const int32_t ix = static_cast<int32_t>(inside ? u : 0.0f);
    const float w = (z[i] - volume.z_min) / volume.slice;
    // a point just below z_max may round up to the slice above the last
    const int32_t iz = std::min(static_cast<int32_t>(inside ? w : 0.0f), last);
    cell[i] = inside ? iz * cells_per_slice + iy * volume.nx + ix : -1;
  }
}

}  // namespace

extern "C" int lidar_points_to_ego(const float* points_lidar, int64_t row_step, int64_t point_step,
                                   int64_t num_points, const float* T_ego_lidar, float ego_radius,
                                   float age, int64_t ego_row_step, float* points_ego,
                                   int64_t* num_kept) {
  if (num_points < 0 || !points_lidar || !T_ego_lidar || !points_ego || !num_kept)
    return LIDAR_POINTS_BAD_SIZE;
  float* out[kRows];
  for (int row = 0; row < kRows; ++row) out[row] = points_ego + row * ego_row_step;
  int64_t kept = 0;
  for (int64_t i = 0; i < num_points; ++i) {
    const float* point = points_lidar + i * point_step;
    const float x = point[0], y = point[row_step], z = point[2 * row_step];
    for (int axis = 0; axis < 3; ++axis) out[axis][kept] = affine(T_ego_lidar + 4 * axis, x, y, z);
    out[3][kept] = point[3 * row_step];
    out[4][kept] = age;
    kept += (std::fabs(x) >= ego_radius) | (std::fabs(y) >= ego_radius);
  }
  *num_kept = kept;
  return LIDAR_POINTS_OK;
}

extern "C" int lidar_points_cells(const float* points_ego, int64_t row_step, int64_t num_points,
                                  const lidar_points_volume* volume, int32_t* cell,
                                  int32_t* occupied, int64_t* num_occupied) {
  if (num_points < 0 || num_points > INT32_MAX || !points_ego || !volume || !cell || !occupied ||
      !num_occupied || num_cells(*volume) < 0)
    return LIDAR_POINTS_BAD_SIZE;
  try {
    CellSet cells(num_cells(*volume));
    for_each_block(num_points, [&](int64_t first, int num) {
      const float* x = points_ego + first;
      block_cells(x, x + row_step, x + 2 * row_step, x + 3 * row_step, num, *volume, cell + first);
      for (int64_t i = first; i < first + num; ++i)
        if (cell[i] >= 0) cells.insert(cell[i]);
    });
    *num_occupied = cells.list(occupied);
  } catch (...) {
    return LIDAR_POINTS_NO_MEMORY;
  }
  return LIDAR_POINTS_OK;
}

extern "C" int lidar_points_fill(const float* points_ego, int64_t row_step, int64_t num_points,
                                 const int32_t* cell, int32_t num_cells, const int32_t* kept,
                                 int64_t num_kept, int32_t max_points, float* points,
                                 int32_t* num_used) {
  if (num_points < 0 || num_cells < 1 || num_kept < 0 || max_points < 1 || !points_ego || !cell ||
      !kept || !points || !num_used)
    return LIDAR_POINTS_BAD_SIZE;
  try {
    CellSet cells(num_cells);
    for (int64_t i = 0; i < num_kept; ++i) {
      if (kept[i] < 0 || kept[i] >= num_cells || (i > 0 && kept[i] <= kept[i - 1]))
        return LIDAR_POINTS_BAD_CELL;
      cells.insert(kept[i]);
    }
    cells.count();
    const int64_t pillar_floats = int64_t{max_points} * kRows;
    std::fill(num_used, num_used + num_kept, 0);
    for (int64_t i = 0; i < num_points; ++i) {
      if (cell[i] < 0) continue;
      if (cell[i] >= num_cells) return LIDAR_POINTS_BAD_CELL;
      const int32_t pillar = cells.rank(cell[i]);
      if (pillar < 0 || num_used[pillar] == max_points) continue;
      float* point = points + pillar * pillar_floats + num_used[pillar]++ * kRows;
      for (int row = 0; row < kRows; ++row) point[row] = points_ego[row * row_step + i];
    }
    for (int64_t pillar = 0; pillar < num_kept; ++pillar) {
      float* first = points + pillar * pillar_floats;
      std::fill(first + int64_t{num_used[pillar]} * kRows, first + pillar_floats, 0.0f);
    }
  } catch (...) {
    return LIDAR_POINTS_NO_MEMORY;
  }
  return LIDAR_POINTS_OK;
}

extern "C" int lidar_points_depth_image(const float* points_ego, int64_t row_step,
                                        int64_t num_points, const float* P, float min_depth,
                                        int32_t height, int32_t width, float* image) {
  if (num_points < 0 || height < 1 || width < 1 || int64_t{height} * width > INT32_MAX ||
      !points_ego || !P || !image)
    return LIDAR_POINTS_BAD_SIZE;
  const float h = static_cast<float>(height), w = static_cast<float>(width);
  std::fill(image, image + int64_t{height} * width, 0.0f);
  for_each_block(num_points, [&](int64_t first, int num) {
    const float *x = points_ego + first, *y = x + row_step, *z = y + row_step;
    float u_depth[kBlock], v_depth[kBlock], depth[kBlock];
    int32_t inside[kBlock], any = 0;
    for (int i = 0; i < num; ++i) {
      const float d = affine(P + 8, x[i], y[i], z[i]);
      u_depth[i] = affine(P, x[i], y[i], z[i]);
      v_depth[i] = affine(P + 4, x[i], y[i], z[i]);
      inside[i] = (d > min_depth) & (u_depth[i] >= 0) & (u_depth[i] < w * d) & (v_depth[i] >= 0) &
                  (v_depth[i] < h * d);
      any |= inside[i];
      depth[i] = d;
    }
    if (!any) return;
    int32_t seen[kBlock], num_seen = 0;  // no branch here and below: none could be foreseen
    for (int i = 0; i < num; ++i) {
      seen[num_seen] = i;
      num_seen += inside[i];
    }
    for (int k = 0; k < num_seen; ++k) {
      const int i = seen[k];
      // rounding may carry a point up to the edge
      const int32_t u = std::min(static_cast<int32_t>(u_depth[i] / depth[i]), width - 1);
      const int32_t v = std::min(static_cast<int32_t>(v_depth[i] / depth[i]), height - 1);
      float& pixel = image[int64_t{v} * width + u];
      const float before = pixel == 0.0f ? std::numeric_limits<float>::infinity() : pixel;
      pixel = std::min(before, depth[i]);
    }
  });
  return LIDAR_POINTS_OK;
}
