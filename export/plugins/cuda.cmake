# Optional: the CUDA kernels as a plain library, and the TensorRT plugin where TensorRT's headers are found.
#   cmake -S export/plugins -B build/plugins -DBEV_CUDA=ON [-DTENSORRT_ROOT=<folder of NvInferRuntime.h>]
# Compiles without a GPU. The libraries need neither libcudart nor libnvinfer to be linked against.
option(BEV_CUDA "Build the CUDA kernels (needs nvcc)" OFF)
set(TENSORRT_ROOT "" CACHE PATH "Folder of NvInferRuntime.h, or the one above its include/")
if(NOT BEV_CUDA)
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "BEV_CUDA is ON and no nvcc was found: install the CUDA toolkit, put nvcc on PATH, "
                      "or set CMAKE_CUDA_COMPILER.")
endif()

# Machine code for Ampere, Orin, Ada, Hopper and Blackwell, as far as this nvcc knows them, and PTX of the
# newest for what comes after.
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE KNOWN_CODE)
set(CUDA_ARCHITECTURES "")
foreach(arch 80 87 89 90 100 120)
  if(KNOWN_CODE MATCHES "sm_${arch}[^0-9a-z]")
    list(APPEND CUDA_ARCHITECTURES ${arch}-real)
    set(NEWEST ${arch})
  endif()
endforeach()
list(APPEND CUDA_ARCHITECTURES ${NEWEST}-virtual)
message(STATUS "BEV pool for CUDA architectures ${CUDA_ARCHITECTURES}")

set(CMAKE_CUDA_ARCHITECTURES ${NEWEST}-real)  # of CMake's own trial compilation
enable_language(CUDA)

# The directory's warning options are the host compiler's, which nvcc takes through -Xcompiler only.
add_library(bev_pool_cuda OBJECT kernels/bev_pool.cu)
set_target_properties(bev_pool_cuda PROPERTIES
  CUDA_STANDARD 17
  CUDA_ARCHITECTURES "${CUDA_ARCHITECTURES}"
  COMPILE_OPTIONS "--threads=0;-Xcompiler=-Wall,-Wextra"
  RULE_LAUNCH_COMPILE "${CMAKE_COMMAND} -E time")

function(finish_cuda_library target)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES ${NEWEST}-real)
  target_include_directories(${target} PRIVATE kernels ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_link_options(${target} PRIVATE -Wl,--exclude-libs,ALL)  # cudart stays inside
endfunction()

add_library(bev_plugins_cuda SHARED $<TARGET_OBJECTS:bev_pool_cuda>)
set_target_properties(bev_plugins_cuda PROPERTIES LINKER_LANGUAGE CUDA)
finish_cuda_library(bev_plugins_cuda)

find_path(TENSORRT_INCLUDE NvInferRuntime.h
  HINTS ${TENSORRT_ROOT} $ENV{TENSORRT_ROOT} PATH_SUFFIXES include
  PATHS /usr/include/${CMAKE_LIBRARY_ARCHITECTURE} /usr/local/tensorrt)
if(TENSORRT_INCLUDE)
  add_library(bev_plugins_trt SHARED tensorrt/bev_pool_plugin.cpp $<TARGET_OBJECTS:bev_pool_cuda>)
  set_target_properties(bev_plugins_trt PROPERTIES
    LINKER_LANGUAGE CUDA CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_include_directories(bev_plugins_trt SYSTEM PRIVATE ${TENSORRT_INCLUDE})
  target_compile_options(bev_plugins_trt PRIVATE -Wno-deprecated-declarations)
  finish_cuda_library(bev_plugins_trt)
  message(STATUS "TensorRT plugin with the headers in ${TENSORRT_INCLUDE}")
else()
  message(STATUS "No NvInferRuntime.h, no TensorRT plugin: set TENSORRT_ROOT to its folder")
endif()
