#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/model.h"
#include "plugin/registry.h"

namespace aqhost {

/// What an engine will do with an export. If a sentence is true for many
/// modules, it is given once; it names the first module and counts the others.
struct Loadable {
  std::string engine;   // "vLLM"
  std::string version;  // the version whose source the rules come from: "0.32"
  std::string id;       // "vllm"
  bool gguf = false;    // it reads the GGUF file that can be made of the export
  bool run = false;     // exports of this family were loaded in it; false: source only read
  std::vector<std::string> refused{};  // why it does not load
  std::vector<std::string> wrong{};    // why it loads but silently computes something else
  std::string remedy{};  // "group_size: 64 for all modules in int4 would make it loadable"
  std::vector<std::string> notes{};  // what is worth knowing if it loads

  bool loads() const { return refused.empty() && wrong.empty(); }
  /// "vLLM 0.33"
  std::string name() const { return engine + " " + version; }
  /// `refused`, then `wrong`.
  std::vector<std::string> problems() const;
  /// "vLLM 0.33 will not load the result", or "... will load the result and give wrong answers".
  std::string verdict() const;
};

/// Whether the export that `plan` makes of `model` will load in vLLM, SGLang and transformers, and
/// a GGUF file made of it in llama.cpp. This
/// is decided only from the plan, the model's options and the folder of `original`. The rules of
/// each engine, with the source file of each, are in engines/*.yaml (engine.h). With `gpus` above
/// 1, vLLM and SGLang are asked whether they can divide the model over that many GPUs (tensor
/// parallelism; rules_split.cc). If `has_files` is set, llama.cpp is also asked about the tokenizer
/// in the folder of `original`.
std::vector<Loadable> loadable(const Plan& plan, const Model& model, const Source& original,
                               int32_t gpus = 1, bool has_files = true);

/// For each engine that does not load the export, or not rightly, but would if all modules whose
/// format has it had one group size, sets `remedy` to the largest such size.
void suggest_group_sizes(std::vector<Loadable>& loads, const Plan& plan, const Model& model,
                         const Source& original, const Registry& registry, int32_t gpus = 1,
                         bool has_files = true);

/// Throws an Error that names the first problem if the engine `target` will not load what `plan`
/// writes, or will compute something else. `target` is an id, or "any" for no particular engine. An
/// unknown engine is an Error that lists the known ids. Notes are not problems.
void check_target(const std::vector<Loadable>& loads, const std::string& target);

}  // namespace aqhost
