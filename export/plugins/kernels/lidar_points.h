// Loops over the points of a LiDAR on the CPU: into the ego frame, into pillars, into depth images. Plain C
// interface: raw pointers, no framework, no exception. Rounds after every operation, in the order of the
// numpy form in perception/geometry/lidar_points.py: both give the same numbers, bit by bit.
//
//   points_ego   rows x, y, z [m], intensity, age [s]; row r of point i lies at r * row_step + i (in floats)
#pragma once

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

enum {
  LIDAR_POINTS_OK = 0,
  LIDAR_POINTS_BAD_SIZE = 1,    // a null pointer, a negative number, or more than int32 can index
  LIDAR_POINTS_BAD_CELL = 2,    // a cell outside the volume, or kept cells that do not grow
  LIDAR_POINTS_NO_MEMORY = 10,  // working memory could not be had
};

// Cells of a grid in slices of equal height: cell (iz * ny + iy) * nx + ix.
typedef struct {
  float x_min, y_min, z_min, z_max;  // [m]
  float cell, slice;                 // edge of a cell, height of a slice [m]
  int32_t nx, ny, num_slices;
} lidar_points_volume;

// Brings one sweep into the ego frame, without the points on the car: |x| and |y| both below `ego_radius` in
// the sensor frame.
//
//   points_lidar  rows x, y, z, intensity; row r of point i lies at r * row_step + i * point_step (in floats)
//   T_ego_lidar   [3, 4] rows
//   age           of every point [s]
//   points_ego    where the first kept point goes; there is room for all of them
//   num_kept      [1]
int lidar_points_to_ego(const float* points_lidar, int64_t row_step, int64_t point_step,
                        int64_t num_points, const float* T_ego_lidar, float ego_radius, float age,
                        int64_t ego_row_step, float* points_ego, int64_t* num_kept);

// Cell of each point, -1 for one that is not finite or outside the volume, and the cells with a point.
//
//   cell          [num_points]
//   occupied      [num_points]  cells with a point, growing
//   num_occupied  [1]
int lidar_points_cells(const float* points_ego, int64_t row_step, int64_t num_points,
                       const lidar_points_volume* volume, int32_t* cell, int32_t* occupied,
                       int64_t* num_occupied);

// Puts the points of the kept cells into pillars: the first `max_points` of each, in their order.
//
//   cell        [num_points]               as lidar_points_cells gives them
//   kept        [num_kept]                 cells, growing
//   points      [num_kept, max_points, 5]  unused places become zero
//   num_used    [num_kept]                 points per pillar
int lidar_points_fill(const float* points_ego, int64_t row_step, int64_t num_points,
                      const int32_t* cell, int32_t num_cells, const int32_t* kept, int64_t num_kept,
                      int32_t max_points, float* points, int32_t* num_used);

// Depth of each point at the pixel it falls on, the nearest where several share one; 0 where none does.
//
//   P          [3, 4]  rows that give u * depth, v * depth and depth of a point of the ego frame
//   min_depth          [m]; points must be farther away
//   image      [height, width]
int lidar_points_depth_image(const float* points_ego, int64_t row_step, int64_t num_points,
                             const float* P, float min_depth, int32_t height, int32_t width,
                             float* image);

#if defined(__cplusplus)
}
#endif
