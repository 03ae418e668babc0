#include "plan/engine_case.h"

#include <aq/model.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/nearest.h"

namespace aqhost {
namespace {

enum class Where : uint8_t { kExperts, kElsewhere };

struct ModuleName {
  const char* name;
  int32_t role;  // 0: any but those of routers
  Where where;
};

constexpr ModuleName kModuleNames[] = {
    {"experts", 0, Where::kExperts},  // routed ones
    {"expert_down", AQ_ROLE_FFN_DOWN, Where::kExperts},
    {"linears", 0, Where::kElsewhere},  // all others, shared experts and lm_head too
    {"q", AQ_ROLE_ATTN_Q, Where::kElsewhere},
    {"k", AQ_ROLE_ATTN_K, Where::kElsewhere},
    {"v", AQ_ROLE_ATTN_V, Where::kElsewhere},
    {"o", AQ_ROLE_ATTN_O, Where::kElsewhere},
    {"q_a", AQ_ROLE_ATTN_Q_A, Where::kElsewhere},
    {"kv_a", AQ_ROLE_ATTN_KV_A, Where::kElsewhere},
    {"kv_b", AQ_ROLE_ATTN_KV_B, Where::kElsewhere},
    {"delta_qkv", AQ_ROLE_DELTA_QKV, Where::kElsewhere},
    {"delta_z", AQ_ROLE_DELTA_Z, Where::kElsewhere},
    {"delta_b", AQ_ROLE_DELTA_B, Where::kElsewhere},
    {"delta_a", AQ_ROLE_DELTA_A, Where::kElsewhere},
    {"gate", AQ_ROLE_FFN_GATE, Where::kElsewhere},  // of a dense or shared FFN
    {"up", AQ_ROLE_FFN_UP, Where::kElsewhere},
    {"router", AQ_ROLE_ROUTER, Where::kElsewhere},
    {"shared_gate", AQ_ROLE_SHARED_ROUTER, Where::kElsewhere},
};

const std::vector<std::string> kOptionNames{
    "qkv_bias",          // q, k or v, or the first maps of latent attention, have a bias
    "out_bias",          // o has a bias
    "ffn_bias",          // a dense FFN or a shared expert has biases
    "head_bias",         // lm_head has a bias
    "tied_head",         // lm_head is the embedding
    "activation",        // another hidden_act than SiLU, or the one that the family has
    "head_dim",          // number of heads x head_dim is not the hidden size
    "norm_topk_prob",    // the weights of the chosen experts are divided by their sum
    "clip_qkv",          // q, k and v are clipped
    "norm_eps",          // rms_norm_eps is not 1e-5
    "latent",            // latent attention
    "latent_norm_eps",   // the norms inside it have another epsilon than the others
    "rotated_halves",    // it rotates element i with i + size / 2, and not neighbours
    "partial_rotation",  // only a part of each head is rotated
    "other_windows",     // sliding windows elsewhere than in layers 0, 2, 4 ...
    "other_rope",        // the scaling of the rotation is not yarn
};

const std::vector<std::string> kStorageNames{"pack-quantized",       "gptq",
                                             "mxfp4-pack-quantized", "mxfp8-quantized",
                                             "int-quantized",        "nvfp4-pack-quantized",
                                             "mxfp6-pack-quantized", "float-quantized",
                                             "naive-quantized",      "unknown"};

/// The value at "a.b" of config.json; null if it is missing.
Json config_value(const Json& config, std::string_view path) {
  const std::size_t dot = path.find('.');
  const std::string key(path.substr(0, dot));
  if (!config.is_object() || !config.contains(key)) return {};
  return dot == path.npos ? config[key] : config_value(config[key], path.substr(dot + 1));
}

bool is_in(const Json& list, const Json& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

/// Keys of config.json that a rule's config_lacks names, and that are not there.
std::vector<std::string> missing_keys(const Json& keys, const Json& config) {
  std::vector<std::string> missing;
  for (const Json& key : keys)
    if (config_value(config, key.get<std::string>()).is_null()) missing.push_back(key);
  return missing;
}

// Checks of the values of conditions.
void check_name(const Field& value, const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), value.text()) == known.end())
    fail("{}: \"{}\"{}", value.where(), value.text(), did_you_mean(value.text(), known));
}
void is_text(const Field& value) { (void)value.text(); }
void is_number(const Field& value) { (void)value.integer(-1, 1 << 20); }
void is_divisor(const Field& value) { (void)value.integer(1, 1 << 20); }
void is_flag(const Field& value) { (void)value.flag(); }
void is_module(const Field& value) { check_name(value, module_names()); }
void is_option(const Field& value) { check_name(value, kOptionNames); }
void is_storage(const Field& value) { check_name(value, kStorageNames); }
void is_count(const Field& value) { check_name(value, {"one", "several"}); }
/// A key of config.json, and the list of its values. null stands for a missing key.
void is_config(const Field& value) {
  for (const auto& [key, values] : value.members()) (void)values.items();
}

/// A condition. Its value in a row is one value, or a list of values of that kind; holds() gets a
/// list.
struct Key {
  const char* name;
  bool of_module;
  void (*check)(const Field& value);
  bool (*holds)(const Json& values, const ModelCase& model, const ModuleCase& module);
};

using Wanted = const Json&;
using InModel = const ModelCase&;
using InModule = const ModuleCase&;

bool counts(Wanted v, int64_t count) { return is_in(v, count > 1 ? "several" : "one"); }
bool divides_all(Wanted v, int64_t size) {
  return std::all_of(v.begin(), v.end(),
                     [&](const Json& n) { return size % n.get<int64_t>() == 0; });
}

// A model and its export.
bool in_family(Wanted v, InModel m, InModule) { return is_in(v, m.family); }
bool of_type(Wanted v, InModel m, InModule) { return is_in(v, m.type); }
bool has_all(Wanted v, InModel m, InModule) {
  return std::all_of(v.begin(), v.end(), [&](const Json& o) { return m.options.contains(o); });
}
bool has_none(Wanted v, InModel m, InModule) {
  return std::none_of(v.begin(), v.end(), [&](const Json& o) { return m.options.contains(o); });
}
bool config_is(Wanted v, InModel m, InModule) {
  for (const auto& [key, values] : v[0].items())
    if (!is_in(values, config_value(m.config, key))) return false;
  return true;
}
bool config_is_not(Wanted v, InModel m, InModule) {
  for (const auto& [key, values] : v[0].items())
    if (is_in(values, config_value(m.config, key))) return false;
  return true;
}
bool config_lacks(Wanted v, InModel m, InModule) { return !missing_keys(v, m.config).empty(); }
bool has_code(Wanted v, InModel m, InModule) {
  return std::all_of(v.begin(), v.end(), [&](const Json& f) { return m.code.contains(f); });
}
bool lacks_code(Wanted v, InModel m, InModule) { return !has_code(v, m, {}); }
bool in_container(Wanted v, InModel m, InModule) { return is_in(v, m.container); }
bool of_schemes(Wanted v, InModel m, InModule) { return counts(v, m.schemes); }
bool of_storages(Wanted v, InModel m, InModule) { return counts(v, m.storages); }
bool odd_hidden(Wanted v, InModel m, InModule) { return !divides_all(v, m.hidden_size); }

// A module.
bool of_modules(Wanted v, InModel, InModule m) {
  return std::any_of(v.begin(), v.end(), [&](const Json& name) {
    return has_name(m.role, m.expert, name.get_ref<const std::string&>());
  });
}
bool is_dense(Wanted v, InModel, InModule m) { return is_in(v, !m.quantized); }
bool stored_as(Wanted v, InModel, InModule m) { return is_in(v, m.storage); }
bool of_bits(Wanted v, InModel, InModule m) { return is_in(v, m.bits); }
bool in_groups(Wanted v, InModel, InModule m) { return is_in(v, m.group); }
bool in_other_groups(Wanted v, InModel, InModule m) { return !is_in(v, m.group); }
bool symmetric(Wanted v, InModel, InModule m) { return is_in(v, m.symmetric); }
bool inputs_in(Wanted v, InModel, InModule m) { return is_in(v, m.inputs); }
bool inputs_in_others(Wanted v, InModel, InModule m) { return !is_in(v, m.inputs); }
bool sizes_fit(Wanted v, InModel, InModule m) {
  return divides_all(v, m.rows) && divides_all(v, m.cols);
}
bool fits_gguf(Wanted v, InModel, InModule m) { return is_in(v, m.gguf_problem.empty()); }
bool odd_inputs(Wanted v, InModel, InModule m) { return !divides_all(v, m.cols); }

constexpr Key kKeys[] = {
    {"family", false, is_text, in_family},
    {"model_type", false, is_text, of_type},
    {"has", false, is_option, has_all},       // the model has all these options
    {"has_not", false, is_option, has_none},  // it has none of them
    {"config", false, is_config, config_is},  // {key: values}: config.json has one of the values
    {"config_not", false, is_config, config_is_not},
    {"config_lacks", false, is_text, config_lacks},  // one of these keys is not there
    {"own_code", false, is_text, has_code},          // these Python files come with the model
    {"no_own_code", false, is_text, lacks_code},
    {"container", false, is_text, in_container},  // of the export
    {"schemes", false, is_count, of_schemes},     // one, or several
    {"storages", false, is_count, of_storages},
    {"hidden_not_multiple_of", false, is_divisor, odd_hidden},
    {"of", true, is_module, of_modules},
    {"dense", true, is_flag, is_dense},  // false, if it is not there
    {"storage", true, is_storage, stored_as},
    {"bits", true, is_number, of_bits},
    {"group", true, is_number, in_groups},
    {"group_not", true, is_number, in_other_groups},
    {"symmetric", true, is_flag, symmetric},
    {"inputs", true, is_text, inputs_in},  // the format to which they are rounded
    {"inputs_not", true, is_text, inputs_in_others},
    {"gguf", true, is_flag, fits_gguf},                  // whether GGUF has a type for its numbers
    {"sizes_multiple_of", true, is_divisor, sizes_fit},  // rows and columns
    {"inputs_not_multiple_of", true, is_divisor, odd_inputs},
};

}  // namespace

std::vector<std::string> module_names() {
  std::vector<std::string> names;
  for (const ModuleName& m : kModuleNames) names.emplace_back(m.name);
  return names;
}

std::vector<std::string> model_option_names() { return kOptionNames; }

bool has_name(int32_t role, bool expert, const std::string& name) {
  for (const ModuleName& m : kModuleNames) {
    if (name != m.name) continue;
    const bool router = role == AQ_ROLE_ROUTER || role == AQ_ROLE_SHARED_ROUTER;
    return expert == (m.where == Where::kExperts) && (m.role == 0 ? !router : role == m.role);
  }
  return false;
}

Conditions::Conditions(const Field& row) {
  for (std::size_t i = 0; i < std::size(kKeys); i++) {
    const Field value = row[kKeys[i].name];
    if (value.is_null()) continue;
    const bool list = value.json().is_array();
    if (list && value.json().empty()) value.mismatch("a value, or a list of some");
    if (list)
      for (const Field& element : value.items()) kKeys[i].check(element);
    else
      kKeys[i].check(value);
    values_.emplace_back(i, list ? value.json() : Json::array({value.json()}));
  }
  const Key* dense = std::find_if(std::begin(kKeys), std::end(kKeys),
                                  [](const Key& key) { return key.holds == is_dense; });
  if (of_module() && row[dense->name].is_null())
    values_.emplace_back(dense - std::begin(kKeys), Json::array({false}));
}

std::vector<std::string> Conditions::keys() {
  std::vector<std::string> names;
  for (const Key& key : kKeys) names.emplace_back(key.name);
  return names;
}

bool Conditions::of_module() const {
  return std::any_of(values_.begin(), values_.end(),
                     [](const auto& value) { return kKeys[value.first].of_module; });
}

bool Conditions::hold(const ModelCase& model, const ModuleCase& module) const {
  return std::all_of(values_.begin(), values_.end(), [&](const auto& value) {
    return kKeys[value.first].holds(value.second, model, module);
  });
}

std::vector<std::string> Conditions::missing(const ModelCase& model) const {
  for (const auto& [i, values] : values_)
    if (kKeys[i].holds == config_lacks) return missing_keys(values, model.config);
  return {};
}

namespace {

/// What stands for the names in braces.
std::map<std::string, std::string> placeholders(const ModelCase& model, const ModuleCase& module,
                                                const std::vector<std::string>& missing) {
  return {{"format", module.text},
          {"bits", std::to_string(module.bits)},
          {"group", std::to_string(module.group)},
          {"inputs", module.inputs},
          {"family", model.family},
          {"model_type", model.type},
          {"gguf_problem", module.gguf_problem},
          {"hidden_size", std::to_string(model.hidden_size)},
          {"latent_norm_eps", fmt::format("{:g}", model.latent_eps)},
          {"missing", fmt::format("{}", fmt::join(missing, ", "))}};
}

/// The end of a name in braces that begins at `open`; npos if this is something else.
std::size_t end_of_name(const std::string& sentence, std::size_t open) {
  const std::size_t end = sentence.find_first_not_of("abcdefghijklmnopqrstuvwxyz_", open + 1);
  return end != sentence.npos && end > open + 1 && sentence[end] == '}' ? end : sentence.npos;
}

}  // namespace

std::string fill_in(const std::string& sentence, const ModelCase& model, const ModuleCase& module,
                    const std::vector<std::string>& missing) {
  if (sentence.find('{') == sentence.npos) return sentence;
  const auto values = placeholders(model, module, missing);
  std::string text;
  std::size_t from = 0;
  for (std::size_t open = 0; (open = sentence.find('{', open)) != sentence.npos; open++) {
    const std::size_t end = end_of_name(sentence, open);
    if (end == sentence.npos) continue;
    const auto value = values.find(sentence.substr(open + 1, end - open - 1));
    if (value == values.end()) continue;
    text += sentence.substr(from, open - from) + value->second;
    from = end + 1;
  }
  return text + sentence.substr(from);
}

std::string unknown_placeholder(const std::string& sentence) {
  const auto values = placeholders({}, {}, {});
  for (std::size_t open = 0; (open = sentence.find('{', open)) != sentence.npos; open++) {
    const std::size_t end = end_of_name(sentence, open);
    if (end == sentence.npos) continue;
    const std::string name = sentence.substr(open + 1, end - open - 1);
    if (!values.contains(name)) return name;
  }
  return {};
}

namespace {

std::set<std::string> texts_of(const Field& list) {
  std::set<std::string> texts;
  if (!list.is_null())
    for (const Field& text : list.items()) texts.insert(text.text());
  return texts;
}

int64_t integer_of(const Field& field, int64_t missing) {
  return field.is_null() ? missing : field.integer();
}

}  // namespace

std::pair<ModelCase, ModuleCase> read_example(const Field& example) {
  static const std::vector<std::string> kKnown{
      "family",    "model_type", "has",  "config", "own_code",    "hidden_size", "container",
      "schemes",   "storages",   "of",   "dense",  "storage",     "bits",        "group",
      "symmetric", "inputs",     "rows", "cols",   "gguf_problem"};
  for (const auto& [key, value] : example.members())
    if (std::find(kKnown.begin(), kKnown.end(), key) == kKnown.end())
      fail("{}: unknown key \"{}\"{}", example.where(), key, did_you_mean(key, kKnown));
  ModelCase model;
  model.family = example["family"].text_or("olmoe");
  model.type = example["model_type"].text_or(model.family);
  model.options = texts_of(example["has"]);
  if (const Field config = example["config"]; !config.is_null()) model.config = config.json();
  model.code = texts_of(example["own_code"]);
  model.hidden_size = integer_of(example["hidden_size"], model.hidden_size);
  model.container = example["container"].text_or(model.container);
  model.schemes = integer_of(example["schemes"], model.schemes);
  model.storages = integer_of(example["storages"], model.storages);
  ModuleCase module;
  const std::string name = example["of"].text_or("experts");
  for (const ModuleName& m : kModuleNames)
    if (name == m.name)
      std::tie(module.role, module.expert) = std::pair(m.role, m.where == Where::kExperts);
  if (!has_name(module.role, module.expert, name)) is_module(example["of"]);
  module.quantized = !example["dense"].flag_or(false);
  module.storage = example["storage"].text_or(module.storage);
  module.bits = integer_of(example["bits"], module.bits);
  module.group = integer_of(example["group"], module.group);
  module.symmetric = example["symmetric"].flag_or(module.symmetric);
  module.inputs = example["inputs"].text_or(module.inputs);
  module.rows = integer_of(example["rows"], module.rows);
  module.cols = integer_of(example["cols"], module.cols);
  module.gguf_problem = example["gguf_problem"].text_or("");
  module.text = "the example";
  return {model, module};
}

}  // namespace aqhost
