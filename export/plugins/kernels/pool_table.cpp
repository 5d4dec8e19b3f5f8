// The table of runs of a rig. Compiled without contraction of a * b + c, and with each sum in the order of
// perception/geometry/pool_table.py: both give the same table, point by point.
#include <limits.h>

#include <algorithm>
#include <new>
#include <vector>

#include "bev_pool.h"
#include "threads.h"

namespace bev_pool {
namespace {

struct CellRun {
  int32_t cell, point, pixel, rows;
};

// Numbers that all cameras share.
struct Rays {
  std::vector<double> d;   // middle of each depth bin [m]
  std::vector<double> ud;  // /*[depths, width]*/ u of each column times depth
  std::vector<double> vd;  // /*[depths, height]*/ v of each row times depth
};

Rays rays_of(const bev_pool_frustum& frustum) {
  Rays rays;
  for (int32_t i = 0; i < frustum.num_depths; ++i) {
    const double d = frustum.depth_min + (i + 0.5) * frustum.depth_step;
    rays.d.push_back(d);
    for (int32_t w = 0; w < frustum.width; ++w) rays.ud.push_back(d * ((w + 0.5) * frustum.stride));
    for (int32_t h = 0; h < frustum.height; ++h) rays.vd.push_back(d * ((h + 0.5) * frustum.stride));
  }
  return rays;
}

// Cells of the points of one image column and depth bin, -1 where a point does not count. A point is
// start + step * vd per coordinate.
void column_cells(const double* start, const double* step, const double* vd, int32_t height,
                  const bev_pool_frustum& frustum, const bev_pool_grid& grid, int32_t* cell) {
  const double nx = grid.nx, ny = grid.ny;
  for (int32_t h = 0; h < height; ++h) {
    const double u = (start[0] + step[0] * vd[h] - grid.x_min) / grid.cell;
    const double v = (start[1] + step[1] * vd[h] - grid.y_min) / grid.cell;
    const double z = start[2] + step[2] * vd[h];
    const bool inside = (u >= 0) & (u < nx) & (v >= 0) & (v < ny) & (z >= frustum.z_min) &
                        (z < frustum.z_max);  // false for NaN
    const int32_t iy = static_cast<int32_t>(inside ? v : 0.0);
    const int32_t ix = static_cast<int32_t>(inside ? u : 0.0);
    cell[h] = inside ? iy * grid.nx + ix : -1;
  }
}

// Runs of one camera in the order depth bin, column, row.
std::vector<CellRun> runs_of_camera(const double* R, const double* t, int32_t camera,
                                    const Rays& rays, const bev_pool_frustum& frustum,
                                    const bev_pool_grid& grid) {
  const int32_t height = frustum.height, width = frustum.width, plane = height * width;
  const double step[3] = {R[1], R[4], R[7]};
  std::vector<CellRun> runs;
  std::vector<int32_t> cell(static_cast<size_t>(height));
  for (int32_t d = 0; d < frustum.num_depths; ++d) {
    const double* vd = rays.vd.data() + int64_t{d} * height;
    for (int32_t w = 0; w < width; ++w) {
      double start[3];
      for (int axis = 0; axis < 3; ++axis) {
        start[axis] = R[3 * axis] * rays.ud[int64_t{d} * width + w] +
                      (R[3 * axis + 2] * rays.d[d] + t[axis]);
      }
      column_cells(start, step, vd, height, frustum, grid, cell.data());
      for (int32_t first = 0, end; first < height; first = end) {
        end = first + 1;
        while (end < height && cell[end] == cell[first]) ++end;
        if (cell[first] < 0) continue;
        const int32_t in_image = first * width + w;
        runs.push_back({cell[first], (camera * frustum.num_depths + d) * plane + in_image,
                        camera * plane + in_image, end - first});
      }
    }
  }
  return runs;
}

bool fits(const bev_pool_frustum& frustum, const bev_pool_grid& grid, int32_t num_cameras) {
  int64_t points = 1;
  for (const int32_t size : {num_cameras, frustum.num_depths, frustum.height, frustum.width}) {
    if (size < 1 || (points *= size) > INT32_MAX) return false;
  }
  return frustum.stride >= 1 && grid.nx >= 1 && grid.ny >= 1 &&
         int64_t{grid.nx} * grid.ny < INT32_MAX;
}

// A counting sort by cell: runs of a cell stay in the order of the cameras' lists.
void place(const std::vector<std::vector<CellRun>>& lists, int32_t num_cells, int32_t* runs,
           int32_t* cell_start) {
  std::fill(cell_start, cell_start + num_cells + 1, 0);
  for (const auto& list : lists) {
    for (const CellRun& run : list) ++cell_start[run.cell + 1];
  }
  for (int32_t cell = 0; cell < num_cells; ++cell) cell_start[cell + 1] += cell_start[cell];
  std::vector<int32_t> next(cell_start, cell_start + num_cells);
  for (const auto& list : lists) {
    for (const CellRun& run : list) {
      int32_t* entry = runs + 3LL * next[run.cell]++;
      entry[0] = run.point;
      entry[1] = run.pixel;
      entry[2] = run.rows;
    }
  }
}

}  // namespace
}  // namespace bev_pool

extern "C" int bev_pool_build_table(const double* R_ego_pixel, const double* t_ego,
                                    const uint8_t* used, int32_t num_cameras,
                                    const bev_pool_frustum* frustum, const bev_pool_grid* grid,
                                    int32_t num_threads, int64_t capacity, int32_t* runs,
                                    int32_t* cell_start) {
  using namespace bev_pool;
  if (R_ego_pixel == nullptr || t_ego == nullptr || used == nullptr || frustum == nullptr ||
      grid == nullptr || runs == nullptr || cell_start == nullptr || num_threads < 1 ||
      !fits(*frustum, *grid, num_cameras)) {
    return BEV_POOL_BAD_SIZE;
  }
  try {
    const Rays rays = rays_of(*frustum);
    std::vector<std::vector<CellRun>> lists(static_cast<size_t>(num_cameras));
    std::atomic<bool> out_of_memory{false};
    for_each_part(num_cameras, num_threads, [&](int32_t camera) {
      if (!used[camera]) return;
      try {
        lists[camera] = runs_of_camera(R_ego_pixel + 9 * camera, t_ego + 3 * camera, camera, rays,
                                       *frustum, *grid);
      } catch (const std::bad_alloc&) {
        out_of_memory = true;
      }
    });
    if (out_of_memory) return BEV_POOL_NO_MEMORY;
    size_t num_runs = 0;
    for (const auto& list : lists) num_runs += list.size();
    if (static_cast<int64_t>(num_runs) > capacity) return BEV_POOL_NO_ROOM;
    place(lists, grid->nx * grid->ny, runs, cell_start);
  } catch (const std::bad_alloc&) {
    return BEV_POOL_NO_MEMORY;
  }
  return BEV_POOL_OK;
}
