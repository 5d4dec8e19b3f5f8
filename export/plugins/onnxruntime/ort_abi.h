// The part of ONNX Runtime's C interface that a CPU custom op needs, declared by hand, because its
// headers come in no Python wheel. The interface only ever grows at its end: what version 17 has
// (ONNX Runtime 1.17) stays where it is. ort_abi_check.cpp compares this file with the real header
// wherever the build finds one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort_abi {

constexpr uint32_t kApiVersion = 17;

struct Status;
struct Value;
struct TensorInfo;
struct KernelContext;
struct KernelInfo;
struct CustomOp;
struct CustomOpDomain;
struct SessionOptions;
using Slot = void*;

enum ErrorCode { kFail = 1, kInvalidArgument = 2 };
enum ElementType { kFloat = 1, kInt32 = 6, kFloat16 = 10 };
enum Characteristic { kRequired = 0 };
enum MemoryType { kDefaultMemory = 0 };

// A null Status is success; any other belongs to the caller.
struct Api {
  Status* (*CreateStatus)(ErrorCode, const char* message);  // slot 0
  Slot unused_1[25];
  Status* (*CreateCustomOpDomain)(const char* domain, CustomOpDomain** out);  // 26
  Status* (*CustomOpDomain_Add)(CustomOpDomain*, const CustomOp*);            // 27
  Status* (*AddCustomOpDomain)(SessionOptions*, CustomOpDomain*);             // 28
  Slot unused_29[22];
  Status* (*GetTensorMutableData)(Value*, void** out);  // 51
  Slot unused_52[9];
  Status* (*GetDimensionsCount)(const TensorInfo*, size_t* out);                     // 61
  Status* (*GetDimensions)(const TensorInfo*, int64_t* out, size_t num_dimensions);  // 62
  Slot unused_63[2];
  Status* (*GetTensorTypeAndShape)(const Value*, TensorInfo** out);  // 65
  Slot unused_66[24];
  Status* (*KernelContext_GetInput)(const KernelContext*, size_t index, const Value** out);  // 90
  Status* (*KernelContext_GetOutput)(KernelContext*, size_t index, const int64_t* dimensions,
                                     size_t num_dimensions, Value** out);  // 91
  Slot unused_92[7];
  void (*ReleaseTensorTypeAndShapeInfo)(TensorInfo*);  // 99
  Slot unused_100[174];
  Status* (*KernelContext_ParallelFor)(const KernelContext*, void (*job)(void*, size_t),
                                       size_t total, size_t num_batch, void* data);  // 274
};

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);  // null: this ONNX Runtime is older
  const char* (*GetVersionString)();
};

// What an op tells about itself; a null function means the default.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, KernelContext*);
  void (*KernelDestroy)(void* kernel);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t index);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t index);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext*);
  Slot InferOutputShapeFn;
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
};

}  // namespace ort_abi
