#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "plan/engine.h"
#include "plan/plan.h"

namespace aqhost {

/// Modules that get the same format: those of a layer (or of the model) for which an engine has one
/// kernel, or one matrix.
struct AllocatedGroup {
  int32_t layer = 0;                 // -1: outside the layers, or in several of them
  std::string name;                  // "q k v", "experts", "shared gate up"
  std::vector<std::size_t> modules;  // indices in Plan::modules, rising
};

/// Divides the modules that `plan` quantizes into parts, in the order of the model. The routed
/// experts of a layer are alike for each of their matrices; beyond that, modules are alike as the
/// `one_format` rows of the engine say. Without an engine (nullptr), the rows of every engine count
/// that are about modules of one layer.
std::vector<AllocatedGroup> model_parts(const Plan& plan, const Engine* engine);

/// The engine with this id, or nullptr for "any". Another id is a UsageError that lists the ids.
const Engine* find_engine(const std::string& id);

}  // namespace aqhost
