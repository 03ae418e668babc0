#pragma once

#include <string>
#include <vector>

#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/model.h"

namespace aqhost {

/// What a reader of checkpoints will make of an export. Sentences that are true of many modules
/// are one, which names the first and counts the others.
struct Loadable {
  std::string engine;   // "vLLM"
  std::string version;  // whose source the rules were read in: "0.32"
  std::string id;       // "vllm"
  bool run = false;     // whether exports were loaded in that version, or its source only read
  std::vector<std::string> refused{};  // why it does not load
  std::vector<std::string> wrong{};    // why it loads and then computes something else, unsaid
  std::vector<std::string> notes{};    // what is worth knowing where it loads

  bool loads() const { return refused.empty() && wrong.empty(); }
  /// "vLLM 0.32"
  std::string name() const { return engine + " " + version; }
  /// `refused`, then `wrong`.
  std::vector<std::string> problems() const;
  /// "vLLM 0.32 will not load the result", or "... will load the result and give wrong answers".
  std::string verdict() const;
};

/// Whether what `plan` writes of `model` will load in vLLM, SGLang and transformers, from the plan,
/// the model's options and the folder of `original` alone. The rules of each engine, and what of
/// its source they were read in, are in its file: rules_vllm.cc, rules_sglang.cc and
/// rules_transformers.cc.
std::vector<Loadable> loadable(const Plan& plan, const Model& model, const Source& original);

/// Error naming the first problem if the engine `target` (an id, or "any": none in particular) will
/// not load what `plan` writes, or not as it is meant; Error with the known ids if there is no such
/// engine. Notes are no obstacle.
void check_target(const std::vector<Loadable>& loads, const std::string& target);

}  // namespace aqhost
