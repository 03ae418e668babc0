#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/field.h"
#include "base/json.h"

namespace aqhost {

/// What an engine is asked about: a model, and how an export of it is stored as a whole.
struct ModelCase {
  std::string family{};             // id of the model plugin: "olmoe"
  std::string type{};               // model_type of config.json; "" if it has none
  std::set<std::string> options{};  // those of model_option_names() that the model has
  Json config = Json::object();     // config.json
  std::set<std::string> code{};     // Python files beside config.json, if that has an auto_map
  int64_t hidden_size = 256;
  double latent_eps = 0;  // epsilon of the norms inside latent attention
  std::string container = "compressed-tensors";
  int64_t schemes = 1;   // number of ways in which modules are quantized
  int64_t storages = 1;  // number of ways in which they are stored, by config.json's "format"
};

/// A module of that export. The default is an expert in int4 g128.
struct ModuleCase {
  int32_t role = 0;  // AQ_ROLE_*; 0: any
  bool expert = true;
  bool quantized = true;
  std::string storage = "pack-quantized";  // "gptq": AutoGPTQ's; "unknown": no engine's
  int64_t bits = 4;
  int64_t group = 128;  // -1: a row, 0: the whole matrix
  bool symmetric = true;
  std::string inputs = "bf16";  // the format to which its inputs are rounded; "bf16": not rounded
  int64_t rows = 256, cols = 256;
  std::string gguf_problem{};  // why GGUF cannot hold it; "" if it can
  std::string text{};          // "int4 g128 aq=int8"
};

/// The names that rules have for modules, such as "experts" and "linears", and for options of a
/// model, such as "qkv_bias".
std::vector<std::string> module_names();
std::vector<std::string> model_option_names();
/// Whether the module has one of these names.
bool has_name(int32_t role, bool expert, const std::string& name);

/// The conditions of a rule: all of them must hold. They are keys of the rule's row, of a closed
/// set (engine_case.cc lists and explains them); no expression can be written.
class Conditions {
 public:
  Conditions() = default;
  /// Reads the members of `row` that are conditions, and checks their types and names.
  explicit Conditions(const Field& row);

  /// The names of all keys.
  static std::vector<std::string> keys();

  /// Whether one of them is about a module.
  bool of_module() const;
  bool empty() const { return values_.empty(); }
  bool hold(const ModelCase& model, const ModuleCase& module) const;
  /// The keys of config_lacks that the model's config.json has not.
  std::vector<std::string> missing(const ModelCase& model) const;

 private:
  std::vector<std::pair<std::size_t, Json>> values_;  // by the index of the key
};

/// Replaces {format}, {hidden_size} and so on in a sentence by what they are in this case;
/// {missing} are the keys that config.json lacks. Other text in braces stays.
std::string fill_in(const std::string& sentence, const ModelCase& model, const ModuleCase& module,
                    const std::vector<std::string>& missing);
/// The first text in braces that looks like a name and is none; "" if there is none.
std::string unknown_placeholder(const std::string& sentence);

/// Reads the example of a row: what is different from the default case.
std::pair<ModelCase, ModuleCase> read_example(const Field& example);

}  // namespace aqhost
