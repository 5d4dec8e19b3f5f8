// Neighbour tables of sparse 3D convolutions on the CPU: from the occupied voxels of one frame to the
// tables that turn every convolution of the encoder into Gather and MatMul. Plain C interface: raw
// pointers, no framework, no exception.
//
//   level 0 --down 0--> level 1 --down 1--> ...        axes in the order z, y, x
//
// Rows of level 0 are the voxels in the caller's order; rows of the others are sorted by place
// ((z * ny + y) * nx + x). An entry of a table is the row of its input level, counted from 1, that is
// seen at one offset of the kernel (offsets counted row by row in z, y, x); 0 where nothing is: the row
// of zeros before the features.
#pragma once

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

enum {
  SPARSE_TABLES_OK = 0,
  SPARSE_TABLES_BAD_SIZE = 1,    // a null pointer, or a size, kernel, stride, capacity out of range
  SPARSE_TABLES_BAD_CELL = 2,    // a voxel lies outside the grid
  SPARSE_TABLES_TWICE = 3,       // a voxel is listed twice
  SPARSE_TABLES_NO_MEMORY = 10,  // working memory could not be had
};

// A convolution that leads from one level to the next: its output voxels are all whose kernel covers an
// occupied one. Kernel and stride are 1 .. 16, padding is 0 .. kernel - 1.
typedef struct {
  int32_t kernel[3], stride[3], padding[3];
} sparse_tables_conv;

// Builds all tables of one frame. Results do not depend on the number of threads.
//
//   cells      [num_voxels]     (z * ny + y) * nx + x of each voxel, no place twice, in any order
//   capacities [num_convs + 1]  most rows of each level. Voxels beyond are dropped and counted: at level 0
//                               those listed last, at the others those of the highest places
//   within     num_convs tables [capacities[l], 27]: what each row of level l sees in its own level (3x3x3)
//   down       num_convs tables [capacities[l + 1], kernel z * y * x] from level l to level l + 1
//              of either only the rows there are get written; those up to the capacity may hold any rows
//              of the input's capacity: what they compute is seen by none
//   dense      [ny, nx, nz] of the last level: its row at each place, counted from 1; 0 where nothing is
//   num_rows, num_dropped  [num_convs + 1]
int sparse_tables_build(const int32_t* cells, int32_t num_voxels, const int32_t* size,
                        const sparse_tables_conv* convs, int32_t num_convs, const int32_t* capacities,
                        int32_t num_threads, int32_t* const* within,
                        int32_t* const* down, int32_t* dense, int32_t* num_rows, int32_t* num_dropped);

#if defined(__cplusplus)
}
#endif
