// Drives the plugin as TensorRT would, behind a C interface for ctypes. Compiles against TensorRT's headers
// and against the stand-in; the plugin is reached through getCreators alone.
#include <NvInferRuntime.h>

#include <cstring>
#include <list>

#define API extern "C" __attribute__((visibility("default")))

namespace trt = nvinfer1;

extern "C" trt::IPluginCreatorInterface* const* getCreators(int32_t& num_creators);
extern "C" void setLoggerFinder(trt::ILoggerFinder* finder);

namespace {

constexpr int kTensors = 5, kInputs = 4;

// A size of the network: a number, and how it came about.
struct Size final : trt::IDimensionExpr, trt::apiv::VDimensionExpr {
  explicit Size(int64_t value) : value(value) { mImpl = this; }
  bool isConstant() const noexcept override { return true; }
  int64_t getConstantValue() const noexcept override { return value; }
  bool isSizeTensor() const noexcept override { return false; }
  int64_t value;
};

struct Builder final : trt::IExprBuilder, trt::apiv::VExprBuilder {
  Builder() { mImpl = this; }
  const trt::IDimensionExpr* constant(int64_t value) noexcept override {
    return &sizes.emplace_back(value);
  }
  const trt::IDimensionExpr* operation(trt::DimensionOperation op, const trt::IDimensionExpr& a,
                                       const trt::IDimensionExpr& b) noexcept override {
    const int64_t x = a.getConstantValue(), y = b.getConstantValue();
    return constant(op == trt::DimensionOperation::kSUB ? x - y : -1000);
  }
  const trt::IDimensionExpr* declareSizeTensor(int32_t, const trt::IDimensionExpr&,
                                               const trt::IDimensionExpr&) noexcept override {
    return nullptr;
  }
  std::list<Size> sizes;
};

trt::IPluginCreatorV3One* creator() {
  int32_t number = 0;
  auto* const* creators = getCreators(number);
  if (number != 1 || std::strcmp(creators[0]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) {
    return nullptr;
  }
  return static_cast<trt::IPluginCreatorV3One*>(creators[0]);
}

template <typename Capability>
Capability* capability(trt::IPluginV3* plugin, trt::PluginCapabilityType type) {
  return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

trt::IPluginV3OneBuild* build(trt::IPluginV3* plugin) {
  return capability<trt::IPluginV3OneBuild>(plugin, trt::PluginCapabilityType::kBUILD);
}

trt::IPluginV3OneRuntime* runtime(trt::IPluginV3* plugin) {
  return capability<trt::IPluginV3OneRuntime>(plugin, trt::PluginCapabilityType::kRUNTIME);
}

// ranks [5] and shapes [5, 8] of depth, feat, runs, cell_start, bev
void describe(const int32_t* ranks, const int64_t* shapes, const int32_t* types,
              const int32_t* formats, trt::DynamicPluginTensorDesc* descs) {
  for (int i = 0; i < kTensors; ++i) {
    descs[i] = {};
    descs[i].desc.dims.nbDims = ranks[i];
    std::memcpy(descs[i].desc.dims.d, shapes + 8 * i, 8 * sizeof(int64_t));
    descs[i].desc.type = static_cast<trt::DataType>(types[i]);
    descs[i].desc.format = static_cast<trt::TensorFormat>(formats[i]);
  }
}

}  // namespace

API const char* creator_text(int which) {
  trt::IPluginCreatorV3One* one = creator();
  if (one == nullptr) return nullptr;
  const char* texts[] = {one->getPluginName(), one->getPluginVersion(), one->getPluginNamespace(),
                         one->getFieldNames()->fields[0].name};
  return texts[which];
}

API const char* plugin_text(trt::IPluginV3* plugin, int which) {
  auto* core = capability<trt::IPluginV3OneCore>(plugin, trt::PluginCapabilityType::kCORE);
  const char* texts[] = {core->getPluginName(), core->getPluginVersion(), core->getPluginNamespace(),
                         core->getInterfaceInfo().kind, build(plugin)->getInterfaceInfo().kind,
                         runtime(plugin)->getInterfaceInfo().kind, plugin->getInterfaceInfo().kind};
  return texts[which];
}

// type: a PluginFieldType, or -1 for no field at all
API trt::IPluginV3* create_plugin(int64_t grid_width, int type, int length) {
  const auto narrow = static_cast<int32_t>(grid_width);
  const bool wide = type == static_cast<int>(trt::PluginFieldType::kINT64);
  const void* data = wide ? static_cast<const void*>(&grid_width) : &narrow;
  const trt::PluginField field("grid_width", data, static_cast<trt::PluginFieldType>(type), length);
  const trt::PluginFieldCollection fields{type < 0 ? 0 : 1, &field};
  return creator()->createPlugin("pool", &fields, trt::TensorRTPhase::kBUILD);
}

API trt::IPluginV3* clone_plugin(trt::IPluginV3* plugin) { return plugin->clone(); }
API trt::IPluginV3* attach_plugin(trt::IPluginV3* plugin) {
  return runtime(plugin)->attachToContext(nullptr);
}
API void delete_plugin(trt::IPluginV3* plugin) { delete plugin; }

// What an engine would store, made into a new plugin again.
API trt::IPluginV3* restore_plugin(trt::IPluginV3* plugin) {
  return creator()->createPlugin("pool", runtime(plugin)->getFieldsToSerialize(),
                                 trt::TensorRTPhase::kRUNTIME);
}

API int32_t stored_grid_width(trt::IPluginV3* plugin) {
  return *static_cast<const int32_t*>(runtime(plugin)->getFieldsToSerialize()->fields[0].data);
}

API int32_t output_type(trt::IPluginV3* plugin, const int32_t* types, int num_inputs) {
  trt::DataType in[kInputs], out[1] = {trt::DataType::kBOOL};
  for (int i = 0; i < kInputs; ++i) in[i] = static_cast<trt::DataType>(types[i]);
  if (build(plugin)->getOutputDataTypes(out, 1, in, num_inputs) != 0) return -1;
  return static_cast<int32_t>(out[0]);
}

API int32_t output_shape(trt::IPluginV3* plugin, const int32_t* ranks, const int64_t* shapes,
                         int64_t* shape) {
  Builder builder;
  trt::DimsExprs in[kInputs]{}, out[1]{};
  for (int i = 0; i < kInputs; ++i) {
    in[i].nbDims = ranks[i];
    for (int k = 0; k < ranks[i]; ++k) in[i].d[k] = builder.constant(shapes[8 * i + k]);
  }
  const int32_t code =
      build(plugin)->getOutputShapes(in, kInputs, nullptr, 0, out, 1, builder);
  for (int k = 0; code == 0 && k < out[0].nbDims; ++k) shape[k] = out[0].d[k]->getConstantValue();
  return code == 0 ? out[0].nbDims : -1;
}

API int32_t combination_of(trt::IPluginV3* plugin, int position, const int32_t* types,
                           const int32_t* formats) {
  const int32_t ranks[kTensors] = {4, 4, 2, 1, 2};
  const int64_t shapes[kTensors * 8] = {};
  trt::DynamicPluginTensorDesc descs[kTensors];
  describe(ranks, shapes, types, formats, descs);
  return build(plugin)->supportsFormatCombination(position, descs, kInputs, 1);
}

API int32_t configure(trt::IPluginV3* plugin, const int32_t* ranks, const int64_t* shapes) {
  const int32_t zeros[kTensors] = {};
  trt::DynamicPluginTensorDesc descs[kTensors];
  describe(ranks, shapes, zeros, zeros, descs);
  return build(plugin)->configurePlugin(descs, kInputs, descs + kInputs, 1);
}

// onShapeChange, and enqueue where that went well
API int32_t run_plugin(trt::IPluginV3* plugin, const int32_t* ranks, const int64_t* shapes,
                       const int32_t* types, const void* const* inputs, void* output) {
  const int32_t formats[kTensors] = {};
  trt::DynamicPluginTensorDesc dynamic[kTensors];
  describe(ranks, shapes, types, formats, dynamic);
  trt::PluginTensorDesc descs[kTensors];
  for (int i = 0; i < kTensors; ++i) descs[i] = dynamic[i].desc;
  setLoggerFinder(nullptr);
  trt::IPluginV3OneRuntime* one = runtime(plugin);
  const int32_t code = one->onShapeChange(descs, kInputs, descs + kInputs, 1);
  if (code != 0) return -code;
  return one->enqueue(descs, descs + kInputs, inputs, &output, nullptr, nullptr);
}
