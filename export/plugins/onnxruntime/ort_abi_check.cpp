// Compares ort_abi.h with ONNX Runtime's own header, where there is one; no code comes of it.
#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#define BEV_PLUGINS_ORT_HEADER 1
#elif __has_include(<onnxruntime/onnxruntime_c_api.h>)
#include <onnxruntime/onnxruntime_c_api.h>
#define BEV_PLUGINS_ORT_HEADER 1
#endif

#if defined(BEV_PLUGINS_ORT_HEADER)
#include "ort_abi.h"

static_assert(ORT_API_VERSION >= ort_abi::kApiVersion, "this header is too old to compare with");

#define SAME_PLACE(ours, theirs, field) \
  static_assert(offsetof(ours, field) == offsetof(theirs, field), #field " is elsewhere")
#define SAME_CALL(field) SAME_PLACE(ort_abi::Api, OrtApi, field)
#define SAME_OP(field) SAME_PLACE(ort_abi::CustomOp, OrtCustomOp, field)

SAME_PLACE(ort_abi::ApiBase, OrtApiBase, GetApi);
SAME_PLACE(ort_abi::ApiBase, OrtApiBase, GetVersionString);

SAME_CALL(CreateStatus);
SAME_CALL(CreateCustomOpDomain);
SAME_CALL(CustomOpDomain_Add);
SAME_CALL(AddCustomOpDomain);
SAME_CALL(GetTensorMutableData);
SAME_CALL(GetDimensionsCount);
SAME_CALL(GetDimensions);
SAME_CALL(GetTensorTypeAndShape);
SAME_CALL(KernelContext_GetInput);
SAME_CALL(KernelContext_GetOutput);
SAME_CALL(ReleaseTensorTypeAndShapeInfo);
SAME_CALL(KernelContext_ParallelFor);

SAME_OP(version);
SAME_OP(CreateKernel);
SAME_OP(GetName);
SAME_OP(GetExecutionProviderType);
SAME_OP(GetInputType);
SAME_OP(GetInputTypeCount);
SAME_OP(GetOutputType);
SAME_OP(GetOutputTypeCount);
SAME_OP(KernelCompute);
SAME_OP(KernelDestroy);
SAME_OP(GetInputCharacteristic);
SAME_OP(GetOutputCharacteristic);
SAME_OP(GetInputMemoryType);
SAME_OP(GetVariadicInputMinArity);
SAME_OP(GetVariadicInputHomogeneity);
SAME_OP(GetVariadicOutputMinArity);
SAME_OP(GetVariadicOutputHomogeneity);
SAME_OP(CreateKernelV2);
SAME_OP(KernelComputeV2);
SAME_OP(InferOutputShapeFn);
SAME_OP(GetStartVersion);
SAME_OP(GetEndVersion);

static_assert(int(ort_abi::kFail) == int(ORT_FAIL));
static_assert(int(ort_abi::kInvalidArgument) == int(ORT_INVALID_ARGUMENT));
static_assert(int(ort_abi::kFloat) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
static_assert(int(ort_abi::kInt32) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32));
static_assert(int(ort_abi::kFloat16) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16));
static_assert(int(ort_abi::kRequired) == int(INPUT_OUTPUT_REQUIRED));
static_assert(int(ort_abi::kDefaultMemory) == int(OrtMemTypeDefault));
static_assert(sizeof(ort_abi::ElementType) == sizeof(ONNXTensorElementDataType));

#endif
