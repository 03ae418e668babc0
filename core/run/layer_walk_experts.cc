// LayerWalk: the routed experts of a layer.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "base/interrupt.h"
#include "forward/batches.h"
#include "forward/fused.h"
#include "run/layer_walk.h"
#include "run/token_rows.h"

namespace aqhost {
namespace {

/// sums[rows[i]] += weights[i] y[i], in float32. All `rows` are different.
void add_weighted_rows(at::Tensor sums, const at::Tensor& rows, const at::Tensor& weights,
                       const at::Tensor& y) {
  if (can_fuse(y)) return fused_add_rows(sums, rows, weights, y);
  sums.index_add_(0, rows, y.to(sums.scalar_type()).mul_(weights.unsqueeze(1)));
}

/// The positions in a and in b of the numbers that both contain. All are [n] i64 in rising order.
std::pair<at::Tensor, at::Tensor> common_positions(const at::Tensor& a, const at::Tensor& b) {
  if (b.size(0) == 0) return {b, b};
  const at::Tensor place = at::searchsorted(b, a).clamp_max_(b.size(0) - 1);
  const at::Tensor in_a = (b.index_select(0, place) == a).nonzero().squeeze(1);
  return {in_a, place.index_select(0, in_a)};
}

}  // namespace

std::vector<ExpertTokens> LayerWalk::route(const at::Tensor& f) const {
  std::vector<at::Tensor> ids, weights;
  for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
    const Routing routing = layer_.route(f.narrow(0, begin, count));
    ids.push_back(routing.ids);
    weights.push_back(routing.weights);
  });
  return tokens_by_expert({{}, at::cat(ids), at::cat(weights)}, layer_.ffn_desc().n_experts);
}

void LayerWalk::routed_experts(const std::vector<ExpertTokens>& routed_original,
                               const FfnStates& quantized, const FfnStates& original) {
  const std::vector<ExpertTokens> routed = route(quantized.input);
  count_tokens(routed);
  const auto all_down = planned_in_experts({AQ_ROLE_FFN_DOWN});
  const auto all_gate_up = planned_in_experts({AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP});
  if (InputRounding::observed(all_gate_up))
    for_batches(quantized.input.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
      rounding_.observe(all_gate_up, quantized.input.narrow(0, begin, count));
    });
  rounding_.agree(all_gate_up, comm_);
  const std::vector<Chunk> chunks = chunks_of(routed, quantized, original);
  std::vector<ExpertInput> inputs(routed.size());
  // a scale that all down projections share for their inputs is known when every gate and up
  // projection is solved
  const bool two_passes = InputRounding::observed(all_down);
  for (const Chunk& chunk : chunks) {
    gate_and_up(chunk, routed, routed_original, quantized, original, inputs);
    if (!two_passes) down(chunk, routed, quantized, inputs);
  }
  if (!two_passes) return;
  observe_hidden(routed, quantized.input);
  for (const Chunk& chunk : chunks) down(chunk, routed, quantized, inputs);
}

void LayerWalk::count_tokens(const std::vector<ExpertTokens>& routed) {
  const auto experts = static_cast<int64_t>(routed.size());
  at::Tensor counts = at::empty({experts}, at::kLong), sums = at::empty({experts}, at::kDouble);
  for (int64_t e = 0; e < experts; e++) {
    const ExpertTokens& mine = routed[static_cast<std::size_t>(e)];
    counts[e] = mine.rows.size(0);
    sums[e] = mine.weights.sum(at::kDouble).cpu();
  }
  comm_.sum(counts);
  comm_.sum(sums);
  int64_t tokens = 0;
  double weights = 0;
  for (int64_t e = 0; e < experts; e++) {
    coverage_.push_back(
        {index_, static_cast<int32_t>(e), counts[e].item<int64_t>(), sums[e].item<double>()});
    tokens += coverage_.back().tokens;
    weights += coverage_.back().weight;
  }
  mean_routing_weight_ = tokens > 0 ? weights / static_cast<double>(tokens) : 1;
}

/// Divides the experts into chunks, each with as many experts as the memory for them allows, at
/// least one.
std::vector<LayerWalk::Chunk> LayerWalk::chunks_of(const std::vector<ExpertTokens>& routed,
                                                   const FfnStates& quantized,
                                                   const FfnStates& original) const {
  // What one expert takes on every rank: the input of its down projection for each model that runs,
  // and the larger Hessian and its shift. What it takes on the rank that solves it: Hessian and
  // shift stacked, damped and factored, and its weights, their targets, values and gradients.
  const FfnDesc& desc = layer_.ffn_desc();
  const int64_t d = quantized.input.size(1), inner = desc.inner_size,
                models = original.input.defined() ? 2 : 1;
  const int64_t widest = std::max(d, inner), sums = 8 * widest * widest,
                solving = (20 * widest * widest + 120 * d * inner) / comm_.size();
  at::Tensor counts = at::empty({desc.n_experts}, at::kLong);
  for (int32_t e = 0; e < desc.n_experts; e++)
    counts[e] = routed[static_cast<std::size_t>(e)].rows.size(0);
  comm_.maximum(counts);  // all ranks must make the same chunks
  const auto bytes = [&](int32_t e) {
    const auto tokens = counts[e].item<int64_t>();
    return sums + solving + models * tokens * inner * quantized.input.element_size();
  };
  const int32_t ranks = comm_.size();
  std::vector<Chunk> chunks;
  for (int32_t begin = 0, end = 0; begin < desc.n_experts; begin = end) {
    int64_t kept = bytes(end++);
    while (end < desc.n_experts && kept + bytes(end) <= chunk_bytes_) kept += bytes(end++);
    // every rank solves equally many of them
    if (end < desc.n_experts && end - begin > ranks) end -= (end - begin) % ranks;
    chunks.push_back({begin, end});
  }
  return chunks;
}

void LayerWalk::add_expert_output(const FfnStates& states, const ExpertTokens& tokens,
                                  int32_t expert, const at::Tensor& hidden) const {
  for_row_blocks(hidden, [&](int64_t first, int64_t n) {
    add_weighted_rows(states.sum, tokens.rows.narrow(0, first, n),
                      tokens.weights.narrow(0, first, n),
                      layer_.ffn_output(expert, hidden.narrow(0, first, n)));
  });
}

/// Solves the gate and up projections of a chunk, and stores in `inputs` what down() needs.
void LayerWalk::gate_and_up(const Chunk& chunk, const std::vector<ExpertTokens>& routed,
                            const std::vector<ExpertTokens>& routed_original,
                            const FfnStates& quantized, const FfnStates& original,
                            std::vector<ExpertInput>& inputs) {
  SolveTask task;
  for (int32_t e = chunk.begin; e < chunk.end; e++) {
    check_interrupt();
    const ExpertTokens& mine = routed[static_cast<std::size_t>(e)];
    ExpertInput input{{quantized.input, mine.rows}, {}, {}, {}};
    at::Tensor hidden;  // in the original model
    if (original.input.defined()) {
      const ExpertTokens& before = routed_original[static_cast<std::size_t>(e)];
      std::tie(input.in_quantized, input.in_original) = common_positions(mine.rows, before.rows);
      input.original = {original.input, before.rows};
      hidden = expert_hidden(e, input.original);
      add_expert_output(original, before, e, hidden);
    }
    const auto modules = planned({AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP}, e);
    add_expert(task, modules, input, mine.weights,
               [&] { return input_hessian(modules, quantized.input); });
    input.original = {hidden, {}};
    inputs[static_cast<std::size_t>(e)] = std::move(input);
  }
  solve(std::move(task));
}

/// Solves the down projections of a chunk and adds its experts' outputs.
void LayerWalk::down(const Chunk& chunk, const std::vector<ExpertTokens>& routed,
                     const FfnStates& quantized, std::vector<ExpertInput>& inputs) {
  SolveTask task;
  for (int32_t e = chunk.begin; e < chunk.end; e++) {
    check_interrupt();
    ExpertInput& input = inputs[static_cast<std::size_t>(e)];
    input.quantized = {expert_hidden(e, input.quantized), {}};
    const auto modules = planned({AQ_ROLE_FFN_DOWN}, e);
    add_expert(task, modules, input, routed[static_cast<std::size_t>(e)].weights,
               [&] { return hidden_hessian(modules, e, quantized.input); });
    input.original = {};
  }
  solve(std::move(task));
  for (int32_t e = chunk.begin; e < chunk.end; e++) {
    ExpertInput& input = inputs[static_cast<std::size_t>(e)];
    add_expert_output(quantized, routed[static_cast<std::size_t>(e)], e, input.quantized.from);
    input = {};
  }
}

/// Lets the rounding observe the inputs of all experts' down projections. For an expert without
/// tokens, it observes what tokens that are routed to other experts would give.
void LayerWalk::observe_hidden(const std::vector<ExpertTokens>& routed, const at::Tensor& f) {
  const auto observe = [&](int32_t e, const SelectedRows& rows) {
    for_batches(rows.size(), kBatchTokens, [&](int64_t begin, int64_t count) {
      rounding_.observe(planned({AQ_ROLE_FFN_DOWN}, e),
                        layer_.ffn_hidden(e, rows.part(begin, count)));
    });
  };
  const int32_t count = layer_.ffn_desc().n_experts;
  for (int32_t e = 0; e < count; e++)
    if (InputRounding::observed(planned({AQ_ROLE_FFN_DOWN}, e)))
      observe(e, {f, routed[static_cast<std::size_t>(e)].rows});
  const auto all_down = planned_in_experts({AQ_ROLE_FFN_DOWN});
  rounding_.agree(all_down, comm_);
  for (int32_t e = 0; e < count; e++)
    if (rounding_.unobserved(planned({AQ_ROLE_FFN_DOWN}, e)))
      observe(e, {f.narrow(0, 0, std::min(f.size(0), kBatchTokens)), {}});
  rounding_.agree(all_down, comm_);
}

/// The input of an expert's down projection, for those rows of the FFN's input that are routed to
/// the expert.
at::Tensor LayerWalk::expert_hidden(int32_t expert, const SelectedRows& f) const {
  at::Tensor hidden = at::empty({f.size(), layer_.ffn_desc().inner_size}, layer_.options());
  for_row_blocks(hidden, [&](int64_t begin, int64_t count) {
    hidden.narrow(0, begin, count).copy_(layer_.ffn_hidden(expert, f.part(begin, count)));
  });
  return hidden;
}

/// Adds to the task an expert's modules with the Hessian of its own tokens. If those are too few,
/// the Hessian of all tokens of the layer is mixed in.
void LayerWalk::add_expert(SolveTask& task, const Modules& modules, const ExpertInput& input,
                           const at::Tensor& routing_weights,
                           const std::function<Hessian()>& all_tokens) {
  if (modules.empty()) return;
  const int64_t tokens = input.quantized.size();
  const int64_t features = modules.front()->module->in_features;
  const double power = modules.front()->recipe.routing_power;
  const at::Tensor s = to_power(routing_weights, power);
  Hessian own(features, input.quantized.from.device());
  for_batches(tokens, kBatchTokens, [&](int64_t begin, int64_t count) {
    own.add(rounding_.seen(modules, input.quantized.part(begin, count)),
            rows_or_none(s, begin, count));
  });
  const int64_t shifted = input.in_quantized.defined() ? input.in_quantized.size(0) : 0;
  for_batches(shifted, kBatchTokens, [&](int64_t begin, int64_t count) {
    const at::Tensor at = input.in_quantized.narrow(0, begin, count);
    own.add_shift(input.quantized.at(at), s.defined() ? s.index_select(0, at) : s,
                  input.original.at(input.in_original.narrow(0, begin, count)), shift_scale_);
  });
  const int64_t needed = plan_.settings.min_tokens.value_or(features / 2);
  // the tokens of this expert on all ranks
  const int32_t expert = modules.front()->module->key.expert;
  const int64_t own_tokens = coverage_[static_cast<std::size_t>(expert)].tokens;
  if (plan_.settings.calibrate_all_experts) {
    task.groups.push_back(group_of(modules, all_tokens()));
    return;
  }
  task.groups.push_back(group_of(modules, own));
  if (own_tokens >= needed) return;
  SolveGroup& group = task.groups.back();
  group.starved = true;
  starved_.insert(expert);
  group.hessian = Hessian::mix(own, all_tokens(),
                               Hessian::share_of_all(own_tokens, all_tokens_, needed,
                                                     std::pow(mean_routing_weight_, power)));
}

/// The Hessian at the input of one expert's down projection, if all tokens are run through the
/// expert.
Hessian LayerWalk::hidden_hessian(const Modules& modules, int32_t expert,
                                  const at::Tensor& f) const {
  Hessian hessian(layer_.ffn_desc().inner_size, f.device());
  for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
    hessian.add(rounding_.seen(modules, layer_.ffn_hidden(expert, f.narrow(0, begin, count))), {});
  });
  return hessian;
}

LayerWalk::Modules LayerWalk::planned_in_experts(std::initializer_list<int32_t> roles) const {
  Modules found;
  for (int32_t e = 0; e < layer_.ffn_desc().n_experts; e++)
    for (const PlannedModule* m : planned(roles, e)) found.push_back(m);
  return found;
}

}  // namespace aqhost
