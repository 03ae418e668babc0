#include "pipeline/input_rounding.h"

#include <algorithm>
#include <tuple>

namespace aqhost {

InputRounding::InputRounding(const std::vector<const PlannedModule*>& modules, Layer& layer)
    : layer_(layer) {
  std::map<std::tuple<int32_t, int32_t, const Format*>, std::shared_ptr<ActivationRounder>> known;
  for (const PlannedModule* m : modules) {
    if (!m->activations) continue;
    const aq_tensor_key& key = m->module->key;
    auto& rounder = known[{fused_role(key.role), key.expert, m->activations.get()}];
    if (!rounder) rounder = std::make_shared<ActivationRounder>(m->activations);
    rounders_[m] = rounder;
    layer.set_input_rounding(*m->module, [rounder](const at::Tensor& x) { return (*rounder)(x); });
  }
}

bool InputRounding::observed(const std::vector<const PlannedModule*>& modules) {
  return std::any_of(modules.begin(), modules.end(),
                     [](const PlannedModule* m) { return m->observes_input(); });
}

void InputRounding::observe(const std::vector<const PlannedModule*>& modules, const at::Tensor& x) {
  for (const PlannedModule* m : modules)
    if (m->observes_input()) rounders_.at(m)->observe(x);
}

at::Tensor InputRounding::seen(const std::vector<const PlannedModule*>& modules,
                               const at::Tensor& x) const {
  return layer_.rounded_input(*modules.front()->module, x);
}

float InputRounding::global(const PlannedModule& module) const {
  return module.activations ? rounders_.at(&module)->global() : 1;
}

}  // namespace aqhost
