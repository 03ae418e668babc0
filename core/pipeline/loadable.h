#pragma once

#include <string>
#include <vector>

#include "pipeline/plan.h"

namespace aqhost {

/// What a reader of checkpoints will make of an export.
struct Loadable {
  std::string engine;                 // "vLLM"
  std::string id;                     // "vllm"
  std::vector<std::string> problems;  // a sentence for each cause; none: it loads
};

/// Whether what `plan` writes will load in vLLM, SGLang and transformers, from the plan alone:
/// vLLM and SGLang run the experts of a layer as one kernel (one format for gate, up and down of
/// all of them, of those that kernels exist for), fuse q/k/v and gate/up of a dense or shared FFN
/// (one format each), and keep routers dense (vLLM: compressed_tensors_moe.py); transformers 5.17
/// stacks all experts of the model (one format, of those that it unpacks:
/// integrations/compressed_tensors.py).
std::vector<Loadable> loadable(const Plan& plan);

/// Error naming the first problem if the engine `target` (an id, or "any": none in particular) will
/// not load what `plan` writes; Error with the known ids if there is no such engine.
void check_target(const std::vector<Loadable>& loads, const std::string& target);

}  // namespace aqhost
