#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "plan/engine_case.h"

namespace aqhost {

/// What an engine does with what a rule describes.
enum class EngineVerdict : uint8_t {
  kLoads,
  kNote,     // it loads, and there is something to know
  kRefused,  // it does not load
  kWrong,    // it loads, and silently computes something else
};

/// A row of an engine's file: conditions, what the engine does where they hold, and where that was
/// read.
struct Rule {
  Conditions conditions{};
  EngineVerdict verdict = EngineVerdict::kLoads;
  std::string sentence{};  // for the user, with names in braces (fill_in()); "" if it loads
  std::string source{};    // the file of the engine, below the `source` at the top
  Json example{};          // a case in which the rule is the one that holds (read_example())
};

/// What an engine's code for a family does with options of a model (model_option_names()).
struct EngineFamily {
  std::string family;               // id of the model plugin
  std::set<std::string> types{};    // the values of model_type by which the engine finds it
  std::set<std::string> ignores{};  // options that it silently does not have
  std::set<std::string> refuses{};  // options with which it stops
};

/// Modules that must be stored alike, because an engine has one kernel, or one matrix, for them.
struct OneFormat {
  std::vector<std::string> of{};  // names of modules
  std::string name;               // what messages call them: "q, k and v"
  bool of_model = false;          // those of all layers, not of one
  std::string storage;            // only where they are stored so; "": always
  EngineVerdict verdict = EngineVerdict::kRefused;
};

/// What is known of an engine: the content of core/plan/engines/ID.yaml.
struct Engine {
  std::string id, name;         // "vllm", "vLLM"
  std::string version;          // whose source was read: "0.33"
  std::set<std::string> run{};  // families of which exports were loaded in it
  bool reads_gguf = false;      // not the export, but the GGUF file that can be made of it
  bool splits = false;          // divides a model over GPUs by tensor parallelism
  std::vector<EngineFamily> families{};
  std::map<std::string, std::string> ignored{}, refused{};  // sentences about options
  /// The first rule that holds for a quantized module says whether its format can be loaded. The
  /// last one holds always.
  std::vector<Rule> formats{};
  /// Every rule that holds is said: of each module, or once if it has no condition of a module.
  std::vector<Rule> rules{};
  std::vector<OneFormat> one_format{};

  const Rule& format_rule(const ModelCase& model, const ModuleCase& module) const;
  /// The entry for a model: the one with its model_type, else the first of its family; nullptr if
  /// the family is not known.
  const EngineFamily* find_family(const ModelCase& model) const;
};

/// Reads the file of an engine. Throws an Error that names the file and the field if a key is not
/// known, a value has a wrong type, or a row has no source or no example.
Engine read_engine(const std::string& text, const std::string& file);

/// vLLM, SGLang, transformers and llama.cpp. Their files are compiled into the program.
const std::vector<Engine>& engines();

/// The text of such a file, and its name.
struct EngineFile {
  const char* name;
  const char* text;
};
extern const EngineFile kEngineFiles[];
extern const std::size_t kEngineFileCount;

}  // namespace aqhost
