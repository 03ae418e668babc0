#include "run/input_rounding.h"

#include <algorithm>
#include <set>
#include <tuple>

namespace aqhost {

InputRounding::InputRounding(const std::vector<const PlannedModule*>& modules, Layer& layer)
    : layer_(layer) {
  using Input = std::tuple<bool, int32_t, int32_t, const Format*>;
  std::map<Input, std::shared_ptr<ActivationRounder>> known;
  for (const PlannedModule* m : modules) {
    if (!m->activations) continue;
    const aq_tensor_key& key = m->module->key;
    const Format* format = m->activations.get();
    const Input routed{true, fused_role(key.role), 0, format};
    const Input other{false, m->module->input_group, key.expert, format};
    auto& rounder = known[key.expert >= 0 ? routed : other];
    if (!rounder) rounder = std::make_shared<ActivationRounder>(m->activations);
    rounders_[m] = rounder;
    layer.set_input_rounding(*m->module, [rounder](const at::Tensor& x) { return (*rounder)(x); });
  }
}

bool InputRounding::observed(const std::vector<const PlannedModule*>& modules) {
  return std::any_of(modules.begin(), modules.end(),
                     [](const PlannedModule* m) { return m->observes_input(); });
}

bool InputRounding::unobserved(const std::vector<const PlannedModule*>& modules) const {
  return std::any_of(modules.begin(), modules.end(), [&](const PlannedModule* m) {
    return m->observes_input() && !rounders_.at(m)->observed();
  });
}

void InputRounding::observe(const std::vector<const PlannedModule*>& modules, const at::Tensor& x) {
  std::set<ActivationRounder*> rounders;
  for (const PlannedModule* m : modules)
    if (m->observes_input()) rounders.insert(rounders_.at(m).get());
  for (ActivationRounder* rounder : rounders) rounder->observe(x);
}

void InputRounding::agree(const std::vector<const PlannedModule*>& modules, Comm& comm) {
  if (comm.size() == 1 || !observed(modules)) return;
  std::vector<ActivationRounder*> rounders;  // in the same order on all ranks
  for (const PlannedModule* m : modules)
    if (m->observes_input()) rounders.push_back(rounders_.at(m).get());
  const auto count = static_cast<int64_t>(rounders.size());
  at::Tensor maxima = at::empty({count}, at::kDouble);
  auto values = maxima.accessor<double, 1>();
  for (int64_t i = 0; i < count; i++)
    values[i] = static_cast<double>(rounders[static_cast<std::size_t>(i)]->absmax());
  comm.maximum(maxima);
  for (int64_t i = 0; i < count; i++)
    rounders[static_cast<std::size_t>(i)]->widen(static_cast<float>(values[i]));
}

at::Tensor InputRounding::seen(const std::vector<const PlannedModule*>& modules,
                               const at::Tensor& x) const {
  return layer_.rounded_input(*modules.front()->module, x);
}

float InputRounding::global(const PlannedModule& module) const {
  return module.activations ? rounders_.at(&module)->global() : 1;
}

}  // namespace aqhost
