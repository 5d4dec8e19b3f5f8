// perception::BevPool for ONNX Runtime's CPU provider: float and float16, on the session's threads.
#include <atomic>
#include <climits>
#include <cstdio>

#include "../kernels/bev_pool.h"
#include "ort_abi.h"

namespace {

using ort_abi::Api, ort_abi::CustomOp, ort_abi::KernelContext, ort_abi::Status, ort_abi::Value;

constexpr char kDomain[] = "perception";
constexpr int32_t kParts = 64;  // pieces of equal work that the threads take one by one

#define RETURN_IF_ERROR(call) \
  if (Status* status = (call)) return status

enum Input { kDepth, kFeat, kRuns, kCellStart, kNumInputs };
constexpr const char* kInputNames[kNumInputs] = {"depth", "feat", "runs", "cell_start"};
constexpr size_t kRanks[kNumInputs] = {4, 4, 2, 1};

struct Tensor {
  const void* data = nullptr;
  int64_t size[4] = {};
};

// The kernel has no state but the interface it was made with.
const Api* api_of(void* kernel) { return static_cast<const Api*>(kernel); }

Status* refuse(const Api* api, const char* reason) {
  char message[256];
  std::snprintf(message, sizeof message, "perception.BevPool: %s", reason);
  return api->CreateStatus(ort_abi::kInvalidArgument, message);
}

Status* read_sizes(const Api* api, const ort_abi::TensorInfo* info, int input, Tensor* tensor) {
  size_t rank = 0;
  RETURN_IF_ERROR(api->GetDimensionsCount(info, &rank));
  if (rank != kRanks[input]) {
    char reason[128];
    std::snprintf(reason, sizeof reason, "%s has %zu axes, expected %zu", kInputNames[input], rank,
                  kRanks[input]);
    return refuse(api, reason);
  }
  return api->GetDimensions(info, tensor->size, rank);
}

Status* read_input(const Api* api, const KernelContext* context, int input, Tensor* tensor) {
  const Value* value = nullptr;
  RETURN_IF_ERROR(api->KernelContext_GetInput(context, static_cast<size_t>(input), &value));
  ort_abi::TensorInfo* info = nullptr;
  RETURN_IF_ERROR(api->GetTensorTypeAndShape(value, &info));
  Status* status = read_sizes(api, info, input, tensor);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (status) return status;
  void* data = nullptr;
  // the interface has no read-only form of this call
  RETURN_IF_ERROR(api->GetTensorMutableData(const_cast<Value*>(value), &data));
  tensor->data = data;
  return nullptr;
}

const char* table_fault(int code) {
  switch (code) {
    case BEV_POOL_BAD_START: return "cell_start does not begin at 0";
    case BEV_POOL_BAD_ORDER: return "cell_start decreases";
    case BEV_POOL_BAD_END: return "cell_start ends beyond the runs";
    case BEV_POOL_BAD_ROWS: return "a run has no rows";
    case BEV_POOL_BAD_POINT: return "a run begins outside depth";
    case BEV_POOL_BAD_PIXEL: return "a run's pixel is not the one of its point";
    case BEV_POOL_BAD_RUN_END: return "a run leaves its image at the bottom";
    default: return "a tensor is empty or too large for 32-bit indices";
  }
}

// What one call of the op works on.
template <typename T>
struct Job {
  const T* depth;
  const T* feat;
  const int32_t* runs;
  const int32_t* cell_start;
  int32_t num_cells, width, channels;
  T* bev;
  std::atomic<int> code{0};
};

int pool_cells(Job<float>& job, int32_t first, int32_t last) {
  return bev_pool_cells_f32(job.depth, job.feat, job.runs, job.cell_start, job.num_cells, job.width,
                            job.channels, first, last, job.bev);
}

int pool_cells(Job<uint16_t>& job, int32_t first, int32_t last) {
  return bev_pool_cells_f16(job.depth, job.feat, job.runs, job.cell_start, job.num_cells, job.width,
                            job.channels, first, last, job.bev);
}

template <typename T>
void pool_part(void* data, size_t part) {
  auto& job = *static_cast<Job<T>*>(data);
  const int32_t index = static_cast<int32_t>(part);
  const int32_t first = bev_pool_split(job.cell_start, job.num_cells, index, kParts);
  const int32_t last = bev_pool_split(job.cell_start, job.num_cells, index + 1, kParts);
  const int code = pool_cells(job, first, last);
  if (code) job.code = code;
}

// A table comes with each frame, so each call looks at it (half a millisecond at full size): no index
// can ever reach outside a tensor.
Status* check(const Api* api, const Tensor (&in)[kNumInputs]) {
  const int64_t* depth = in[kDepth].size;
  const int64_t* feat = in[kFeat].size;
  if (depth[0] != feat[0] || depth[2] != feat[1] || depth[3] != feat[2])
    return refuse(api, "depth [n, d, h, w] and feat [n, h, w, c] differ in n, h or w");
  if (in[kRuns].size[1] != 3) return refuse(api, "runs has not three columns");
  for (const Tensor& tensor : in)
    for (int64_t size : tensor.size)
      if (size > INT32_MAX) return refuse(api, table_fault(BEV_POOL_BAD_SIZE));
  if (in[kCellStart].size[0] < 1) return refuse(api, "cell_start is empty");
  const int code = bev_pool_check_table(
      static_cast<const int32_t*>(in[kRuns].data), in[kRuns].size[0],
      static_cast<const int32_t*>(in[kCellStart].data),
      static_cast<int32_t>(in[kCellStart].size[0] - 1), static_cast<int32_t>(depth[0]),
      static_cast<int32_t>(depth[1]), static_cast<int32_t>(depth[2]),
      static_cast<int32_t>(depth[3]));
  return code ? refuse(api, table_fault(code)) : nullptr;
}

template <typename T>
Status* compute(void* kernel, KernelContext* context) {
  const Api* api = api_of(kernel);
  Tensor in[kNumInputs];
  for (int input = 0; input < kNumInputs; ++input)
    RETURN_IF_ERROR(read_input(api, context, input, &in[input]));
  RETURN_IF_ERROR(check(api, in));
  const int64_t size[2] = {in[kCellStart].size[0] - 1, in[kFeat].size[3]};
  Value* value = nullptr;
  void* bev = nullptr;
  RETURN_IF_ERROR(api->KernelContext_GetOutput(context, 0, size, 2, &value));
  RETURN_IF_ERROR(api->GetTensorMutableData(value, &bev));
  Job<T> job{static_cast<const T*>(in[kDepth].data),
             static_cast<const T*>(in[kFeat].data),
             static_cast<const int32_t*>(in[kRuns].data),
             static_cast<const int32_t*>(in[kCellStart].data),
             static_cast<int32_t>(size[0]),
             static_cast<int32_t>(in[kDepth].size[3]),
             static_cast<int32_t>(size[1]),
             static_cast<T*>(bev)};
  RETURN_IF_ERROR(api->KernelContext_ParallelFor(context, pool_part<T>, kParts, 0, &job));
  return job.code ? refuse(api, table_fault(job.code)) : nullptr;
}

template <typename T>
constexpr ort_abi::ElementType kMaps = sizeof(T) == 4 ? ort_abi::kFloat : ort_abi::kFloat16;

template <typename T>
CustomOp make_op() {
  CustomOp op{};
  op.version = ort_abi::kApiVersion;
  op.GetName = [](const CustomOp*) { return "BevPool"; };
  op.GetExecutionProviderType = [](const CustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const CustomOp*) -> size_t { return kNumInputs; };
  op.GetInputType = [](const CustomOp*, size_t index) {
    return index < kRuns ? kMaps<T> : ort_abi::kInt32;
  };
  op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const CustomOp*, size_t) { return kMaps<T>; };
  op.GetInputCharacteristic = [](const CustomOp*, size_t) { return ort_abi::kRequired; };
  op.GetOutputCharacteristic = op.GetInputCharacteristic;
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return ort_abi::kDefaultMemory; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = op.GetVariadicInputMinArity;
  op.GetVariadicOutputMinArity = op.GetVariadicInputMinArity;
  op.GetVariadicOutputHomogeneity = op.GetVariadicInputMinArity;
  op.CreateKernelV2 = [](const CustomOp*, const Api* api, const ort_abi::KernelInfo*,
                         void** kernel) -> Status* {
    *kernel = const_cast<Api*>(api);
    return nullptr;
  };
  op.KernelComputeV2 = compute<T>;
  op.KernelDestroy = [](void*) {};
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  return op;
}

}  // namespace

// Called by ONNX Runtime for each session that asks for this library.
extern "C" __attribute__((visibility("default"))) Status* RegisterCustomOps(
    ort_abi::SessionOptions* options, const ort_abi::ApiBase* base) {
  const Api* api = base->GetApi(ort_abi::kApiVersion);
  if (!api) {
    // every version has version 1's calls
    return base->GetApi(1)->CreateStatus(ort_abi::kFail,
                                         "perception.BevPool needs ONNX Runtime 1.17 or newer");
  }
  static const CustomOp float_op = make_op<float>();
  static const CustomOp half_op = make_op<uint16_t>();
  // sessions refer to the domain for as long as they live, so it is never released
  static ort_abi::CustomOpDomain* domain = nullptr;
  static Status* const failure = [api]() -> Status* {
    RETURN_IF_ERROR(api->CreateCustomOpDomain(kDomain, &domain));
    RETURN_IF_ERROR(api->CustomOpDomain_Add(domain, &float_op));
    return api->CustomOpDomain_Add(domain, &half_op);
  }();
  if (failure) return api->CreateStatus(ort_abi::kFail, "perception.BevPool cannot be registered");
  return api->AddCustomOpDomain(options, domain);
}
