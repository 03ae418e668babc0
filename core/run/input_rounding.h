#pragma once

#include <ATen/ATen.h>

#include <map>
#include <memory>
#include <vector>

#include "forward/layer.h"
#include "plan/plan.h"
#include "quant/activations.h"

namespace aqhost {

/// The rounding of a layer's inputs that a recipe asks for (aq). Modules that share an input share
/// it; and all routed experts of the layer share one scale for all tokens of gate and up, and one
/// of down, as engines run them together and have one for all. One thread.
class InputRounding {
 public:
  /// Has every one of `modules` that is planned so round its input in `layer`.
  InputRounding(const std::vector<const PlannedModule*>& modules, Layer& layer);

  /// Whether the input of one of `modules` has a scale for all tokens.
  static bool observed(const std::vector<const PlannedModule*>& modules);
  /// Whether such a scale has seen nothing but zeros so far.
  bool unobserved(const std::vector<const PlannedModule*>& modules) const;
  /// Shows x [N, features] to such scales.
  void observe(const std::vector<const PlannedModule*>& modules, const at::Tensor& x);
  /// x as `modules`, which share it, see it, rounded or not.
  at::Tensor seen(const std::vector<const PlannedModule*>& modules, const at::Tensor& x) const;
  /// A module's scale for all tokens; 1 where it has none.
  float global(const PlannedModule& module) const;

 private:
  const Layer& layer_;
  std::map<const PlannedModule*, std::shared_ptr<ActivationRounder>> rounders_;
};

}  // namespace aqhost
