#include "export/autogptq.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <aq/sdk/numeric.hpp>
#include <aq/sdk/pack.hpp>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "base/error.h"
#include "base/field.h"

namespace aqhost {
namespace {

constexpr std::string_view kExperts = ".experts.";

uint32_t field_of(const FormatDesc& desc) { return (1u << (desc.element_bits - 1)) - 1; }

/// The bytes of `tensor` as elements of type T.
template <typename T>
T* data_as(PackedTensor& tensor) {
  return reinterpret_cast<T*>(tensor.bytes.data());
}

/// A copy of bytes from a file, because data in files need not be aligned.
template <typename T>
std::vector<T> values_of(std::span<const std::byte> bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

std::string key_of(const GptqModule& m) {
  return m.bits == 0 ? "" : std::to_string(m.bits) + "/" + std::to_string(m.group_size);
}

/// The modules, with the experts of a layer merged into one entry, "...mlp.experts", if their
/// settings are equal.
std::vector<GptqModule> merge_experts(const std::vector<GptqModule>& modules) {
  const auto stem = [](const std::string& name) {
    const std::size_t at = name.find(kExperts);
    return at == std::string::npos ? name : name.substr(0, at + kExperts.size() - 1);
  };
  // by stem: the key of the first module, and whether all modules so far have the same key
  std::map<std::string, std::pair<std::string, bool>> alike;
  for (const GptqModule& m : modules) {
    const auto [it, added] = alike.try_emplace(stem(m.name), key_of(m), true);
    it->second.second = it->second.second && it->second.first == key_of(m);
  }
  std::vector<GptqModule> merged;
  for (const GptqModule& m : modules) {
    const std::string name = alike.at(stem(m.name)).second ? stem(m.name) : m.name;
    if (merged.empty() || merged.back().name != name)
      merged.push_back({name, m.bits, m.group_size});
  }
  return merged;
}

/// "bits" and "group_size" of a config. They may be missing if `otherwise` is given.
GptqModule settings_at(const Field& config, const GptqModule* otherwise) {
  const auto take = [&config, otherwise](const char* key, int32_t least, int32_t most,
                                         int32_t GptqModule::*member) {
    const Field value = config[key];
    if (value.is_null() && otherwise != nullptr) return otherwise->*member;
    return static_cast<int32_t>(value.integer(least, most));
  };
  return {"", take("bits", 1, 32, &GptqModule::bits),
          take("group_size", -1, 1 << 30, &GptqModule::group_size)};
}

std::vector<TensorInfo> gptq_tensors(const Format& format, int64_t rows, int64_t cols) {
  const FormatDesc& d = format.desc();
  const bool bits_known =
      d.element_bits == 2 || d.element_bits == 3 || d.element_bits == 4 || d.element_bits == 8;
  if (d.element_kind != AQ_ELEM_INT || !bits_known || d.zero_point() || d.two_level() ||
      d.group_size == 0 || d.scale_kind != AQ_SCALE_F16)
    fail(
        "GPTQ's checkpoint format holds symmetric integers of 2, 3, 4 or 8 bits with float16 "
        "scales, not {} {}; use another format or --export compressed-tensors",
        format.id(), to_text(format.options()));
  if (rows % 32 != 0 || cols % 32 != 0)
    fail("GPTQ's checkpoint format holds matrices whose sides are multiples of 32, not {} x {}",
         rows, cols);
  const int64_t bits = d.element_bits, groups = d.groups(cols);
  return {{"qweight", DType::kI32, {cols * bits / 32, rows}},
          {"qzeros", DType::kI32, {groups, rows * bits / 32}},
          {"scales", DType::kF16, {groups, rows}},
          {"g_idx", DType::kI32, {cols}}};
}

std::vector<PackedTensor> gptq_pack(const Format& format, const QuantizedMatrix& m) {
  const FormatDesc& d = format.desc();
  std::vector<PackedTensor> tensors;
  for (TensorInfo& info : gptq_tensors(format, m.rows, m.cols)) {
    const auto bytes = static_cast<std::size_t>(info.nbytes());
    tensors.push_back({std::move(info), std::vector<std::byte>(bytes)});
  }
  const int64_t groups = d.groups(m.cols);
  const auto* codes = reinterpret_cast<const uint8_t*>(m.codes.data());
  auto* qweight = data_as<uint32_t>(tensors[0]);
  for (int64_t r = 0; r < m.rows; r++)
    aq::pack_words(codes + r * m.cols, m.cols, 1, d.element_bits, qweight + r, m.rows);
  const std::vector<uint8_t> zeros(static_cast<std::size_t>(m.rows),
                                   static_cast<uint8_t>(field_of(d)));
  auto* qzeros = data_as<uint32_t>(tensors[1]);
  const int64_t words = m.rows * d.element_bits / 32;
  for (int64_t g = 0; g < groups; g++)
    aq::pack_words(zeros.data(), m.rows, 1, d.element_bits, qzeros + g * words, 1);
  auto* scales = data_as<uint16_t>(tensors[2]);
  for (int64_t g = 0; g < groups; g++)
    for (int64_t r = 0; r < m.rows; r++)
      scales[g * m.rows + r] =
          aq::f16_bits(m.group_params[static_cast<std::size_t>(r * groups + g)]);
  auto* g_idx = data_as<int32_t>(tensors[3]);
  for (int64_t c = 0; c < m.cols; c++) g_idx[c] = static_cast<int32_t>(c / d.width(m.cols));
  return tensors;
}

QuantizedMatrix gptq_unpack(const Format& format, int64_t rows, int64_t cols,
                            std::span<const std::span<const std::byte>> tensors) {
  const FormatDesc& d = format.desc();
  const int64_t groups = d.groups(cols), words = rows * d.element_bits / 32;
  const auto qweight = values_of<uint32_t>(tensors[0]), qzeros = values_of<uint32_t>(tensors[1]);
  const auto scales = values_of<uint16_t>(tensors[2]);
  const auto g_idx = values_of<int32_t>(tensors[3]);
  QuantizedMatrix m;
  m.rows = rows;
  m.cols = cols;
  m.codes.resize(static_cast<std::size_t>(rows * cols));
  m.group_params.resize(static_cast<std::size_t>(rows * groups));
  auto* codes = reinterpret_cast<uint8_t*>(m.codes.data());
  for (int64_t r = 0; r < rows; r++)
    aq::unpack_words(qweight.data() + r, rows, d.element_bits, codes + r * cols, cols, 1);
  std::vector<uint8_t> zeros(static_cast<std::size_t>(rows));
  for (int64_t g = 0; g < groups; g++) {
    aq::unpack_words(qzeros.data() + g * words, 1, d.element_bits, zeros.data(), rows, 1);
    for (int64_t r = 0; r < rows; r++) {
      if (zeros[static_cast<std::size_t>(r)] != field_of(d))
        fail("qzeros of row {}, group {} hold {}, symmetric integers of {} bits have {}", r, g,
             zeros[static_cast<std::size_t>(r)], d.element_bits, field_of(d));
      const float scale = aq::from_f16(scales[static_cast<std::size_t>(g * rows + r)]);
      if (!std::isfinite(scale)) fail("a scale is not finite: the file is damaged");
      m.group_params[static_cast<std::size_t>(r * groups + g)] = scale;
    }
  }
  for (int64_t c = 0; c < cols; c++)
    if (g_idx[static_cast<std::size_t>(c)] != c / d.width(cols))
      fail("g_idx[{}] is {}, expected {}: groups of columns in another order are not read", c,
           g_idx[static_cast<std::size_t>(c)], c / d.width(cols));
  return m;
}

/// The format of a module that config.json describes. `where` is its path.
std::shared_ptr<const Format> format_of(const GptqModule& said, const Registry& registry,
                                        const std::string& where) {
  try {
    return registry.create_format(fmt::format("int{}", said.bits),
                                  {{"group_size", said.group_size}, {"scale_dtype", "float16"}});
  } catch (const Error& e) {
    fail("{}: quantization_config: {}: {}", where, said.name, e.what());
  }
}

GptqConfig config_of(const Source& stored) {
  return {stored.config().at("quantization_config"), stored.directory() + "/config.json"};
}

class AutoGptq : public Container {
 public:
  std::string name() const override { return "gptq"; }

  std::string why_no_activations() const override {
    return "GPTQ's checkpoint format has no rounded activations";
  }

  Json options_for(const Format& format) const override {
    const FormatDesc& desc = format.desc();
    const bool integers = desc.element_kind == AQ_ELEM_INT && !desc.two_level();
    return integers ? Json{{"scale_dtype", "float16"}} : Json::object();
  }

  std::string format_name(const Format& /*format*/) const override { return name(); }

  std::vector<TensorInfo> tensors_of(const StoredModule& module) const override {
    return gptq_tensors(*module.format, module.rows, module.cols);
  }

  std::vector<PackedTensor> pack(const StoredModule& module, const QuantizedMatrix& matrix,
                                 float /*input_global*/) const override {
    return gptq_pack(*module.format, matrix);
  }

  Json config(const std::vector<StoredModule>& modules) const override {
    std::vector<GptqModule> exported;
    for (const StoredModule& m : modules) {
      exported.push_back({m.name});
      if (!m.format) continue;
      exported.back().bits = m.format->desc().element_bits;
      exported.back().group_size = m.format->desc().group_size;
    }
    return gptq_config(exported);
  }

  std::string config_file() const override { return "quantize_config.json"; }

  std::vector<StoredModule> modules(const Source& stored, const Registry& registry) const override {
    const std::string where = stored.directory() + "/config.json";
    const GptqConfig told = config_of(stored);
    std::map<std::pair<int32_t, int32_t>, std::shared_ptr<const Format>> formats;
    std::vector<StoredModule> modules;
    for (const std::string& name :
         packed_modules(stored, [](std::string_view suffix) { return suffix == "qweight"; })) {
      const std::optional<GptqModule> said = told.find(name);
      if (!said)
        fail("{}: quantization_config.dynamic leaves out {}, which is stored quantized", where,
             name);
      auto& format = formats[{said->bits, said->group_size}];
      if (!format) format = format_of(*said, registry, where);
      const std::vector<int64_t>& shape = stored.find(name + ".qweight")->shape;
      if (shape.size() != 2 || shape[0] > kMaximumFeatures)
        fail("{}: {}.qweight is [{}], expected two dimensions, the first of at most {}",
             stored.directory(), name, fmt::join(shape, ", "), kMaximumFeatures);
      modules.push_back({name, format, nullptr, shape[1], shape[0] * 32 / said->bits});
    }
    return modules;
  }

  QuantizedMatrix unpack(const StoredModule& module,
                         std::span<const std::span<const std::byte>> tensors) const override {
    return gptq_unpack(*module.format, module.rows, module.cols, tensors);
  }

  void check_config(const Source& stored, const std::set<std::string>& quantized,
                    const Model& model) const override {
    const GptqConfig told = config_of(stored);
    for (const Module& module : model.modules())
      if (module.quantize && !quantized.contains(module.name) && told.find(module.name))
        fail("{}: {} is stored dense, but quantization_config does not leave it out",
             stored.directory(), module.name);
  }
};

}  // namespace

const Container& autogptq() {
  static const AutoGptq kContainer;
  return kContainer;
}

Json gptq_config(const std::vector<GptqModule>& modules) {
  std::map<std::string, std::pair<int64_t, const GptqModule*>> kinds;
  for (const GptqModule& m : modules) {
    auto& kind = kinds[key_of(m)];
    kind.first += m.bits > 0 ? 1 : 0;
    kind.second = &m;
  }
  const auto most = std::max_element(kinds.begin(), kinds.end(), [](const auto& a, const auto& b) {
    return a.second.first < b.second.first;
  });
  Json config{{"quant_method", "gptq"},
              {"checkpoint_format", "gptq"},
              {"bits", most->second.second->bits},
              {"group_size", most->second.second->group_size},
              {"desc_act", false},
              {"sym", true},
              {"lm_head",
               std::any_of(modules.begin(), modules.end(),
                           [](const GptqModule& m) { return m.name == "lm_head" && m.bits > 0; })},
              {"pack_dtype", "int32"}};
  const std::vector<GptqModule> merged = merge_experts(modules);
  for (const auto& [key, kind] : kinds) {
    if (key == most->first) continue;
    std::vector<std::string> mine, others;
    for (const GptqModule& m : merged) (key_of(m) == key ? mine : others).push_back(m.name);
    for (std::string pattern : patterns_for(mine, others)) {
      if (pattern.ends_with("experts$")) pattern.replace(pattern.size() - 1, 1, "(\\.|$)");
      config["dynamic"][(kind.second->bits > 0 ? "+:" : "-:") + pattern] =
          kind.second->bits > 0
              ? Json{{"bits", kind.second->bits}, {"group_size", kind.second->group_size}}
              : Json::object();
    }
  }
  return config;
}

GptqConfig::GptqConfig(const Json& config, const std::string& where) {
  const Field quantization(config, where, "quantization_config");
  settings_ = settings_at(quantization, nullptr);
  // other layouts of the same tensors, which would be read as wrong numbers
  for (const auto& [key, known] : {std::pair("checkpoint_format", "gptq"), {"pack_dtype", "int32"}})
    if (quantization[key].text_or(known) != known) quantization[key].unsupported();
  if (!quantization["sym"].flag_or(true)) quantization["sym"].unsupported();
  quantization["desc_act"].flag_or(false);  // the order is checked with the tensors (g_idx)
  const Field dynamic = quantization["dynamic"];
  if (dynamic.is_null()) return;
  for (const auto& [key, value] : dynamic.members()) {
    const bool leave = key.starts_with("-:");
    const bool marked = leave || key.starts_with("+:");
    Rule rule{StartPattern(marked ? key.substr(2) : key, value.where()), {}};
    if (!leave) rule.settings = settings_at(value, &settings_);
    rules_.push_back(std::move(rule));
  }
}

std::optional<GptqModule> GptqConfig::find(const std::string& name) const {
  const auto rule = std::find_if(rules_.begin(), rules_.end(),
                                 [&name](const Rule& r) { return r.pattern.matches(name); });
  std::optional<GptqModule> found = rule == rules_.end() ? settings_ : rule->settings;
  if (found) found->name = name;
  return found;
}

}  // namespace aqhost
