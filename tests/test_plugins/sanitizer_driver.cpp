// Calls the CPU library on arrays of exactly the sizes that it is told: built with the sanitizers, any step
// outside them, any overflow or misaligned access ends the program. Prints the number of pools.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "bev_pool.h"
#include "lidar_points.h"
#include "sparse_tables.h"

// Memory of which there are only so many pieces, for the library, too.
std::atomic<int32_t> pieces_left{INT32_MAX};
void* operator new(size_t size) {
  void* memory = pieces_left-- > 0 ? malloc(size) : nullptr;
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { free(memory); }
void operator delete(void* memory, size_t) noexcept { free(memory); }

namespace {

std::mt19937 engine(1);

int32_t between(int32_t low, int32_t high) {
  return std::uniform_int_distribution<int32_t>(low, high)(engine);
}

template <typename Value>
std::vector<Value> random_array(size_t size) {
  std::vector<Value> values(size);
  for (Value& value : values) value = static_cast<Value>(between(0, 1000) / 500.0);
  values.shrink_to_fit();
  return values;
}

void expect(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "failed: %s\n", what);
  exit(1);
}

// An output aligned to the longest vectors; larger than the threshold of this build it is written past the
// caches, by instructions that the sanitizers do not see: so there are marks around it.
void stream_once(const std::vector<float>& depth, const std::vector<float>& feat,
                 const std::vector<int32_t>& runs, const std::vector<int32_t>& cell_start,
                 int32_t width, int32_t channels, const std::vector<float>& expected) {
  void* memory = nullptr;
  expect(posix_memalign(&memory, 64, sizeof(float) * (expected.size() + 32)) == 0, "memory");
  float* const begin = static_cast<float*>(memory);
  std::fill(begin, begin + expected.size() + 32, -7.0f);
  expect(bev_pool_forward_f32(depth.data(), feat.data(), runs.data(), cell_start.data(),
                              int32_t(cell_start.size()) - 1, width, channels, 2,
                              begin + 16) == BEV_POOL_OK,
         "forward past the caches");
  expect(memcmp(begin + 16, expected.data(), sizeof(float) * expected.size()) == 0, "one result");
  for (int32_t i = 0; i < 16; ++i) {
    expect(begin[i] == -7.0f && begin[16 + expected.size() + i] == -7.0f, "marks");
  }
  free(memory);
}

void pool_once(int32_t channels) {
  const int32_t images = between(1, 3), height = between(1, 6), width = between(1, 20);
  const bev_pool_frustum frustum{1.0, 1.0, -3.0, 3.0, between(1, 5), height, width, 8};
  const bev_pool_grid grid{-4.0, -3.0, 1.0, between(1, 9), between(1, 9)};
  const size_t plane = size_t(height) * width, points = images * plane * frustum.num_depths;
  std::vector<double> R(9 * images), t(3 * images);
  for (double& value : R) value = between(-100, 100) / 800.0;
  for (double& value : t) value = between(-100, 100) / 50.0;
  std::vector<uint8_t> used(images, 1);
  used[0] = between(0, 1);
  if (between(0, 9) == 0) R[between(0, 9 * images - 1)] = 1e300;

  std::vector<int32_t> room(3 * points), cell_start(grid.nx * grid.ny + 1);
  const int32_t cells = grid.nx * grid.ny, threads = between(1, 3);
  expect(bev_pool_build_table(R.data(), t.data(), used.data(), images, &frustum, &grid, threads,
                              int64_t(points), room.data(), cell_start.data()) == BEV_POOL_OK,
         "a table");
  const int32_t num_runs = cell_start[cells];
  const std::vector<int32_t> runs(room.begin(), room.begin() + 3 * num_runs);
  if (num_runs > 0) {
    expect(bev_pool_build_table(R.data(), t.data(), used.data(), images, &frustum, &grid, threads,
                                num_runs - 1, room.data(), cell_start.data()) == BEV_POOL_NO_ROOM,
           "no room");
  }
  expect(bev_pool_check_table(runs.data(), num_runs, cell_start.data(), cells, images,
                              frustum.num_depths, height, width) == BEV_POOL_OK,
         "a sound table");

  const auto depth = random_array<float>(points);
  const auto feat = random_array<float>(images * plane * channels);
  std::vector<float> bev(size_t(cells) * channels), grad_depth(points), grad_feat(feat.size());
  expect(bev_pool_forward_f32(depth.data(), feat.data(), runs.data(), cell_start.data(), cells,
                              width, channels, threads, bev.data()) == BEV_POOL_OK,
         "forward");
  expect(bev_pool_backward_f32(bev.data(), depth.data(), feat.data(), runs.data(),
                               cell_start.data(), cells, images, frustum.num_depths, height, width,
                               channels, threads, grad_depth.data(),
                               grad_feat.data()) == BEV_POOL_OK,
         "backward");
  stream_once(depth, feat, runs, cell_start, width, channels, bev);
  const auto half_depth = random_array<uint16_t>(points);
  const auto half_feat = random_array<uint16_t>(feat.size());
  std::vector<uint16_t> half_bev(bev.size());
  for (int32_t part = 0; part < 3; ++part) {
    expect(bev_pool_cells_f16(half_depth.data(), half_feat.data(), runs.data(), cell_start.data(),
                              cells, width, channels,
                              bev_pool_split(cell_start.data(), cells, part, 3),
                              bev_pool_split(cell_start.data(), cells, part + 1, 3),
                              half_bev.data()) == BEV_POOL_OK,
           "half precision");
  }
}

// Tables of any content are looked at, never followed; one that passes is pooled.
void check_once() {
  const int32_t edges[] = {INT32_MIN, -1, 0, 1, 2, 3, 5, 7, 46341, INT32_MAX};
  const auto any = [&] { return edges[between(0, 9)]; };
  const auto sound = [&] { return between(0, 3); };
  const bool wild = between(0, 1) == 1;
  std::vector<int32_t> runs(3 * between(0, 3)), cell_start(between(2, 4));
  for (int32_t& value : runs) value = wild ? any() : sound();
  for (int32_t& value : cell_start) value = wild ? any() : sound();
  if (between(0, 2) > 0) cell_start[0] = 0;
  const int32_t cells = int32_t(cell_start.size()) - 1;
  const int32_t sizes[4] = {wild ? any() : 1, wild ? any() : 2, wild ? any() : 2, wild ? any() : 2};
  const int code = bev_pool_check_table(runs.data(), int64_t(runs.size() / 3), cell_start.data(),
                                        cells, sizes[0], sizes[1], sizes[2], sizes[3]);
  if (code != BEV_POOL_OK || wild) return;
  const auto depth = random_array<float>(8), feat = random_array<float>(4 * 5);
  std::vector<float> bev(cells * 5);
  expect(bev_pool_forward_f32(depth.data(), feat.data(), runs.data(), cell_start.data(), cells, 2,
                              5, 1, bev.data()) == BEV_POOL_OK,
         "a checked table");
}

// The tables of two convolutions, in arrays of exactly the size that the header names.
struct SparseCase {
  int32_t size[3];
  sparse_tables_conv convs[2];
  int32_t capacities[3];
  std::vector<int32_t> cells;
  int32_t threads = 1;

  int build() const {
    int64_t outputs = 1, rows = capacities[0];
    std::vector<std::vector<int32_t>> within, down;
    const int32_t* in = size;
    int32_t next[2][3];
    for (int l = 0; l < 2; ++l) {
      outputs = 1;
      int64_t offsets = 1;
      for (int a = 0; a < 3; ++a) {
        const int64_t room = int64_t{in[a]} + 2 * int64_t{convs[l].padding[a]} - convs[l].kernel[a];
        const int64_t n = convs[l].stride[a] > 0 ? room / convs[l].stride[a] + 1 : 0;
        next[l][a] = int32_t(std::clamp<int64_t>(n, 0, 300));  // wild ones are to be refused
        outputs *= next[l][a];
        offsets *= std::clamp(convs[l].kernel[a], 0, 16);
      }
      within.emplace_back(27 * std::max<int64_t>(rows, 0));
      rows = std::min<int64_t>(capacities[l + 1], outputs);
      down.emplace_back(offsets * std::max<int64_t>(rows, 0));
      in = next[l];
    }
    std::vector<int32_t> dense(outputs), num_rows(3), num_dropped(3);
    int32_t* const within_data[] = {within[0].data(), within[1].data()};
    int32_t* const down_data[] = {down[0].data(), down[1].data()};
    // dense has no address where it is empty
    int32_t nothing = 0;
    return sparse_tables_build(cells.data(), int32_t(cells.size()), size, convs, 2, capacities,
                               threads, within_data, down_data,
                               outputs > 0 ? dense.data() : &nothing, num_rows.data(),
                               num_dropped.data());
  }
};

SparseCase sparse_case() {
  SparseCase problem;
  for (int32_t& n : problem.size) n = between(1, 70);
  problem.size[0] = between(1, 5);
  for (sparse_tables_conv& conv : problem.convs) {
    for (int a = 0; a < 3; ++a) {
      conv.kernel[a] = between(1, 4);
      conv.stride[a] = between(1, 3);
      conv.padding[a] = between(0, conv.kernel[a] - 1);
    }
  }
  const int32_t places = problem.size[0] * problem.size[1] * problem.size[2];
  const int32_t one_of = between(1, 20);
  for (int32_t cell = 0; cell < places; ++cell) {
    if (between(1, one_of) == 1) problem.cells.push_back(cell);
  }
  if (between(0, 1)) std::shuffle(problem.cells.begin(), problem.cells.end(), engine);
  for (int32_t& capacity : problem.capacities) capacity = between(0, 2) ? 25000 : between(0, 50);
  problem.threads = between(0, 3);
  return problem;
}

// Sound tables, and the same with one number that is none: it is refused, or the tables are built.
void sparse_once() {
  SparseCase problem = sparse_case();
  const int code = problem.build();
  expect(code == SPARSE_TABLES_OK || code == SPARSE_TABLES_BAD_SIZE, "sparse tables");
  const int32_t wild[] = {INT32_MIN, -1, 0, 17, 46341, 1 << 30, INT32_MAX - 1, INT32_MAX};
  const int32_t value = wild[between(0, 7)];
  const int32_t place = between(0, 18);
  if (place < 18) {
    int32_t* const conv = problem.convs[place / 9].kernel;  // followed by stride and padding
    conv[place % 9] = value;
  } else if (!problem.cells.empty()) {
    problem.cells[between(0, int32_t(problem.cells.size()) - 1)] = value;
  }
  problem.build();
}

// Whatever piece of memory is not to be had: a code, and no thread left behind.
void little_memory() {
  SparseCase problem = sparse_case();
  while (problem.build() != SPARSE_TABLES_OK || problem.cells.size() < 5000) problem = sparse_case();
  problem.threads = 3;
  int refused = 0, built = 0;
  for (int32_t pieces = 0; pieces < 200; ++pieces) {
    const SparseCase once = problem;
    pieces_left = pieces;
    int code = SPARSE_TABLES_NO_MEMORY;
    try {
      code = once.build();
    } catch (const std::bad_alloc&) {  // the driver's own arrays
    }
    pieces_left = INT32_MAX;
    expect(code == SPARSE_TABLES_OK || code == SPARSE_TABLES_NO_MEMORY, "little memory");
    ++(code == SPARSE_TABLES_OK ? built : refused);
  }
  expect(refused > 0 && built > 0, "memory that is just enough");
}

// Points of any numbers, in arrays of exactly their size, with rows that have gaps or lie across.
void points_once() {
  const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-42f, 0.0f, 2.0f};
  const auto number = [&] { return between(0, 9) ? between(-500, 500) / 50.0f : odd[between(0, 7)]; };
  const int64_t num = between(0, 600), gap = between(0, 2);
  std::vector<float> lidar(4 * num), ego(5 * (num + gap)), T(12), P(12);
  for (std::vector<float>* values : {&lidar, &T, &P})
    for (float& value : *values) value = number();
  float nothing = 0;  // empty arrays have no address
  int64_t kept = 0;
  const bool across = between(0, 1);
  expect(lidar_points_to_ego(num ? lidar.data() : &nothing, across ? 1 : num, across ? 4 : 1, num, T.data(), 1.0f,
                             0.1f, num + gap, ego.empty() ? &nothing : ego.data(), &kept) == LIDAR_POINTS_OK &&
             kept <= num,
         "points to ego");
  for (float& value : ego) value = number();
  if (ego.empty()) ego.push_back(0);
  const lidar_points_volume volume{-6, -5, -3, 4, 0.5f, 7.0f / 3, between(1, 30), between(1, 30), 3};
  const int32_t num_cells = volume.nx * volume.ny * 3;
  std::vector<int32_t> cell(num + 1), occupied(num + 1, -7);
  int64_t num_occupied = -1;
  expect(lidar_points_cells(ego.data(), num + gap, num, &volume, cell.data(), occupied.data(), &num_occupied) ==
                 LIDAR_POINTS_OK &&
             num_occupied <= num && occupied[num] == -7,
         "cells");
  const int32_t places = between(1, 5);
  const auto fill = [&] {
    std::vector<float> pillars(size_t(num_occupied) * places * 5 + 1, -7.0f);
    std::vector<int32_t> used(num_occupied + 1);
    const int code = lidar_points_fill(ego.data(), num + gap, num, cell.data(), num_cells, occupied.data(),
                                       num_occupied, places, pillars.data(), used.data());
    expect(pillars.back() == -7.0f, "nothing behind the pillars");
    for (int64_t pillar = 0; code == LIDAR_POINTS_OK && pillar < num_occupied; ++pillar)
      for (int32_t i = used[pillar] * 5; i < places * 5; ++i)
        expect(pillars[pillar * places * 5 + i] == 0.0f, "unused places are zero");
    return code;
  };
  expect(fill() == LIDAR_POINTS_OK, "pillars");
  const int32_t wild[] = {INT32_MIN, -1, num_cells, INT32_MAX, between(0, num_cells - 1)};
  (between(0, 1) ? cell : occupied)[between(0, int32_t(num))] = wild[between(0, 4)];
  fill();  // refused, or filled
  const int32_t height = between(1, 20), width = between(1, 20);
  std::vector<float> image(height * width);
  expect(lidar_points_depth_image(ego.data(), num + gap, num, P.data(), 0.1f, height, width, image.data()) ==
             LIDAR_POINTS_OK,
         "depths");
}

}  // namespace

int main() {
  int pools = 0;
  for (int32_t channels = 1; channels <= 70; ++channels, ++pools) pool_once(channels);
  for (const int32_t channels : {80, 128, 161, 300}) pool_once(channels), ++pools;
  for (int i = 0; i < 20000; ++i) check_once();
  for (int i = 0; i < 150; ++i) sparse_once();
  for (int i = 0; i < 500; ++i) points_once();
  little_memory();
  printf("%s %d\n", bev_plugins_isa(), pools);
}
