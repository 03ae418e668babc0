// Model: tensors of a checkpoint that the adapter does not know. Their names show which of them
// would change the model.

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "base/error.h"
#include "plugin/model.h"
#include "plugin/unknown_model.h"

namespace aqhost {
namespace {

constexpr std::string_view kWeight = ".weight";

/// A component of a name that is a number, such as "12" in "model.layers.12.mlp".
struct Number {
  std::size_t begin, size;
  int64_t value;
};

std::vector<Number> numbers_in(std::string_view name) {
  std::vector<Number> numbers;
  for (std::size_t begin = 0; begin < name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    int64_t value = 0;
    const auto read = std::from_chars(name.data() + begin, name.data() + end, value);
    if (end > begin && read.ec == std::errc() && read.ptr == name.data() + end && value >= 0)
      numbers.push_back({begin, end - begin, value});
    begin = end + 1;
  }
  return numbers;
}

/// Whether all values of a tensor are zero, as in the biases that AutoGPTQ adds to every module.
bool is_zero(const Source& source, const TensorInfo& info) {
  if (info.dtype != DType::kF16 && info.dtype != DType::kBF16 && info.dtype != DType::kF32)
    return false;
  std::vector<float> values(static_cast<std::size_t>(info.numel()));
  source.read_f32(info.name, 0, values);
  return std::all_of(values.begin(), values.end(), [](float v) { return v == 0; });
}

/// The fields of config.json, or of the language model inside it, that `is` accepts, as "
/// (num_experts: 4)".
std::string fields_text(const Json& config,
                        const std::function<bool(const std::string& key, const Json& value)>& is) {
  std::string text;
  const auto look = [&](const Json& fields) {
    for (const auto& [key, value] : fields.items())
      if (is(key, value))
        text += fmt::format("{}{}: {}", text.empty() ? " (" : ", ", key, value.dump());
  };
  if (config.is_object()) look(config);
  if (const auto inner = config.find("text_config"); inner != config.end() && inner->is_object())
    look(*inner);
  return text.empty() ? text : text + ")";
}

/// What config.json says about biases in attention, by the keys that the families use for them.
std::string bias_fields(const Json& config) {
  const std::string text = fields_text(config, [](const std::string& key, const Json&) {
    return key == "attention_bias" || key == "qkv_bias";
  });
  return text.empty() ? " (it has no attention_bias)" : text;
}

std::string expert_fields(const Json& config, int32_t experts) {
  return fields_text(config, [experts](const std::string& key, const Json& value) {
    return value == experts &&
           std::find(kExpertKeys.begin(), kExpertKeys.end(), key) != kExpertKeys.end();
  });
}

bool is_attention(const Module* module) {
  if (module == nullptr) return false;
  const int32_t role = module->key.role;
  return (role >= AQ_ROLE_ATTN_Q && role <= AQ_ROLE_ATTN_O) ||
         (role >= AQ_ROLE_ATTN_Q_A && role <= AQ_ROLE_ATTN_KV_B);
}

/// What precedes the number of the layer in the names of the modules ("model.layers."), if all of
/// these names agree in it; empty if they do not.
std::string layer_prefix(const std::vector<Module>& modules) {
  std::string prefix;
  for (const Module& m : modules) {
    if (m.key.layer < 0) continue;
    const std::vector<Number> numbers = numbers_in(m.name);
    if (numbers.empty() || numbers.front().value != m.key.layer) return "";
    const std::string before = m.name.substr(0, numbers.front().begin);
    if (prefix.empty()) prefix = before;
    if (before != prefix) return "";
  }
  return prefix;
}

/// The number of the layer to which a tensor belongs by its name, which may be beyond the last
/// layer; -1 if it belongs to none.
int64_t layer_of(const std::string& tensor, const std::string& prefix) {
  if (prefix.empty() || !tensor.starts_with(prefix)) return -1;
  const std::vector<Number> numbers = numbers_in(tensor);
  return numbers.empty() || numbers.front().begin != prefix.size() ? -1 : numbers.front().value;
}

}  // namespace

/// Throws an Error if the name of a tensor without a key shows that it belongs to a module or
/// another part of the model, to an expert beyond the last, or to a layer that is run: the original
/// model very likely uses such a tensor, and a run without it would be calibrated on wrong hidden
/// states. Biases that are all zero change nothing and are accepted. A plugin that leaves a tensor
/// out on purpose gives it a key with a role of its own.
void Model::check_extra_tensors(const Source& source) const {
  if (extra_tensors_.empty()) return;
  std::map<std::string_view, const Module*> parts;  // indexed by what precedes ".weight"
  for (const Module& m : modules_) {
    const std::string_view stored = m.weight.name;
    parts[m.name] = &m;
    if (m.weight.index < 0 && stored.ends_with(kWeight))
      parts[stored.substr(0, stored.size() - kWeight.size())] = &m;
  }
  const std::string prefix = layer_prefix(modules_);
  for (const std::string& name : extra_tensors_) {
    const std::size_t dot = name.rfind('.');
    if (dot == name.npos) continue;
    const std::string stem = name.substr(0, dot), where = source.file_of(name);
    const auto part = parts.find(stem);
    const Module* module = part == parts.end() ? nullptr : part->second;
    const bool known = module != nullptr || find_key(stem + std::string(kWeight)).has_value() ||
                       (desc_.tied_embeddings && name == "lm_head.bias");
    const bool bias = name.ends_with("bias");
    if (known && !(bias && is_zero(source, *source.find(name))))
      fail(
          "{}: tensor {} belongs to {}, which has no such tensor by config.json{}; give the "
          "config.json of this model, or delete the tensor",
          where, name, stem, bias && is_attention(module) ? bias_fields(source.config()) : "");
    if (known) continue;
    const std::vector<Number> numbers = numbers_in(stem);
    if (numbers.empty()) continue;
    const Number& last = numbers.back();
    const auto first =
        parts.find(std::string(stem).replace(last.begin, last.size, "0"));  // with number 0
    const bool of_expert = first != parts.end() && first->second->key.expert == 0;
    const int32_t experts = of_expert ? ffn(first->second->key.layer).n_experts : 0;
    if (of_expert && last.value >= experts)
      fail(
          "{}: tensor {} is of expert {}, and by config.json{} a layer has {} experts, the last of "
          "which is {}; give the config.json of this model, or delete the tensors beyond",
          where, name, last.value, expert_fields(source.config(), experts), experts, experts - 1);
    if (const int64_t layer = layer_of(name, prefix); layer >= 0 && layer < desc_.n_layers)
      fail(
          "{}: tensor {} lies in layer {}, but model \"{}\" does not know it, so that the layer "
          "would be run without it; use a plugin that knows the tensor, or delete it if the model "
          "does not need it",
          where, name, layer, id_);
  }
}

std::string Model::extra_note() const {
  const std::string prefix = layer_prefix(modules_);
  const auto beyond = std::count_if(
      extra_tensors_.begin(), extra_tensors_.end(),
      [&](const std::string& name) { return layer_of(name, prefix) >= desc_.n_layers; });
  if (beyond == 0) return "";
  return fmt::format(
      "{} of them {} in layers from {} on, beyond num_hidden_layers of config.json, as layers of "
      "multi-token prediction are",
      beyond, beyond == 1 ? "is" : "are", desc_.n_layers);
}

}  // namespace aqhost
