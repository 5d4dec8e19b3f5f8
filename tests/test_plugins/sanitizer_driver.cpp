// Calls the CPU library on arrays of exactly the sizes that it is told: built with the sanitizers, any step
// outside them, any overflow or misaligned access ends the program. Prints the number of pools.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <memory>
#include <random>
#include <vector>

#include "bev_pool.h"

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

}  // namespace

int main() {
  int pools = 0;
  for (int32_t channels = 1; channels <= 70; ++channels, ++pools) pool_once(channels);
  for (const int32_t channels : {80, 128, 161, 300}) pool_once(channels), ++pools;
  for (int i = 0; i < 20000; ++i) check_once();
  printf("%s %d\n", bev_plugins_isa(), pools);
}
