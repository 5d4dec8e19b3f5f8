#include "bev_pool_plugin.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#include "bev_pool_cuda.h"

namespace bev_plugins {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr const char* kName = "BevPool";
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "perception";
constexpr const char* kGridWidth = "grid_width";

enum Tensor { kDepth, kFeat, kRuns, kCellStart, kNumInputs };
constexpr int32_t kNumOutputs = 1;
constexpr int32_t kRanks[] = {4, 4, 2, 1};
constexpr int32_t kOk = 0, kRefused = 1;

bool is_real(DataType type) { return type == DataType::kFLOAT || type == DataType::kHALF; }

// Sizes agree; one of them may not be known yet (-1) while the engine is built.
bool agree(int64_t a, int64_t b) { return a == b || a < 0 || b < 0; }

bool are_shapes_of_a_pool(const Dims& depth, const Dims& feat, const Dims& runs, const Dims& cell_start,
                          const Dims& bev) {
  const Dims* inputs[] = {&depth, &feat, &runs, &cell_start};
  for (int i = 0; i < kNumInputs; ++i) {
    if (inputs[i]->nbDims != kRanks[i]) return false;
  }
  const int64_t cells = cell_start.d[0] < 0 ? -1 : cell_start.d[0] - 1;
  return bev.nbDims == 2 && agree(depth.d[0], feat.d[0]) && agree(depth.d[2], feat.d[1]) &&
         agree(depth.d[3], feat.d[2]) && agree(runs.d[1], 3) && cell_start.d[0] != 0 &&
         agree(bev.d[0], cells) && agree(bev.d[1], feat.d[3]);
}

bool fits_int32(int64_t size) { return size >= 0 && size <= std::numeric_limits<int32_t>::max(); }

int32_t guess_grid_width(int64_t cells) {
  const auto edge = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(cells))));
  return edge * edge == cells ? static_cast<int32_t>(edge) : 0;
}

// Value of a field of one integer; false where it is something else or cannot be a width.
bool read_width(const PluginField& field, int32_t& width) {
  if (field.data == nullptr || field.length != 1) return false;
  int64_t value = -1;
  if (field.type == PluginFieldType::kINT32) {
    int32_t narrow;
    std::memcpy(&narrow, field.data, sizeof(narrow));
    value = narrow;
  } else if (field.type == PluginFieldType::kINT64) {
    std::memcpy(&value, field.data, sizeof(value));
  }
  if (!fits_int32(value)) return false;
  width = static_cast<int32_t>(value);
  return true;
}

}  // namespace

BevPoolPlugin::BevPoolPlugin(int32_t grid_width) noexcept
    : grid_width_(grid_width),
      field_(kGridWidth, &grid_width_, PluginFieldType::kINT32, 1),
      fields_{1, &field_} {}

nvinfer1::IPluginCapability* BevPoolPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* BevPoolPlugin::clone() noexcept {
  return new (std::nothrow) BevPoolPlugin(grid_width_);
}

const char* BevPoolPlugin::getPluginName() const noexcept { return kName; }
const char* BevPoolPlugin::getPluginVersion() const noexcept { return kVersion; }
const char* BevPoolPlugin::getPluginNamespace() const noexcept { return kNamespace; }

int32_t BevPoolPlugin::getNbOutputs() const noexcept { return kNumOutputs; }

int32_t BevPoolPlugin::getOutputDataTypes(DataType* outputs, int32_t num_outputs,
                                          const DataType* inputs,
                                          int32_t num_inputs) const noexcept {
  if (num_inputs != kNumInputs || num_outputs != kNumOutputs) return kRefused;
  outputs[0] = inputs[kFeat];
  return kOk;
}

int32_t BevPoolPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                                       const nvinfer1::DimsExprs*, int32_t,
                                       nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                                       nvinfer1::IExprBuilder& builder) noexcept {
  if (num_inputs != kNumInputs || num_outputs != kNumOutputs) return kRefused;
  for (int i = 0; i < kNumInputs; ++i) {
    if (inputs[i].nbDims != kRanks[i]) return kRefused;
  }
  outputs[0].nbDims = 2;
  outputs[0].d[0] = builder.operation(nvinfer1::DimensionOperation::kSUB, *inputs[kCellStart].d[0],
                                      *builder.constant(1));
  outputs[0].d[1] = inputs[kFeat].d[3];
  return kOk;
}

bool BevPoolPlugin::supportsFormatCombination(int32_t position,
                                              const nvinfer1::DynamicPluginTensorDesc* tensors,
                                              int32_t num_inputs, int32_t num_outputs) noexcept {
  if (num_inputs != kNumInputs || num_outputs != kNumOutputs) return false;
  const PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (position == kDepth) return is_real(tensor.type);
  if (position == kRuns || position == kCellStart) return tensor.type == DataType::kINT32;
  return tensor.type == tensors[kDepth].desc.type;
}

int32_t BevPoolPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs,
                                       int32_t num_inputs,
                                       const nvinfer1::DynamicPluginTensorDesc* outputs,
                                       int32_t num_outputs) noexcept {
  if (num_inputs != kNumInputs || num_outputs != kNumOutputs) return kRefused;
  const bool fits =
      are_shapes_of_a_pool(inputs[kDepth].desc.dims, inputs[kFeat].desc.dims, inputs[kRuns].desc.dims,
                           inputs[kCellStart].desc.dims, outputs[0].desc.dims);
  return fits ? kOk : kRefused;
}

int32_t BevPoolPlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t num_inputs,
                                     const PluginTensorDesc* outputs,
                                     int32_t num_outputs) noexcept {
  if (num_inputs != kNumInputs || num_outputs != kNumOutputs) return kRefused;
  const bool fits = are_shapes_of_a_pool(inputs[kDepth].dims, inputs[kFeat].dims, inputs[kRuns].dims,
                                         inputs[kCellStart].dims, outputs[0].dims);
  return fits ? kOk : kRefused;
}

int32_t BevPoolPlugin::enqueue(const PluginTensorDesc* input_descs,
                               const PluginTensorDesc* output_descs, const void* const* inputs,
                               void* const* outputs, void*, cudaStream_t stream) noexcept {
  const Dims& depth = input_descs[kDepth].dims;
  const Dims& bev = output_descs[0].dims;
  const DataType type = input_descs[kFeat].type;
  if (!fits_int32(bev.d[0]) || !fits_int32(bev.d[1]) || !fits_int32(depth.d[3]) || !is_real(type) ||
      type != input_descs[kDepth].type) {
    return kRefused;
  }
  const auto cells = static_cast<int32_t>(bev.d[0]);
  const auto channels = static_cast<int32_t>(bev.d[1]);
  const auto width = static_cast<int32_t>(depth.d[3]);
  const int32_t grid_width = grid_width_ > 0 ? grid_width_ : guess_grid_width(cells);
  const auto* runs = static_cast<const int32_t*>(inputs[kRuns]);
  const auto* cell_start = static_cast<const int32_t*>(inputs[kCellStart]);
  const auto run = [&](auto launch, auto* to) {
    using Value = std::remove_pointer_t<decltype(to)>;
    return static_cast<int32_t>(launch(static_cast<const Value*>(inputs[kDepth]),
                                       static_cast<const Value*>(inputs[kFeat]), runs, cell_start, to,
                                       cells, width, channels, grid_width, stream));
  };
  if (type == DataType::kHALF) return run(bev_pool_launch_f16, static_cast<uint16_t*>(outputs[0]));
  return run(bev_pool_launch_f32, static_cast<float*>(outputs[0]));
}

nvinfer1::IPluginV3* BevPoolPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

const nvinfer1::PluginFieldCollection* BevPoolPlugin::getFieldsToSerialize() noexcept {
  return &fields_;
}

nvinfer1::IPluginV3* BevPoolCreator::createPlugin(const char*,
                                                  const nvinfer1::PluginFieldCollection* fields,
                                                  nvinfer1::TensorRTPhase) noexcept {
  int32_t grid_width = 0;
  for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    if (std::strcmp(field.name, kGridWidth) == 0 && !read_width(field, grid_width)) return nullptr;
  }
  return new (std::nothrow) BevPoolPlugin(grid_width);
}

const nvinfer1::PluginFieldCollection* BevPoolCreator::getFieldNames() noexcept {
  static const PluginField field(kGridWidth, nullptr, PluginFieldType::kINT32, 1);
  static const nvinfer1::PluginFieldCollection fields{1, &field};
  return &fields;
}

const char* BevPoolCreator::getPluginName() const noexcept { return kName; }
const char* BevPoolCreator::getPluginVersion() const noexcept { return kVersion; }
const char* BevPoolCreator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace bev_plugins

// What TensorRT looks for in a plugin library: IPluginRegistry::loadLibrary, trtexec --dynamicPlugins.
extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const*
getCreators(int32_t& num_creators) {
  static bev_plugins::BevPoolCreator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  num_creators = 1;
  return creators;
}

// Nothing here has anything to log.
extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
