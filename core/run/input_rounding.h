#pragma once

#include <ATen/ATen.h>

#include <map>
#include <memory>
#include <vector>

#include "forward/layer.h"
#include "plan/plan.h"
#include "quant/activations.h"
#include "run/comm.h"

namespace aqhost {

/// The rounding of the inputs of a layer's modules that a recipe asks for (aq). Modules that share
/// an input share its rounding. The gate and up projections of all routed experts of the layer
/// share one scale for all tokens, and so do their down projections, because engines run the
/// experts together with one scale. Used by one thread only.
class InputRounding {
 public:
  /// From now on, `layer` rounds the inputs of those of `modules` for which the plan says so.
  InputRounding(const std::vector<const PlannedModule*>& modules, Layer& layer);

  /// Whether the input of one of `modules` is rounded under one scale for all tokens.
  static bool observed(const std::vector<const PlannedModule*>& modules);
  /// Whether such a scale has been shown nothing but zeros so far.
  bool unobserved(const std::vector<const PlannedModule*>& modules) const;
  /// Shows the input x [N, features] of `modules` to these scales.
  void observe(const std::vector<const PlannedModule*>& modules, const at::Tensor& x);
  /// Widens these scales to what they were shown on any rank.
  void agree(const std::vector<const PlannedModule*>& modules, Comm& comm);
  /// The input x of `modules`, which share it, as they see it: rounded if the plan rounds it.
  at::Tensor seen(const std::vector<const PlannedModule*>& modules, const at::Tensor& x) const;
  /// A module's scale for all tokens; 1 if it has none.
  float global(const PlannedModule& module) const;

 private:
  const Layer& layer_;
  std::map<const PlannedModule*, std::shared_ptr<ActivationRounder>> rounders_;
};

}  // namespace aqhost
