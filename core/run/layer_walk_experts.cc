// LayerWalk: the routed experts of a layer.
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <future>
#include <numeric>
#include <tuple>

#include "base/interrupt.h"
#include "forward/batches.h"
#include "forward/fused.h"
#include "run/beside.h"
#include "run/layer_walk.h"
#include "run/token_rows.h"
#include "tensor/device.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

/// sums[rows[i]] += weights[i] y[i], in float32. All `rows` are different. `sums` may be in the
/// host's memory while all others are on a GPU. The result has the same bits then, because neither
/// the CPU nor the GPU fuses products with sums.
void add_weighted_rows(at::Tensor sums, const at::Tensor& rows, const at::Tensor& weights,
                       const at::Tensor& y) {
  const at::Tensor to = moved_to(rows, sums.device()), factors = moved_to(weights, sums.device()),
                   from = moved_to(y, sums.device());
  if (can_fuse(from)) return fused_add_rows(sums, to, factors, from);
  sums.index_add_(0, to, from.to(sums.scalar_type()).mul_(factors.unsqueeze(1)));
}

/// The numbers of tokens of all experts.
std::vector<int64_t> sizes_of(const std::vector<ExpertTokens>& routed) {
  std::vector<int64_t> sizes;
  for (const ExpertTokens& tokens : routed) sizes.push_back(tokens.rows.size(0));
  return sizes;
}

/// The places of all experts' tokens in one list.
struct Places {
  at::Tensor expert;  // [n] i64
  at::Tensor begin;   // [n_experts] i64: an expert's first place
  at::Tensor key;     // [n] i64, rising: expert and token as one number

  Places(const std::vector<ExpertTokens>& routed, int64_t tokens) {
    const std::vector<int64_t> sizes = sizes_of(routed);
    const auto device = routed.front().rows.device();
    const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    std::vector<at::Tensor> rows;
    for (const ExpertTokens& mine : routed) rows.push_back(mine.rows);
    const at::Tensor counts = at::tensor(sizes, at::kLong).to(device);
    begin = counts.cumsum(0) - counts;
    expert = at::repeat_interleave(counts, std::optional<int64_t>(total));
    key = at::cat(rows) + expert * tokens;
  }
};

/// For every expert, the positions in a[e] and in b[e] of the tokens that both contain: two tensors
/// [n] i64 in rising order. `tokens` is the number of all tokens. All experts are looked up at
/// once, because a GPU must be waited for to learn how many they are.
std::vector<std::pair<at::Tensor, at::Tensor>> common_positions(const std::vector<ExpertTokens>& a,
                                                                const std::vector<ExpertTokens>& b,
                                                                int64_t tokens) {
  const Places in_a(a, tokens), in_b(b, tokens);
  if (in_b.key.size(0) == 0) return {a.size(), {in_b.key, in_b.key}};
  const at::Tensor place = at::searchsorted(in_b.key, in_a.key).clamp_max_(in_b.key.size(0) - 1);
  const at::Tensor from_a = (in_b.key.index_select(0, place) == in_a.key).nonzero().squeeze(1);
  const at::Tensor from_b = place.index_select(0, from_a), e = in_a.expert.index_select(0, from_a);
  const at::Tensor position_a = from_a - in_a.begin.index_select(0, e);
  const at::Tensor position_b = from_b - in_b.begin.index_select(0, e);
  const at::Tensor counts = at::bincount(e, {}, static_cast<int64_t>(a.size())).cpu();
  std::vector<std::pair<at::Tensor, at::Tensor>> positions;
  int64_t begin = 0;
  for (const int64_t n : span_of<int64_t>(counts)) {
    positions.emplace_back(position_a.narrow(0, begin, n), position_b.narrow(0, begin, n));
    begin += n;
  }
  return positions;
}

}  // namespace

std::vector<ExpertTokens> LayerWalk::route(const at::Tensor& f) const {
  std::vector<at::Tensor> ids, weights;
  const int64_t at_once = token_rows_at_once(f.size(1) * int64_t{sizeof(float)}, f.device());
  for_batches(f.size(0), at_once, [&](int64_t begin, int64_t count) {
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
  if (original.input.defined()) {
    const auto common = common_positions(routed, routed_original, quantized.input.size(0));
    for (std::size_t e = 0; e < inputs.size(); e++)
      std::tie(inputs[e].in_quantized, inputs[e].in_original) = common[e];
  }
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
  at::Tensor counts = at::tensor(sizes_of(routed), at::kLong);
  std::vector<at::Tensor> expert_sums;
  for (const ExpertTokens& mine : routed) expert_sums.push_back(mine.weights.sum(at::kDouble));
  at::Tensor sums = at::stack(expert_sums).cpu();
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
                factoring = (quantized.input.is_cpu() ? 20 : 32) * widest * widest,
                solving = (factoring + 120 * d * inner) / comm_.size();
  at::Tensor counts = at::tensor(sizes_of(routed), at::kLong);
  comm_.maximum(counts);  // all ranks must make the same chunks
  const auto input_bytes = [&](int32_t e) {
    return models * counts[e].item<int64_t>() * inner * quantized.input.element_size();
  };
  const auto bytes = [&](int32_t e) { return sums + solving + input_bytes(e); };
  const int32_t ranks = comm_.size();
  std::vector<Chunk> chunks;
  for (int32_t begin = 0, end = 0; begin < desc.n_experts; begin = end) {
    int64_t kept = bytes(end++);
    while (end < desc.n_experts && kept + bytes(end) <= chunk_bytes_) kept += bytes(end++);
    // every rank solves equally many of them
    if (end < desc.n_experts && end - begin > ranks) end -= (end - begin) % ranks;
    int64_t room = room_;
    for (int32_t e = begin; e < end && room > 0; e++)
      room = std::max(room - input_bytes(e), int64_t{1});
    chunks.push_back({begin, end, room});
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

/// Calls body(expert) for the experts of a chunk, in any order. Starting the operations of one
/// expert takes a thread longer than a GPU needs to compute them, so on a GPU several threads do
/// so, all in the same stream.
template <typename Body>
void LayerWalk::for_experts(const Chunk& chunk, const Body& body) const {
  constexpr int kThreads = 4;
  if (!works_beside(device())) {
    for (int32_t e = chunk.begin; e < chunk.end; e++) {
      check_interrupt();
      body(e);
    }
    return;
  }
  std::atomic<int32_t> next = chunk.begin;
  const auto work = [&] {
    const c10::DeviceGuard guard(device());
    const at::NoGradGuard no_grad;  // every thread has a switch of its own
    for (int32_t e = next++; e < chunk.end; e = next++) {
      check_interrupt();
      body(e);
    }
  };
  std::vector<std::future<void>> others;
  for (int i = 1; i < kThreads; i++) others.push_back(std::async(std::launch::async, work));
  work();
  for (std::future<void>& other : others) other.get();
}

/// Solves the gate and up projections of a chunk, and stores in `inputs` what down() needs.
void LayerWalk::gate_and_up(const Chunk& chunk, const std::vector<ExpertTokens>& routed,
                            const std::vector<ExpertTokens>& routed_original,
                            const FfnStates& quantized, const FfnStates& original,
                            std::vector<ExpertInput>& inputs) {
  std::vector<std::optional<SolveGroup>> groups(static_cast<std::size_t>(chunk.size()));
  for_experts(chunk, [&](int32_t e) {
    const ExpertTokens& mine = routed[static_cast<std::size_t>(e)];
    ExpertInput& input = inputs[static_cast<std::size_t>(e)];
    input.quantized = {quantized.input, mine.rows};
    at::Tensor hidden;  // in the original model
    if (original.input.defined()) {
      input.original = {original.input, routed_original[static_cast<std::size_t>(e)].rows};
      hidden = expert_hidden(e, input.original);
    }
    const auto modules = planned({AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP}, e);
    groups[static_cast<std::size_t>(e - chunk.begin)] = group_of_expert(
        modules, input, mine.weights, [&] { return input_hessian(modules, quantized.input); });
    input.original = {hidden, {}};
  });
  if (original.input.defined())
    for (int32_t e = chunk.begin; e < chunk.end; e++)
      add_expert_output(original, routed_original[static_cast<std::size_t>(e)], e,
                        inputs[static_cast<std::size_t>(e)].original.from);
  solve_experts(chunk, std::move(groups));
}

/// Solves the down projections of a chunk and adds its experts' outputs.
void LayerWalk::down(const Chunk& chunk, const std::vector<ExpertTokens>& routed,
                     const FfnStates& quantized, std::vector<ExpertInput>& inputs) {
  std::vector<std::optional<SolveGroup>> groups(static_cast<std::size_t>(chunk.size()));
  for_experts(chunk, [&](int32_t e) {
    ExpertInput& input = inputs[static_cast<std::size_t>(e)];
    input.quantized = {expert_hidden(e, input.quantized), {}};
    const auto modules = planned({AQ_ROLE_FFN_DOWN}, e);
    groups[static_cast<std::size_t>(e - chunk.begin)] =
        group_of_expert(modules, input, routed[static_cast<std::size_t>(e)].weights,
                        [&] { return hidden_hessian(modules, e, quantized.input); });
    input.original = {};
  });
  solve_experts(chunk, std::move(groups));
  for (int32_t e = chunk.begin; e < chunk.end; e++) {
    ExpertInput& input = inputs[static_cast<std::size_t>(e)];
    add_expert_output(quantized, routed[static_cast<std::size_t>(e)], e, input.quantized.from);
    input = {};
  }
}

/// Solves the groups of a chunk's experts; an expert without planned modules has none.
void LayerWalk::solve_experts(const Chunk& chunk, std::vector<std::optional<SolveGroup>> groups) {
  SolveTask task{{}, chunk.room};
  for (std::optional<SolveGroup>& group : groups) {
    if (!group) continue;
    if (group->starved) starved_.insert(group->members.front().planned->module->key.expert);
    task.groups.push_back(std::move(*group));
  }
  solve(std::move(task));
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
  const int64_t inner = layer_.ffn_desc().inner_size;
  const int64_t row_bytes = inner * static_cast<int64_t>(layer_.options().dtype().itemsize());
  if (!device().is_cpu() && f.size() <= token_rows_at_once(row_bytes, device()))
    return layer_.ffn_hidden(expert, f.part(0, f.size()));  // in one part, which need not be copied
  at::Tensor hidden = at::empty({f.size(), inner}, layer_.options());
  for_row_blocks(hidden, [&](int64_t begin, int64_t count) {
    hidden.narrow(0, begin, count).copy_(layer_.ffn_hidden(expert, f.part(begin, count)));
  });
  return hidden;
}

/// An expert's modules with the Hessian of its own tokens. If those are too few, the Hessian of all
/// tokens of the layer is mixed in. Thread-safe.
std::optional<SolveGroup> LayerWalk::group_of_expert(const Modules& modules,
                                                     const ExpertInput& input,
                                                     const at::Tensor& routing_weights,
                                                     const std::function<Hessian()>& all_tokens) {
  if (modules.empty()) return std::nullopt;
  const int64_t tokens = input.quantized.size();
  const int64_t features = modules.front()->module->in_features;
  const double power = modules.front()->recipe.routing_power;
  const at::Tensor s = to_power(routing_weights, power);
  Hessian own(features, input.quantized.from.device());
  const int64_t at_once = token_rows_at_once(features * input.quantized.from.element_size(),
                                             input.quantized.from.device());
  for_batches(tokens, at_once, [&](int64_t begin, int64_t count) {
    own.add(rounding_.seen(modules, input.quantized.part(begin, count)),
            rows_or_none(s, begin, count));
  });
  const int64_t shifted = input.in_quantized.defined() ? input.in_quantized.size(0) : 0;
  for_batches(shifted, at_once, [&](int64_t begin, int64_t count) {
    const at::Tensor at = input.in_quantized.narrow(0, begin, count);
    own.add_shift(input.quantized.at(at), s.defined() ? s.index_select(0, at) : s,
                  input.original.at(input.in_original.narrow(0, begin, count)), shift_scale_);
  });
  const int64_t needed = plan_.settings.min_tokens.value_or(features / 2);
  // the tokens of this expert on all ranks
  const int32_t expert = modules.front()->module->key.expert;
  const int64_t own_tokens = coverage_[static_cast<std::size_t>(expert)].tokens;
  if (plan_.settings.calibrate_all_experts) return group_of(modules, all_tokens());
  SolveGroup group = group_of(modules, own);
  if (own_tokens >= needed) return group;
  group.starved = true;
  group.hessian = Hessian::mix(own, all_tokens(),
                               Hessian::share_of_all(own_tokens, all_tokens_, needed,
                                                     std::pow(mean_routing_weight_, power)));
  return group;
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
