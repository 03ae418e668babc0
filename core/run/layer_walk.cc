#include "run/layer_walk.h"

#include <algorithm>
#include <memory>
#include <set>

#include "base/error.h"
#include "forward/batches.h"
#include "run/token_rows.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

at::Tensor rows_of(const at::Tensor& x) { return x.flatten(0, 1); }

bool is_attention(const Module& m) {
  const int32_t role = m.key.role;
  return m.key.expert == AQ_EXPERT_NONE && (role < AQ_ROLE_FFN_NORM || role >= AQ_ROLE_DELTA_QKV);
}

using PlannedByKey = std::map<std::pair<int32_t, int32_t>, const PlannedModule*>;

PlannedByKey modules_of(const Plan& plan, int32_t layer) {
  PlannedByKey modules;
  for (const PlannedModule& m : plan.modules)
    if (m.format && m.module->key.layer == layer)
      modules[{m.module->key.role, m.module->key.expert}] = &m;
  return modules;
}

/// Adds y to a part of hidden states that may be in the host's memory while y is on a GPU.
void add_to(const at::Tensor& states, const at::Tensor& y) {
  states.add_(moved_to(y, states.device()));
}

std::vector<const PlannedModule*> values_of(const PlannedByKey& modules) {
  std::vector<const PlannedModule*> values;
  for (const auto& [key, m] : modules) values.push_back(m);
  return values;
}

}  // namespace

LayerWalk::LayerWalk(const Plan& plan, int32_t index, Layer& layer, int64_t chunk_bytes,
                     int64_t room, Comm& comm, SolutionSink sink, PhaseTimer& timer)
    : LayerWalk(plan, index, layer, chunk_bytes, room, comm,
                std::make_unique<Solver>(plan.settings, comm, fmt::format("layer {}", index),
                                         std::move(sink), timer),
                timer) {}

LayerWalk::LayerWalk(const Plan& plan, int32_t index, Layer& layer, int64_t chunk_bytes,
                     int64_t room, Comm& comm, std::unique_ptr<TaskSolver> solver,
                     PhaseTimer& timer)
    : plan_(plan),
      index_(index),
      layer_(layer),
      chunk_bytes_(chunk_bytes),
      room_(room),
      comm_(comm),
      timer_(timer),
      modules_(modules_of(plan, index)),
      rounding_(values_of(modules_), layer),
      solver_(std::move(solver)) {}

void LayerWalk::run(at::Tensor& x, at::Tensor& original, const at::Tensor& before) {
  timer_.begin("calibrate");
  comm_.station(fmt::format("layer {}: forward", index_));
  at::Tensor counts = at::tensor({x.size(0), original.defined() ? original.size(0) : 0}, at::kLong);
  comm_.sum(counts);
  const auto windows = counts[0].item<int64_t>(), originals = counts[1].item<int64_t>();
  all_tokens_ = windows * x.size(1);
  if (originals > 0) shift_scale_ = static_cast<double>(windows) / static_cast<double>(originals);
  attention(x, original);
  ffn(ffn_states(x), ffn_states(original));
  input_hessians_.clear();
  solver_->wait();
  if (plan_.settings.sequential) return;
  for (const NewWeight& weight : pending_) layer_.set_weight(*weight.module, weight.values);
  pending_.clear();
  for_window_batches(x, [&](int64_t begin, int64_t count) {
    const at::Tensor out = layer_.forward(moved_to(before.narrow(0, begin, count), device()));
    x.narrow(0, begin, count).copy_(moved_to(out, x.device()));
  });
}

/// The FFN's input for hidden states x; all undefined if x is undefined.
LayerWalk::FfnStates LayerWalk::ffn_states(const at::Tensor& x) const {
  if (!x.defined()) return {};
  FfnStates states;
  states.input = at::empty({x.size(0) * x.size(1), x.size(2)}, layer_.options());
  states.sum = rows_of(x);
  for_window_batches(x, [&](int64_t begin, int64_t count) {
    states.input.narrow(0, begin * x.size(1), count * x.size(1))
        .copy_(rows_of(layer_.ffn_input(moved_to(x.narrow(0, begin, count), device()))));
  });
  return states;
}

/// Solves the linear maps of described attention stage by stage, and adds its output to both
/// states.
void LayerWalk::attention(at::Tensor& x, at::Tensor& original) {
  if (layer_.has_custom_attention()) return custom_attention(x, original);
  const auto& stages = layer_.attention_stages();
  // of each batch; those of the original model, which its own weights give, also of each stage
  std::vector<Attention::Tensors> current;
  std::vector<std::vector<Attention::Tensors>> before(stages.size());
  const auto input_of = [&](const at::Tensor& part) {
    return layer_.attention_input(moved_to(part, device()));
  };
  const auto add_output = [&](at::Tensor& states, std::vector<Attention::Tensors>& contexts) {
    std::size_t next = 0;
    for_window_batches(states, [&](int64_t begin, int64_t count) {
      add_to(states.narrow(0, begin, count), layer_.attention_output(contexts[next].front()));
      contexts[next++].clear();
    });
  };
  for (std::size_t stage = 0; stage < stages.size(); stage++) {
    const bool last = stage + 1 == stages.size();
    std::vector<Modules> modules;  // by their input
    for (const std::vector<int32_t>& roles : stages[stage])
      modules.push_back(planned(roles, AQ_EXPERT_NONE));
    observe_stage(x, modules, current);
    std::vector<Hessian> hessians;
    for (const Modules& m : modules)
      hessians.emplace_back(m.empty() ? 0 : m.front()->module->in_features, device());
    std::size_t batch = 0;
    for_window_batches(x, [&](int64_t begin, int64_t count) {
      Attention::Tensors old;
      if (stage > 0) {
        if (batch < before[stage].size()) old = before[stage][batch];
      } else if (at::Tensor part = rows_or_none(original, begin, count); part.defined()) {
        old = {input_of(part)};
        Attention::Tensors next = old;
        for (std::size_t s = 0; s + 1 < stages.size(); s++) {
          next = layer_.attention_advance(s, std::move(next));
          before[s + 1].push_back(next);
        }
      }
      for (std::size_t i = 0; i < modules.size(); i++) {
        if (modules[i].empty()) continue;
        const at::Tensor input =
            stage > 0 ? current[batch][i] : input_of(x.narrow(0, begin, count));
        add_inputs(hessians[i], rounding_.seen(modules[i], rows_of(input)), {},
                   old.empty() ? at::Tensor() : rows_of(old[i]));
      }
      batch++;
    });
    if (!last) before[stage].clear();
    if (last && original.defined()) add_output(original, before[stage]);
    for (std::size_t i = 0; i < modules.size(); i++) solve_one(modules[i], std::move(hessians[i]));
    if (last) break;
    batch = 0;
    for_window_batches(x, [&](int64_t begin, int64_t count) {
      if (stage == 0)
        current.push_back(layer_.attention_advance(0, {input_of(x.narrow(0, begin, count))}));
      else
        current[batch] = layer_.attention_advance(stage, std::move(current[batch]));
      batch++;
    });
  }
  add_output(x, current);
}

/// Lets the rounding observe the inputs of a stage's modules, which are those of `current`, or in
/// the first stage the normed hidden states.
void LayerWalk::observe_stage(const at::Tensor& x, const std::vector<Modules>& modules,
                              const std::vector<Attention::Tensors>& current) {
  for (std::size_t i = 0; i < modules.size(); i++) {
    if (InputRounding::observed(modules[i])) {
      for (const Attention::Tensors& tensors : current)
        rounding_.observe(modules[i], rows_of(tensors[i]));
      if (current.empty())
        for_window_batches(x, [&](int64_t begin, int64_t count) {
          const at::Tensor part = moved_to(x.narrow(0, begin, count), device());
          rounding_.observe(modules[i], rows_of(layer_.attention_input(part)));
        });
    }
    rounding_.agree(modules[i], comm_);
  }
}

/// Handles attention that only the adapter knows: each stage's inputs are recorded while the
/// attention runs. Its modules are solved without a shift.
void LayerWalk::custom_attention(at::Tensor& x, at::Tensor& original) {
  const auto add_output = [&](at::Tensor& states) {
    for_window_batches(states, [&](int64_t begin, int64_t count) {
      const at::Tensor batch = states.narrow(0, begin, count);
      add_to(batch, layer_.attention(layer_.attention_input(moved_to(batch, device()))));
    });
  };
  if (original.defined()) add_output(original);
  std::set<int32_t> stages;
  for (const auto& [key, m] : modules_)
    if (is_attention(*m->module)) stages.insert(m->module->stage);
  for (const int32_t stage : stages) custom_attention_stage(x, stage);
  add_output(x);
}

void LayerWalk::custom_attention_stage(const at::Tensor& x, int32_t stage) {
  std::map<int32_t, Modules> groups;
  for (const auto& [key, m] : modules_)
    if (is_attention(*m->module) && m->module->stage == stage)
      groups[m->module->input_group].push_back(m);
  const auto each_input = [&](const auto& take) {
    const LinearTap tap = [&](const Module& module, const at::Tensor& input) {
      const auto group = groups.find(module.input_group);
      if (group == groups.end() || group->second.front()->module != &module) return;
      take(group->second, input);
    };
    for_window_batches(x, [&](int64_t begin, int64_t count) {
      layer_.attention(layer_.attention_input(moved_to(x.narrow(0, begin, count), device())), tap);
    });
  };
  if (std::any_of(groups.begin(), groups.end(),
                  [](const auto& group) { return InputRounding::observed(group.second); }))
    each_input(
        [&](const Modules& shared, const at::Tensor& input) { rounding_.observe(shared, input); });
  for (const auto& [group, modules] : groups) rounding_.agree(modules, comm_);
  std::map<int32_t, Hessian> hessians;
  each_input([&](const Modules& shared, const at::Tensor& input) {
    const Module& module = *shared.front()->module;
    hessians.try_emplace(module.input_group, module.in_features, device())
        .first->second.add(rounding_.seen(shared, input), {});
  });
  for (auto& [group, modules] : groups) {
    const auto hessian = hessians.find(group);
    if (hessian == hessians.end())
      fail("{} was never applied by the adapter's attention", modules.front()->module->name);
    solve_one(modules, std::move(hessian->second));
  }
}

/// Adds a batch of tokens to a Hessian. `original` has the inputs of the first of these tokens in
/// the original model, or is undefined.
void LayerWalk::add_inputs(Hessian& hessian, const at::Tensor& x, const at::Tensor& weights,
                           const at::Tensor& original) const {
  hessian.add(x, weights);
  if (!original.defined()) return;
  const int64_t n = original.size(0);
  hessian.add_shift(x.narrow(0, 0, n), rows_or_none(weights, 0, n), original, shift_scale_);
}

void LayerWalk::ffn(FfnStates quantized, FfnStates original) {
  if (layer_.ffn_desc().kind == AQ_FFN_DENSE) return dense_ffn(AQ_EXPERT_NONE, quantized, original);
  const bool shared = layer_.ffn_desc().shared_size > 0;
  std::vector<ExpertTokens> routed_original;  // by the original router
  if (original.input.defined()) {
    routed_original = route(original.input);
    if (shared) original.shared_gate = layer_.shared_weight(original.input);
  }
  const auto routers = planned({AQ_ROLE_ROUTER, AQ_ROLE_SHARED_ROUTER}, AQ_EXPERT_NONE);
  if (!routers.empty()) {
    rounding_.observe(routers, quantized.input);
    rounding_.agree(routers, comm_);
    solve_one(routers, input_hessian(routers, quantized.input));
  }
  if (shared) {
    quantized.shared_gate = layer_.shared_weight(quantized.input);
    dense_ffn(AQ_EXPERT_SHARED, quantized, original);
  }
  routed_experts(routed_original, quantized, original);
}

/// Solves a dense or shared FFN: gate and up first, then down; then adds its output, times the
/// shared experts' gate if there is one.
void LayerWalk::dense_ffn(int32_t expert, const FfnStates& quantized, const FfnStates& original) {
  const int64_t total = quantized.input.size(0);
  const auto add_output = [&](const FfnStates& states, const at::Tensor& h, int64_t begin) {
    at::Tensor y = layer_.ffn_output(expert, h).to(states.sum.scalar_type());
    if (states.shared_gate.defined()) y.mul_(states.shared_gate.narrow(0, begin, h.size(0)));
    add_to(states.sum.narrow(0, begin, h.size(0)), y);
  };
  const auto collect = [&](const Modules& modules, const auto& inputs) {
    Hessian hessian(modules.empty() ? 0 : modules.front()->module->in_features,
                    quantized.input.device());
    at::Tensor s;
    if (!modules.empty() && quantized.shared_gate.defined())
      s = to_power(quantized.shared_gate.squeeze(1), modules.front()->recipe.routing_power);
    if (InputRounding::observed(modules))
      for_batches(total, kBatchTokens, [&](int64_t begin, int64_t count) {
        rounding_.observe(modules, inputs(begin, count).first);
      });
    rounding_.agree(modules, comm_);
    for_batches(total, kBatchTokens, [&](int64_t begin, int64_t count) {
      const auto [x, x0] = inputs(begin, count);
      if (modules.empty()) return;
      add_inputs(hessian, rounding_.seen(modules, x), rows_or_none(s, begin, count), x0);
    });
    solve_one(modules, std::move(hessian));
  };
  using Pair = std::pair<at::Tensor, at::Tensor>;
  const GluWeights before =
      original.input.defined() ? layer_.glu_weights(expert).clone() : GluWeights();
  collect(planned({AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP}, expert), [&](int64_t begin, int64_t count) {
    return Pair{quantized.input.narrow(0, begin, count),
                rows_or_none(original.input, begin, count)};
  });
  collect(planned({AQ_ROLE_FFN_DOWN}, expert), [&](int64_t begin, int64_t count) {
    Pair hidden;
    hidden.first = layer_.ffn_hidden(expert, quantized.input.narrow(0, begin, count));
    hidden.second = rows_or_none(original.input, begin, count);
    if (!hidden.second.defined()) return hidden;
    hidden.second = layer_.ffn_hidden(before, hidden.second);
    add_output(original, hidden.second, begin);
    return hidden;
  });
  for_batches(total, kBatchTokens, [&](int64_t begin, int64_t count) {
    add_output(quantized, layer_.ffn_hidden(expert, quantized.input.narrow(0, begin, count)),
               begin);
  });
}

SolveGroup LayerWalk::group_of(const Modules& modules, Hessian hessian) const {
  SolveGroup group{{}, std::move(hessian)};
  for (const PlannedModule* m : modules)
    group.members.push_back({m, layer_.weight(*m->module), rounding_.global(*m)});
  return group;
}

void LayerWalk::solve_one(const Modules& modules, Hessian hessian) {
  if (modules.empty()) return;
  SolveTask task{{}, room_};
  task.groups.push_back(group_of(modules, std::move(hessian)));
  solve(std::move(task));
}

/// Solves a task. The layer gets the new weights at once, or at its end if stages are not
/// sequential.
void LayerWalk::solve(SolveTask task) {
  for (NewWeight& weight : solver_->solve(std::move(task))) {
    if (plan_.settings.sequential) {
      layer_.set_weight(*weight.module, weight.values);
    } else {
      weight.values = weight.values.clone();
      pending_.push_back(std::move(weight));
    }
  }
}

const Hessian& LayerWalk::input_hessian(const Modules& modules, const at::Tensor& f) {
  const std::lock_guard lock(input_hessians_mutex_);
  const auto [it, added] =
      input_hessians_.try_emplace(modules.front()->activations.get(), f.size(1), f.device());
  Hessian& hessian = it->second;  // clang with OpenMP captures no structured binding
  if (added)
    for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
      hessian.add(rounding_.seen(modules, f.narrow(0, begin, count)), {});
    });
  return hessian;
}

LayerWalk::Modules LayerWalk::planned(const std::vector<int32_t>& roles, int32_t expert) const {
  Modules found;
  for (const int32_t role : roles)
    if (const auto it = modules_.find({role, expert}); it != modules_.end())
      found.push_back(it->second);
  return found;
}

}  // namespace aqhost
