// Stand-in for the few names of the CUDA runtime that the pool's host code uses, for compiling it with g++.
#pragma once

#include <cstdint>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorUnknown = 999 };
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
