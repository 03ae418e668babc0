#pragma once

#include <string>

#include "checkpoint/source.h"
#include "plan/engine_case.h"
#include "plan/plan.h"
#include "plugin/model.h"

namespace aqhost {

/// A plan and its model: the export that an engine is asked about.
struct Export {
  const Plan& plan;
  const Model& model;
  const Source& original;
};

/// Whether two modules are stored alike.
bool same_scheme(const PlannedModule& a, const PlannedModule& b);

/// The export as the rules of engines see it.
ModelCase model_case(const Export& exported);
ModuleCase module_case(const PlannedModule& m, const Container& container);
/// Why GGUF has no type for the numbers of a quantized module; "" if it has.
std::string gguf_problem(const PlannedModule& m);

}  // namespace aqhost
