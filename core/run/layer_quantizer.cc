#include "run/layer_quantizer.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/interrupt.h"
#include "forward/batches.h"
#include "forward/fused.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

at::Tensor rows_of(const at::Tensor& x) { return x.flatten(0, 1); }

bool is_attention(const Module& m) {
  return m.key.expert == AQ_EXPERT_NONE &&
         (m.key.role < AQ_ROLE_FFN_NORM || m.key.role >= AQ_ROLE_CUSTOM);
}

using PlannedByKey = std::map<std::pair<int32_t, int32_t>, const PlannedModule*>;

PlannedByKey modules_of(const Plan& plan, int32_t layer) {
  PlannedByKey modules;
  for (const PlannedModule& m : plan.modules)
    if (m.format && m.module->key.layer == layer)
      modules[{m.module->key.role, m.module->key.expert}] = &m;
  return modules;
}

std::vector<const PlannedModule*> values_of(const PlannedByKey& modules) {
  std::vector<const PlannedModule*> values;
  for (const auto& [key, m] : modules) values.push_back(m);
  return values;
}

/// s = c^p of each token; undefined (1) for p = 0.
at::Tensor to_power(const at::Tensor& weights, double power) {
  if (!weights.defined() || power == 0) return {};
  return power == 1 ? weights : weights.pow(power);
}

/// Those rows of [begin, begin + count) that there are; undefined if none.
at::Tensor rows_or_none(const at::Tensor& t, int64_t begin, int64_t count) {
  if (!t.defined() || begin >= t.size(0)) return {};
  return t.narrow(0, begin, std::min(count, t.size(0) - begin));
}

/// sums[rows[i]] += weights[i] y[i], in float32; no two rows are equal.
void add_weighted_rows(at::Tensor sums, const at::Tensor& rows, const at::Tensor& weights,
                       const at::Tensor& y) {
  if (can_fuse(y)) return fused_add_rows(sums, rows, weights, y);
  sums.index_add_(0, rows, y.to(sums.scalar_type()).mul_(weights.unsqueeze(1)));
}

/// Where the same number stands in both: positions in a and in b, both rising [n] i64.
std::pair<at::Tensor, at::Tensor> common(const at::Tensor& a, const at::Tensor& b) {
  if (b.size(0) == 0) return {b, b};
  const at::Tensor place = at::searchsorted(b, a).clamp_max_(b.size(0) - 1);
  const at::Tensor in_a = (b.index_select(0, place) == a).nonzero().squeeze(1);
  return {in_a, place.index_select(0, in_a)};
}

}  // namespace

LayerQuantizer::LayerQuantizer(const Plan& plan, int32_t index, Layer& layer, int64_t chunk_bytes,
                               ModuleSink sink, PhaseTimer& timer)
    : plan_(plan),
      index_(index),
      layer_(layer),
      chunk_bytes_(chunk_bytes),
      timer_(timer),
      modules_(modules_of(plan, index)),
      rounding_(values_of(modules_), layer),
      solver_(plan.settings, layer, rounding_, std::move(sink), timer) {}

void LayerQuantizer::run(at::Tensor& x, at::Tensor& original) {
  timer_.begin("calibrate");
  const at::Tensor before = plan_.settings.sequential ? at::Tensor() : x.clone();
  if (original.defined())
    shift_scale_ = static_cast<double>(x.size(0)) / static_cast<double>(original.size(0));
  attention(x, original);
  const auto ffn_stream = [&](const at::Tensor& states) -> Stream {
    if (!states.defined()) return {};
    Stream stream;
    stream.f = at::empty({states.size(0) * states.size(1), states.size(2)}, layer_.options());
    stream.out = rows_of(states);
    for_window_batches(states, [&](int64_t begin, int64_t count) {
      const at::Tensor batch = states.narrow(0, begin, count);
      stream.f.narrow(0, begin * states.size(1), count * states.size(1))
          .copy_(rows_of(layer_.ffn_input(batch)));
    });
    return stream;
  };
  ffn(ffn_stream(x), ffn_stream(original));
  input_hessians_.clear();
  solver_.wait();
  if (plan_.settings.sequential) return;
  solver_.use_pending();
  for_window_batches(x, [&](int64_t begin, int64_t count) {
    x.narrow(0, begin, count).copy_(layer_.forward(before.narrow(0, begin, count)));
  });
}

void LayerQuantizer::attention(at::Tensor& x, at::Tensor& original) {
  if (layer_.has_custom_attention()) return custom_attention(x, original);
  const auto add_output = [&](at::Tensor& states, std::vector<at::Tensor>& contexts) {
    std::size_t next = 0;
    for_window_batches(states, [&](int64_t begin, int64_t count) {
      states.narrow(0, begin, count).add_(layer_.attention_output(contexts[next]));
      contexts[next++].reset();
    });
  };
  const auto qkv = planned({AQ_ROLE_ATTN_Q, AQ_ROLE_ATTN_K, AQ_ROLE_ATTN_V}, AQ_EXPERT_NONE);
  const auto o = planned({AQ_ROLE_ATTN_O}, AQ_EXPERT_NONE);
  std::vector<at::Tensor> contexts, contexts_before;  // before: of the original, so of its weights
  Hessian hessian(x.size(2), x.device());
  if (InputRounding::observed(qkv))
    for_window_batches(x, [&](int64_t begin, int64_t count) {
      rounding_.observe(qkv, rows_of(layer_.attention_input(x.narrow(0, begin, count))));
    });
  for_window_batches(x, [&](int64_t begin, int64_t count) {
    at::Tensor input = rows_or_none(original, begin, count);
    if (input.defined()) {
      input = layer_.attention_input(input);
      contexts_before.push_back(layer_.attention_context(input));
      input = rows_of(input);
    }
    if (!qkv.empty())
      add_inputs(hessian,
                 rounding_.seen(qkv, rows_of(layer_.attention_input(x.narrow(0, begin, count)))),
                 {}, input);
  });
  solver_.solve_one(qkv, hessian);

  for_window_batches(x, [&](int64_t begin, int64_t count) {
    contexts.push_back(layer_.attention_context(layer_.attention_input(x.narrow(0, begin, count))));
    rounding_.observe(o, contexts.back());
  });
  std::unique_ptr<Hessian> inner;
  for (std::size_t i = 0; i < contexts.size() && !o.empty(); i++) {
    if (!inner) inner = std::make_unique<Hessian>(contexts[i].size(2), x.device());
    add_inputs(*inner, rounding_.seen(o, rows_of(contexts[i])), {},
               i < contexts_before.size() ? rows_of(contexts_before[i]) : at::Tensor());
  }
  if (original.defined()) add_output(original, contexts_before);
  if (inner) solver_.solve_one(o, *inner);
  add_output(x, contexts);
}

/// Of attention that only the adapter knows: each stage's inputs are recorded while it runs. They
/// are not held against the original's.
void LayerQuantizer::custom_attention(at::Tensor& x, at::Tensor& original) {
  const auto add_output = [&](at::Tensor& states) {
    for_window_batches(states, [&](int64_t begin, int64_t count) {
      at::Tensor batch = states.narrow(0, begin, count);
      batch.add_(layer_.attention(layer_.attention_input(batch)));
    });
  };
  if (original.defined()) add_output(original);
  std::set<int32_t> stages;
  for (const auto& [key, m] : modules_)
    if (is_attention(*m->module)) stages.insert(m->module->stage);
  for (const int32_t stage : stages) quantize_stage(x, stage);
  add_output(x);
}

void LayerQuantizer::quantize_stage(const at::Tensor& x, int32_t stage) {
  std::map<int32_t, std::vector<const PlannedModule*>> groups;
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
      layer_.attention(layer_.attention_input(x.narrow(0, begin, count)), tap);
    });
  };
  using Modules = std::vector<const PlannedModule*>;
  if (std::any_of(groups.begin(), groups.end(),
                  [](const auto& group) { return InputRounding::observed(group.second); }))
    each_input(
        [&](const Modules& shared, const at::Tensor& input) { rounding_.observe(shared, input); });
  std::map<int32_t, Hessian> hessians;
  each_input([&](const Modules& shared, const at::Tensor& input) {
    const Module& module = *shared.front()->module;
    hessians.try_emplace(module.input_group, module.in_features, x.device())
        .first->second.add(rounding_.seen(shared, input), {});
  });
  for (auto& [group, modules] : groups) {
    const auto hessian = hessians.find(group);
    if (hessian == hessians.end())
      fail("{} was never applied by the adapter's attention", modules.front()->module->name);
    solver_.solve_one(modules, hessian->second);
  }
}

/// One batch of tokens; `original` has the first of them, or is undefined.
void LayerQuantizer::add_inputs(Hessian& hessian, const at::Tensor& x, const at::Tensor& weights,
                                const at::Tensor& original) const {
  hessian.add(x, weights);
  if (!original.defined()) return;
  const int64_t n = original.size(0);
  hessian.add_shift(x.narrow(0, 0, n), rows_or_none(weights, 0, n), original, shift_scale_);
}

void LayerQuantizer::ffn(Stream now, Stream was) {
  if (layer_.ffn_desc().kind == AQ_FFN_DENSE) return dense_ffn(AQ_EXPERT_NONE, now, was);
  const bool shared = layer_.ffn_desc().shared_size > 0;
  std::vector<ExpertTokens> routed_before;  // by the original router
  if (was.f.defined()) {
    routed_before = route(was.f);
    if (shared) was.gate = layer_.shared_weight(was.f);
  }
  const auto routers = planned({AQ_ROLE_ROUTER, AQ_ROLE_SHARED_ROUTER}, AQ_EXPERT_NONE);
  if (!routers.empty()) {
    rounding_.observe(routers, now.f);
    solver_.solve_one(routers, input_hessian(routers, now.f));
  }
  if (shared) {
    now.gate = layer_.shared_weight(now.f);
    dense_ffn(AQ_EXPERT_SHARED, now, was);
  }
  routed_experts(routed_before, now, was);
}

/// A dense or shared FFN: gate and up, then down, then its output times the gate (or 1).
void LayerQuantizer::dense_ffn(int32_t expert, const Stream& now, const Stream& was) {
  const int64_t total = now.f.size(0);
  const auto add_output = [&](const Stream& stream, const at::Tensor& h, int64_t begin) {
    at::Tensor y = layer_.ffn_output(expert, h).to(stream.out.scalar_type());
    if (stream.gate.defined()) y.mul_(stream.gate.narrow(0, begin, h.size(0)));
    stream.out.narrow(0, begin, h.size(0)).add_(y);
  };
  const auto collect = [&](const std::vector<const PlannedModule*>& modules, const auto& inputs) {
    Hessian hessian(modules.empty() ? 0 : modules.front()->module->in_features, now.f.device());
    at::Tensor s;
    if (!modules.empty() && now.gate.defined())
      s = to_power(now.gate.squeeze(1), modules.front()->recipe.routing_power);
    if (InputRounding::observed(modules))
      for_batches(total, kBatchTokens, [&](int64_t begin, int64_t count) {
        rounding_.observe(modules, inputs(begin, count).first);
      });
    for_batches(total, kBatchTokens, [&](int64_t begin, int64_t count) {
      const auto [x, x0] = inputs(begin, count);
      if (modules.empty()) return;
      add_inputs(hessian, rounding_.seen(modules, x), rows_or_none(s, begin, count), x0);
    });
    solver_.solve_one(modules, hessian);
  };
  using Pair = std::pair<at::Tensor, at::Tensor>;
  const GluWeights before = was.f.defined() ? layer_.glu_weights(expert).clone() : GluWeights();
  collect(planned({AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP}, expert), [&](int64_t begin, int64_t count) {
    return Pair{now.f.narrow(0, begin, count), rows_or_none(was.f, begin, count)};
  });
  collect(planned({AQ_ROLE_FFN_DOWN}, expert), [&](int64_t begin, int64_t count) {
    Pair hidden;
    hidden.first = layer_.ffn_hidden(expert, now.f.narrow(0, begin, count));
    hidden.second = rows_or_none(was.f, begin, count);
    if (!hidden.second.defined()) return hidden;
    hidden.second = layer_.ffn_hidden(before, hidden.second);
    add_output(was, hidden.second, begin);
    return hidden;
  });
  for_batches(total, kBatchTokens, [&](int64_t begin, int64_t count) {
    add_output(now, layer_.ffn_hidden(expert, now.f.narrow(0, begin, count)), begin);
  });
}

std::vector<ExpertTokens> LayerQuantizer::route(const at::Tensor& f) const {
  std::vector<at::Tensor> ids, weights;
  for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
    const Routing routing = layer_.route(f.narrow(0, begin, count));
    ids.push_back(routing.ids);
    weights.push_back(routing.weights);
  });
  return tokens_by_expert({{}, at::cat(ids), at::cat(weights)}, layer_.ffn_desc().n_experts);
}

void LayerQuantizer::routed_experts(const std::vector<ExpertTokens>& routed_before,
                                    const Stream& now, const Stream& was) {
  const FfnDesc& desc = layer_.ffn_desc();
  const std::vector<ExpertTokens> routed = route(now.f);
  int64_t pairs = 0;
  double sum = 0;
  for (int32_t e = 0; e < desc.n_experts; e++) {
    const ExpertTokens& mine = routed[static_cast<std::size_t>(e)];
    const int64_t tokens = mine.rows.size(0);
    coverage_.push_back({index_, e, tokens, mine.weights.sum(at::kDouble).item<double>()});
    pairs += tokens;
    sum += coverage_.back().weight;
  }
  mean_routing_weight_ = pairs > 0 ? sum / static_cast<double>(pairs) : 1;
  const auto all_down = planned_in_experts({AQ_ROLE_FFN_DOWN});
  const auto all_gate_up = planned_in_experts({AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP});
  if (InputRounding::observed(all_gate_up))
    for_batches(now.f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
      rounding_.observe(all_gate_up, now.f.narrow(0, begin, count));
    });
  const std::vector<Chunk> chunks = chunks_of(routed, now, was);
  std::vector<ExpertInput> inputs(routed.size());
  // one scale for the inputs of all down projections is known once all of gate and up are done
  const bool two_passes = InputRounding::observed(all_down);
  for (const Chunk& chunk : chunks) {
    gate_and_up(chunk, routed, routed_before, now, was, inputs);
    if (!two_passes) down(chunk, routed, now, inputs);
  }
  if (!two_passes) return;
  observe_hidden(routed, now.f);
  for (const Chunk& chunk : chunks) down(chunk, routed, now, inputs);
}

/// As many experts at a time as the memory for them allows, at least one.
std::vector<LayerQuantizer::Chunk> LayerQuantizer::chunks_of(
    const std::vector<ExpertTokens>& routed, const Stream& now, const Stream& was) const {
  // what is kept of an expert: the input of its down projection, in both streams; the larger
  // Hessian and shift, stacked, damped, factored; weights, what they aim at, values, gradient
  const FfnDesc& desc = layer_.ffn_desc();
  const int64_t d = now.f.size(1), inner = desc.inner_size, streams = was.f.defined() ? 2 : 1;
  const int64_t widest = std::max(d, inner), solving = 28 * widest * widest + 120 * d * inner;
  const auto bytes = [&](int32_t e) {
    const int64_t tokens = routed[static_cast<std::size_t>(e)].rows.size(0);
    return solving + streams * tokens * inner * now.f.element_size();
  };
  std::vector<Chunk> chunks;
  for (int32_t begin = 0, end = 0; begin < desc.n_experts; begin = end) {
    int64_t kept = bytes(end++);
    while (end < desc.n_experts && kept + bytes(end) <= chunk_bytes_) kept += bytes(end++);
    chunks.push_back({begin, end});
  }
  return chunks;
}

void LayerQuantizer::add_expert_output(const Stream& stream, const ExpertTokens& tokens,
                                       int32_t expert, const at::Tensor& hidden) const {
  for_row_blocks(hidden, [&](int64_t first, int64_t n) {
    add_weighted_rows(stream.out, tokens.rows.narrow(0, first, n),
                      tokens.weights.narrow(0, first, n),
                      layer_.ffn_output(expert, hidden.narrow(0, first, n)));
  });
}

/// Solves gate and up of a chunk; leaves in `inputs` what down() needs.
void LayerQuantizer::gate_and_up(const Chunk& chunk, const std::vector<ExpertTokens>& routed,
                                 const std::vector<ExpertTokens>& routed_before, const Stream& now,
                                 const Stream& was, std::vector<ExpertInput>& inputs) {
  SolveBatch batch;
  for (int32_t e = chunk.begin; e < chunk.end; e++) {
    check_interrupt();
    const ExpertTokens& mine = routed[static_cast<std::size_t>(e)];
    ExpertInput input{{now.f, mine.rows}, {}, {}, {}};
    at::Tensor hidden;  // of the original
    if (was.f.defined()) {
      const ExpertTokens& before = routed_before[static_cast<std::size_t>(e)];
      std::tie(input.shifted, input.same) = common(mine.rows, before.rows);
      input.was = {was.f, before.rows};
      hidden = expert_hidden(e, input.was);
      add_expert_output(was, before, e, hidden);
    }
    const auto modules = planned({AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP}, e);
    add_expert(batch, modules, input, mine.weights, [&] { return input_hessian(modules, now.f); });
    input.was = {hidden, {}};
    inputs[static_cast<std::size_t>(e)] = std::move(input);
  }
  solver_.solve(batch);
}

/// Solves down of a chunk and adds its experts' outputs.
void LayerQuantizer::down(const Chunk& chunk, const std::vector<ExpertTokens>& routed,
                          const Stream& now, std::vector<ExpertInput>& inputs) {
  SolveBatch batch;
  for (int32_t e = chunk.begin; e < chunk.end; e++) {
    check_interrupt();
    ExpertInput& input = inputs[static_cast<std::size_t>(e)];
    input.now = {expert_hidden(e, input.now), {}};
    const auto modules = planned({AQ_ROLE_FFN_DOWN}, e);
    add_expert(batch, modules, input, routed[static_cast<std::size_t>(e)].weights,
               [&] { return hidden_hessian(modules, e, now.f); });
    input.was = {};
  }
  solver_.solve(batch);
  for (int32_t e = chunk.begin; e < chunk.end; e++) {
    ExpertInput& input = inputs[static_cast<std::size_t>(e)];
    add_expert_output(now, routed[static_cast<std::size_t>(e)], e, input.now.from);
    input = {};
  }
}

/// Shows the inputs of all experts' down projections to their scale for all tokens; where no token
/// tells it, those of some that were routed elsewhere.
void LayerQuantizer::observe_hidden(const std::vector<ExpertTokens>& routed, const at::Tensor& f) {
  const auto observe = [&](int32_t e, const Rows& rows) {
    for_batches(rows.size(), kBatchTokens, [&](int64_t begin, int64_t count) {
      rounding_.observe(planned({AQ_ROLE_FFN_DOWN}, e),
                        layer_.ffn_hidden(e, rows.part(begin, count)));
    });
  };
  const int32_t count = layer_.ffn_desc().n_experts;
  for (int32_t e = 0; e < count; e++)
    if (InputRounding::observed(planned({AQ_ROLE_FFN_DOWN}, e)))
      observe(e, {f, routed[static_cast<std::size_t>(e)].rows});
  for (int32_t e = 0; e < count; e++)
    if (rounding_.unobserved(planned({AQ_ROLE_FFN_DOWN}, e)))
      observe(e, {f.narrow(0, 0, std::min(f.size(0), kBatchTokens)), {}});
}

/// The input of an expert's down projection for the rows of the FFN's input that are its own.
at::Tensor LayerQuantizer::expert_hidden(int32_t expert, const Rows& f) const {
  at::Tensor hidden = at::empty({f.size(), layer_.ffn_desc().inner_size}, layer_.options());
  for_row_blocks(hidden, [&](int64_t begin, int64_t count) {
    hidden.narrow(0, begin, count).copy_(layer_.ffn_hidden(expert, f.part(begin, count)));
  });
  return hidden;
}

/// Adds an expert's modules and the Hessian of its own tokens with routing weights c; where those
/// are too few, with `all`, the Hessian of every token of the layer, mixed in. Tokens that only one
/// of the two streams routes to it count as not shifted.
void LayerQuantizer::add_expert(SolveBatch& batch, std::vector<const PlannedModule*> modules,
                                const ExpertInput& input, const at::Tensor& c,
                                const std::function<Hessian()>& all) {
  if (modules.empty()) return;
  const int64_t tokens = input.now.size(), features = modules.front()->module->in_features;
  const double power = modules.front()->recipe.routing_power;
  const at::Tensor s = to_power(c, power);
  Hessian own(features, input.now.from.device());
  for_batches(tokens, kBatchTokens, [&](int64_t begin, int64_t count) {
    own.add(rounding_.seen(modules, input.now.part(begin, count)), rows_or_none(s, begin, count));
  });
  for_batches(input.shifted.defined() ? input.shifted.size(0) : 0, kBatchTokens,
              [&](int64_t begin, int64_t count) {
                const at::Tensor at = input.shifted.narrow(0, begin, count);
                own.add_shift(input.now.at(at), s.defined() ? s.index_select(0, at) : s,
                              input.was.at(input.same.narrow(0, begin, count)), shift_scale_);
              });
  SharedInput group{std::move(modules), own.tokens(), own.weight(), false};
  const int64_t least = plan_.settings.min_tokens.value_or(features / 2);
  if (plan_.settings.calibrate_all_experts) {
    Hessian every = all();
    group.tokens = every.tokens();
    group.weight = every.weight();
    batch.hessians.push_back(std::move(every));
  } else if (own.tokens() < least) {
    group.starved = true;
    const double mean_weight = std::pow(mean_routing_weight_, power);
    batch.hessians.push_back(Hessian::mix(own, all(), least, mean_weight));
  } else {
    batch.hessians.push_back(std::move(own));
  }
  batch.groups.push_back(std::move(group));
}

/// Of all tokens run through one expert, at the input of its down projection.
Hessian LayerQuantizer::hidden_hessian(const std::vector<const PlannedModule*>& modules,
                                       int32_t expert, const at::Tensor& f) const {
  Hessian hessian(layer_.ffn_desc().inner_size, f.device());
  for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
    hessian.add(rounding_.seen(modules, layer_.ffn_hidden(expert, f.narrow(0, begin, count))), {});
  });
  return hessian;
}

const Hessian& LayerQuantizer::input_hessian(const std::vector<const PlannedModule*>& modules,
                                             const at::Tensor& f) {
  const auto [it, added] =
      input_hessians_.try_emplace(modules.front()->activations.get(), f.size(1), f.device());
  Hessian& hessian = it->second;  // clang with OpenMP captures no structured binding
  if (added)
    for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
      hessian.add(rounding_.seen(modules, f.narrow(0, begin, count)), {});
    });
  return hessian;
}

std::vector<const PlannedModule*> LayerQuantizer::planned(std::initializer_list<int32_t> roles,
                                                          int32_t expert) const {
  std::vector<const PlannedModule*> found;
  for (const int32_t role : roles)
    if (const auto it = modules_.find({role, expert}); it != modules_.end())
      found.push_back(it->second);
  return found;
}

std::vector<const PlannedModule*> LayerQuantizer::planned_in_experts(
    std::initializer_list<int32_t> roles) const {
  std::vector<const PlannedModule*> found;
  for (int32_t e = 0; e < layer_.ffn_desc().n_experts; e++)
    for (const PlannedModule* m : planned(roles, e)) found.push_back(m);
  return found;
}

}  // namespace aqhost
