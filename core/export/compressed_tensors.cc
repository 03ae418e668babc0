#include "export/compressed_tensors.h"

#include <cstring>
#include <map>
#include <utility>

#include "base/error.h"
#include "base/field.h"
#include "export/quantization_config.h"

namespace aqhost {
namespace {

constexpr std::string_view kInputGlobalScale = "input_global_scale";
constexpr std::pair<DType, const char*> kRealTypes[] = {
    {DType::kBF16, "bfloat16"}, {DType::kF16, "float16"}, {DType::kF32, "float32"}};

bool has_input_global(const StoredModule& module) {
  return module.activations && module.activations->desc().global_scale();
}

/// The options that "weights" or "input_activations" of a config group contain, under the names
/// that recipes use. Throws an Error that names the field if a value has the wrong type.
Json options_of(const Field& weights) {
  Json options = Json::object();
  const std::string strategy = weights["strategy"].text_or("tensor");
  if (!weights["num_bits"].is_null()) weights["num_bits"].integer(1, 64);
  weights["type"].text_or("int");
  if (const Field size = weights["group_size"]; !size.is_null())
    options["group_size"] = size.integer(-1, kMaximumFeatures - 1);
  else if (strategy == "channel" || strategy == "tensor")
    options["group_size"] = strategy == "channel" ? -1 : 0;
  if (!weights["symmetric"].flag_or(true)) options["symmetric"] = false;
  if (const Field element = weights["element"]; !element.is_null())
    options["element"] = element.text();
  return options;
}

/// Whether those settings of "weights" or "input_activations" are equal that decide how they are
/// read.
bool same_numbers(const Json& a, const Json& b) {
  const Json none;
  for (const char* key : {"num_bits", "type", "symmetric", "strategy", "group_size", "element"})
    if (a.value(key, none) != b.value(key, none)) return false;
  return true;
}

/// Makes a format with `options`. A format that has only one type of scale has no option
/// scale_dtype, so that option is dropped if the format refuses it.
std::shared_ptr<const Format> make_format(const Registry& registry, const std::string& id,
                                          Json options) {
  try {
    return registry.create_format(id, options);
  } catch (const Error&) {
    if (options.erase("scale_dtype") == 0) throw;
    return registry.create_format(id, options);
  }
}

/// Finds the format whose config has `format` (if not null) and the numbers of `wanted`.
std::shared_ptr<const Format> recognise(const Json& format_name, const Json& wanted,
                                        const Json& options, const Registry& registry,
                                        const std::string& where) {
  std::string tried;
  if (registry.format_ids().empty())
    fail(
        "{}: format {} needs a format plugin, and none was found; aqhost plugins tells where it "
        "looks",
        where, format_name.dump());
  for (const std::string& id : registry.format_ids()) {
    try {
      auto format = make_format(registry, id, options);
      if ((format_name.is_null() || format->config()["format"] == format_name) &&
          same_numbers(format->config()["weights"], wanted))
        return format;
    } catch (const Error&) {
      // a format that does not accept these options is not the one that is wanted
    }
    tried += (tried.empty() ? "" : ", ") + id;
  }
  fail("{}: no format plugin reads format {} with {}; tried {}", where, format_name.dump(),
       wanted.dump(), tried);
}

/// Finds the format to which `activations` ("input_activations") rounds. Its scales must be
/// computed at run time, for each token or group.
std::shared_ptr<const Format> recognise_activations(const Field& activations,
                                                    const Registry& registry) {
  const Field dynamic = activations["dynamic"];
  if (dynamic.json() != true && dynamic.json() != "local")
    fail(
        "{}: expected true or \"local\": activations whose scales are stored (static ones) are "
        "not supported",
        dynamic.where());
  Json options = options_of(activations);
  if (options.value("group_size", -1) == 0)
    fail(
        "{} \"tensor\" is not supported for activations, expected \"token\", \"group\" or "
        "\"tensor_group\"",
        activations["strategy"].where());
  options["dynamic"] = true;
  return recognise({}, activations.json(), options, registry, activations.where());
}

/// Finds the formats of a config group. `scale` is the weight_scale of one of its modules, because
/// the config need not say which type scales have.
StoredModule recognise_group(const ConfigGroup& group, const TensorInfo* scale,
                             const Registry& registry, const std::string& where) {
  const std::string at = "quantization_config.config_groups." + group.name;
  StoredModule kind;
  Json options = options_of(Field(group.format["weights"], where, at + ".weights"));
  for (const auto& [type, name] : kRealTypes)
    if (scale != nullptr && scale->dtype == type) options["scale_dtype"] = name;
  if (!group.activations.is_null()) {
    kind.activations =
        recognise_activations(Field(group.activations, where, at + ".input_activations"), registry);
    options["activations"] = kind.activations->id();
  }
  kind.format = recognise(group.format["format"], group.format["weights"], options, registry,
                          where + ": " + at);
  return kind;
}

/// Whether a suffix shows that a module is packed and not dense.
bool is_packed(std::string_view suffix) {
  return suffix.starts_with("weight_") && suffix != "weight_g_idx";
}

/// The shape [rows, cols] of a stored module, chosen so that the tensors there have the layout of
/// the format; zeros if they cannot tell it.
std::pair<int64_t, int64_t> shape_of(const Source& stored, const std::string& name,
                                     const Format& format) {
  if (const TensorInfo* shape = stored.find(name + ".weight_shape")) {
    const std::size_t width = shape->dtype == DType::kI64 ? 8 : shape->dtype == DType::kI32 ? 4 : 0;
    if (width == 0 || shape->shape != std::vector<int64_t>{2}) return {};
    int64_t value[2] = {0, 0};
    const std::vector<std::byte> bytes = stored.bytes(shape->name);
    for (std::size_t i = 0; i < 2; i++)
      std::memcpy(&value[i], bytes.data() + i * width, width);  // little-endian
    return {value[0], value[1]};
  }
  if (const TensorInfo* codes = stored.find(name + ".weight"); codes && codes->shape.size() == 2)
    return {codes->shape[0], codes->shape[1]};
  const TensorInfo* scale = stored.find(name + ".weight_scale");
  const int64_t group_size = format.desc().group_size;
  if (scale != nullptr && scale->shape.size() == 2 && group_size > 0 &&
      scale->shape[1] <= kMaximumFeatures / group_size)
    return {scale->shape[0], scale->shape[1] * group_size};
  return {};
}

class CompressedTensors : public Container {
 public:
  std::string name() const override { return "compressed-tensors"; }

  std::string format_name(const Format& format) const override {
    return format.config().value("format", "");
  }

  std::vector<TensorInfo> tensors_of(const StoredModule& module) const override {
    std::vector<TensorInfo> tensors = module.format->packed(module.rows, module.cols);
    if (has_input_global(module))
      tensors.push_back({std::string(kInputGlobalScale), DType::kF32, {1}});
    return tensors;
  }

  std::vector<PackedTensor> pack(const StoredModule& module, const QuantizedMatrix& matrix,
                                 float input_global) const override {
    std::vector<PackedTensor> tensors = module.format->pack(matrix);
    if (!has_input_global(module)) return tensors;
    const auto bytes = std::as_bytes(std::span(&input_global, 1));
    tensors.push_back(
        {{std::string(kInputGlobalScale), DType::kF32, {1}}, {bytes.begin(), bytes.end()}});
    return tensors;
  }

  Json config(const std::vector<StoredModule>& modules) const override {
    std::vector<ExportedModule> exported;
    for (const StoredModule& m : modules)
      exported.push_back({m.name, m.format ? &m.format->config() : nullptr,
                          m.activations ? &m.activations->config() : nullptr});
    return quantization_config(exported);
  }

  std::vector<StoredModule> modules(const Source& stored, const Registry& registry) const override {
    const std::string where = stored.directory() + "/config.json";
    const auto groups = parse_quantization_config(stored.config().at("quantization_config"), where);
    std::map<const ConfigGroup*, StoredModule> kinds;
    std::vector<StoredModule> modules;
    for (const std::string& name : packed_modules(stored, is_packed)) {
      const ConfigGroup* group = find_group(groups, name);
      if (group == nullptr)
        fail("{}: no group of quantization_config covers {}, which is stored quantized", where,
             name);
      StoredModule& kind = kinds[group];
      if (!kind.format)
        kind = recognise_group(*group, stored.find(name + ".weight_scale"), registry, where);
      const auto [rows, cols] = shape_of(stored, name, *kind.format);
      modules.push_back({name, kind.format, kind.activations, rows, cols});
    }
    return modules;
  }

  QuantizedMatrix unpack(const StoredModule& module,
                         std::span<const std::span<const std::byte>> tensors) const override {
    const auto first = tensors.first(module.format->desc().n_packed);
    std::vector<std::span<const std::byte>> packed(first.begin(), first.end());
    const int64_t shape[2] = {module.rows, module.cols};  // which may be stored as I32
    const std::vector<TensorInfo> infos = module.format->packed(module.rows, module.cols);
    for (std::size_t i = 0; i < infos.size(); i++)
      if (infos[i].name == "weight_shape") packed[i] = std::as_bytes(std::span(shape));
    return module.format->unpack(module.rows, module.cols, packed);
  }

  RoundedInput input_rounding(const Source& stored, const StoredModule& module) const override {
    RoundedInput rounded{module.activations};
    if (!has_input_global(module)) return rounded;
    const std::string name = fmt::format("{}.{}", module.name, kInputGlobalScale);
    stored.read_f32(name, 0, std::span(&rounded.global, 1));
    if (!(rounded.global > 0))
      fail("{}: {} is {}, expected a positive number", stored.directory(), name, rounded.global);
    return rounded;
  }

  /// lm_head is a linear module of the model class even if the embedding takes its place.
  void check_config(const Source& stored, const std::set<std::string>& quantized,
                    const Model& model) const override {
    const Json& config = stored.config().at("quantization_config");
    const std::string where = stored.directory() + "/config.json";
    const auto groups = parse_quantization_config(config, where);
    const Ignored ignored(config, where);
    for (const std::string& name : quantized)
      if (ignored.contains(name))
        fail("{}: {} is stored quantized, but quantization_config.ignore lists it",
             stored.directory(), name);
    std::vector<std::string> names;
    for (const Module& module : model.modules()) names.push_back(module.name);
    if (model.desc().tied_embeddings) names.emplace_back(kLmHead);
    for (const std::string& name : names)
      if (!quantized.contains(name) && !ignored.contains(name) &&
          find_group(groups, name) != nullptr)
        fail(
            "{}: {} is dense, but a group of quantization_config covers it and "
            "quantization_config.ignore does not list it: engines will look for packed tensors",
            stored.directory(), name);
  }
};

}  // namespace

const Container& compressed_tensors() {
  static const CompressedTensors kContainer;
  return kContainer;
}

}  // namespace aqhost
