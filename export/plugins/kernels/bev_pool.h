// BEV pool on the CPU: for each BEV cell the sum of depth probability times image feature over the
// frustum points that fall into it. Plain C interface: raw pointers, no framework, no exception.
//
//   depth      [num_images, num_depths, height, width]     probability of a depth bin
//   feat       [num_images, height, width, channels]        image features, channels last
//   runs       [num_runs, 3]   first point's index in depth, its pixel's index in feat, number of rows;
//                              row k lies k * width further in both
//   cell_start [num_cells + 1] the runs of cell g are cell_start[g] .. cell_start[g + 1] - 1; rows of
//                              `runs` from cell_start[num_cells] on are padding and are never read
//   bev        [num_cells, channels]
//
// Every element of an output is written once, empty cells included. Sums are in fp32, in the order of the
// table, whatever the number of threads: results are equal bit for bit on one kind of processor.
// A table is trusted here: bev_pool_check_table looks at one from outside before it is used.
// Functions return 0 or one of the codes below; pointers need no alignment beyond their type's.
#pragma once

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

enum {
  BEV_POOL_OK = 0,
  BEV_POOL_BAD_SIZE = 1,       // a null pointer, a size below its least, or more than int32 can index
  BEV_POOL_BAD_START = 2,      // cell_start does not begin at 0
  BEV_POOL_BAD_ORDER = 3,      // cell_start decreases
  BEV_POOL_BAD_END = 4,        // cell_start ends beyond the runs
  BEV_POOL_BAD_ROWS = 5,       // a run has no rows
  BEV_POOL_BAD_POINT = 6,      // a run begins outside depth
  BEV_POOL_BAD_PIXEL = 7,      // a run's pixel is not the one of its point
  BEV_POOL_BAD_RUN_END = 8,    // a run leaves its image at the bottom
  BEV_POOL_NO_ROOM = 9,        // more runs than the caller has room for
  BEV_POOL_NO_MEMORY = 10,     // working memory could not be had
};

int bev_pool_forward_f32(const float* depth, const float* feat, const int32_t* runs,
                         const int32_t* cell_start, int32_t num_cells, int32_t width,
                         int32_t channels, int32_t num_threads, float* bev);

// One slice, for callers with threads of their own: writes the cells first_cell .. last_cell - 1 of the
// whole output `bev`. f16: IEEE half precision in and out, sums in fp32.
int bev_pool_cells_f32(const float* depth, const float* feat, const int32_t* runs,
                       const int32_t* cell_start, int32_t num_cells, int32_t width,
                       int32_t channels, int32_t first_cell, int32_t last_cell, float* bev);
int bev_pool_cells_f16(const uint16_t* depth, const uint16_t* feat, const int32_t* runs,
                       const int32_t* cell_start, int32_t num_cells, int32_t width,
                       int32_t channels, int32_t first_cell, int32_t last_cell, uint16_t* bev);

// First cell of slice `part` of `parts` slices of about equal work; num_cells for part == parts.
int32_t bev_pool_split(const int32_t* cell_start, int32_t num_cells, int32_t part, int32_t parts);

// Gradients of the sum; zeros where no point counts, and the sum over its runs for a point in several.
int bev_pool_backward_f32(const float* grad_bev /*[num_cells, channels]*/, const float* depth,
                          const float* feat, const int32_t* runs, const int32_t* cell_start,
                          int32_t num_cells, int32_t num_images, int32_t num_depths, int32_t height,
                          int32_t width, int32_t channels, int32_t num_threads,
                          float* grad_depth /*as depth*/, float* grad_feat /*as feat*/);

// Whether a table may be used with tensors of these sizes; safe on any content. Not looked for: a point
// that is in two runs (it counts twice).
int bev_pool_check_table(const int32_t* runs, int64_t num_runs, const int32_t* cell_start,
                         int32_t num_cells, int32_t num_images, int32_t num_depths, int32_t height,
                         int32_t width);

// How image features are spread in space: middles of depth bins, centres of feature pixels.
typedef struct {
  double depth_min, depth_step;  // near edge of the first bin, depth of a bin [m]
  double z_min, z_max;           // points below z_min, or at and above z_max, do not count [m]
  int32_t num_depths, height, width;
  int32_t stride;                // pixels of the network's image per feature cell
} bev_pool_frustum;

// The BEV grid: cell (iy, ix) is number iy * nx + ix.
typedef struct {
  double x_min, y_min, cell;  // low edges and edge of a cell [m]
  int32_t nx, ny;
} bev_pool_grid;

// Builds the table of a rig in float64: a point (u d, v d, d) of a camera lies at
// R_ego_pixel @ point + t_ego in the ego frame. Runs of a cell are in the order camera, depth bin,
// image column, row. The points' number is always room enough for the runs.
int bev_pool_build_table(const double* R_ego_pixel /*[cameras, 3, 3]*/,
                         const double* t_ego /*[cameras, 3]*/, const uint8_t* used /*[cameras]*/,
                         int32_t num_cameras, const bev_pool_frustum* frustum,
                         const bev_pool_grid* grid, int32_t num_threads, int64_t capacity,
                         int32_t* runs /*[capacity, 3]*/, int32_t* cell_start /*[nx * ny + 1]*/);

// Version of the C interface, of all headers of this library; raised with each change.
int32_t bev_plugins_version(void);
// Instruction set in use: "avx512", "avx2" or "baseline".
const char* bev_plugins_isa(void);

#if defined(__cplusplus)
}  // extern "C"
#endif
