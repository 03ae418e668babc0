#include "pipeline/layer_quantizer.h"

#include <algorithm>
#include <cmath>

#include "base/interrupt.h"

namespace aqhost {
namespace {

constexpr int64_t kBatchTokens = 8192;
constexpr int64_t kChunkBytes = int64_t{3} << 29;  // of what a chunk of experts keeps, 1.5 GiB

/// Calls body(begin, count) over `total` in steps.
template <typename Body>
void for_batches(int64_t total, int64_t step, Body body) {
  for (int64_t begin = 0; begin < total; begin += step) {
    check_interrupt();
    body(begin, std::min(step, total - begin));
  }
}

int64_t windows_per_batch(const at::Tensor& x) {
  return std::max<int64_t>(1, kBatchTokens / x.size(1));
}

at::Tensor rows_of(const at::Tensor& x) { return x.flatten(0, 1); }

/// s = c^p of each token; undefined (1) for p = 0.
at::Tensor to_power(const at::Tensor& weights, double power) {
  if (!weights.defined() || power == 0) return {};
  return power == 1 ? weights : weights.pow(power);
}

}  // namespace

LayerQuantizer::LayerQuantizer(const Plan& plan, int32_t index, Layer& layer, ModuleSink sink,
                               PhaseTimer& timer)
    : plan_(plan), index_(index), layer_(layer), sink_(std::move(sink)), timer_(timer) {
  for (const PlannedModule& m : plan.modules)
    if (m.format && m.module->key.layer == index)
      modules_[{m.module->key.role, m.module->key.expert}] = &m;
}

void LayerQuantizer::run(at::Tensor& x) {
  timer_.begin("calibrate");
  const at::Tensor before = plan_.settings.sequential ? at::Tensor() : x.clone();
  attention(x);
  const int64_t hidden = x.size(2);
  at::Tensor f = at::empty({x.size(0) * x.size(1), hidden}, x.options());
  for_batches(x.size(0), windows_per_batch(x), [&](int64_t begin, int64_t count) {
    const at::Tensor batch = x.narrow(0, begin, count);
    f.narrow(0, begin * x.size(1), count * x.size(1)).copy_(rows_of(layer_.ffn_input(batch)));
  });
  rows_of(x).add_(ffn(f));
  input_hessian_.reset();
  if (plan_.settings.sequential) return;
  for (const auto& [module, values] : pending_) layer_.set_weight(*module, values);
  pending_.clear();
  for_batches(x.size(0), windows_per_batch(x), [&](int64_t begin, int64_t count) {
    x.narrow(0, begin, count).copy_(layer_.forward(before.narrow(0, begin, count)));
  });
}

void LayerQuantizer::attention(at::Tensor& x) {
  const int64_t step = windows_per_batch(x);
  const auto qkv = planned({AQ_ROLE_ATTN_Q, AQ_ROLE_ATTN_K, AQ_ROLE_ATTN_V}, AQ_EXPERT_NONE);
  if (!qkv.empty()) {
    Hessian hessian(x.size(2));
    for_batches(x.size(0), step, [&](int64_t begin, int64_t count) {
      hessian.add(rows_of(layer_.attention_input(x.narrow(0, begin, count))), {});
    });
    solve_one(qkv, hessian);
  }
  const auto o = planned({AQ_ROLE_ATTN_O}, AQ_EXPERT_NONE);
  std::vector<at::Tensor> contexts;
  std::unique_ptr<Hessian> hessian;
  for_batches(x.size(0), step, [&](int64_t begin, int64_t count) {
    contexts.push_back(layer_.attention_context(layer_.attention_input(x.narrow(0, begin, count))));
    if (o.empty()) return;
    if (!hessian) hessian = std::make_unique<Hessian>(contexts.back().size(2));
    hessian->add(rows_of(contexts.back()), {});
  });
  if (hessian) solve_one(o, *hessian);
  std::size_t next = 0;
  for_batches(x.size(0), step, [&](int64_t begin, int64_t count) {
    x.narrow(0, begin, count).add_(layer_.attention_output(contexts[next]));
    contexts[next++].reset();
  });
}

at::Tensor LayerQuantizer::ffn(const at::Tensor& f) {
  at::Tensor out = at::zeros_like(f);
  if (layer_.ffn_desc().kind == AQ_FFN_DENSE) {
    dense_ffn(AQ_EXPERT_NONE, f, {}, out);
    return out;
  }
  const auto routers = planned({AQ_ROLE_ROUTER, AQ_ROLE_SHARED_ROUTER}, AQ_EXPERT_NONE);
  if (!routers.empty()) solve_one(routers, input_hessian(f));
  if (layer_.ffn_desc().shared_size > 0)
    dense_ffn(AQ_EXPERT_SHARED, f, layer_.shared_weight(f), out);
  routed_experts(f, out);
  return out;
}

/// A dense or shared FFN: gate and up, then down, then its output times `gate` [N, 1] (or 1).
void LayerQuantizer::dense_ffn(int32_t expert, const at::Tensor& f, const at::Tensor& gate,
                               at::Tensor& out) {
  const auto weights = [&](const std::vector<const PlannedModule*>& modules) {
    const double power = modules.front()->recipe.routing_power;
    return gate.defined() ? to_power(gate.squeeze(1), power) : at::Tensor();
  };
  const auto part = [](const at::Tensor& s, int64_t begin, int64_t count) {
    return s.defined() ? s.narrow(0, begin, count) : at::Tensor();
  };
  if (const auto modules = planned({AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP}, expert); !modules.empty()) {
    Hessian hessian(f.size(1));
    const at::Tensor s = weights(modules);
    for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
      hessian.add(f.narrow(0, begin, count), part(s, begin, count));
    });
    solve_one(modules, hessian);
  }
  if (const auto modules = planned({AQ_ROLE_FFN_DOWN}, expert); !modules.empty()) {
    Hessian hessian(modules.front()->module->in_features);
    const at::Tensor s = weights(modules);
    for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
      hessian.add(layer_.ffn_hidden(expert, f.narrow(0, begin, count)), part(s, begin, count));
    });
    solve_one(modules, hessian);
  }
  for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
    at::Tensor y = layer_.ffn_output(expert, layer_.ffn_hidden(expert, f.narrow(0, begin, count)));
    if (gate.defined()) y.mul_(gate.narrow(0, begin, count));
    out.narrow(0, begin, count).add_(y);
  });
}

void LayerQuantizer::routed_experts(const at::Tensor& f, at::Tensor& out) {
  std::vector<at::Tensor> ids, weights;
  for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
    const Routing routing = layer_.route(f.narrow(0, begin, count));
    ids.push_back(routing.ids);
    weights.push_back(routing.weights);
  });
  const FfnDesc& desc = layer_.ffn_desc();
  const auto routed = tokens_by_expert({{}, at::cat(ids), at::cat(weights)}, desc.n_experts);
  int64_t pairs = 0, most = 0;
  double sum = 0;
  for (int32_t e = 0; e < desc.n_experts; e++) {
    const ExpertTokens& mine = routed[static_cast<std::size_t>(e)];
    const int64_t tokens = mine.rows.size(0);
    coverage_.push_back({index_, e, tokens, mine.weights.sum(at::kDouble).item<double>()});
    pairs += tokens;
    most = std::max(most, tokens);
    sum += coverage_.back().weight;
  }
  mean_routing_weight_ = pairs > 0 ? sum / static_cast<double>(pairs) : 1;
  // inputs, hidden, both Hessians with the solver's float64 copies
  const int64_t d = f.size(1), inner = desc.inner_size;
  const int64_t bytes = 4 * most * (d + inner) + 20 * (d * d + inner * inner) + 40 * d * inner;
  const auto chunk =
      static_cast<int32_t>(std::clamp<int64_t>(kChunkBytes / bytes, 1, desc.n_experts));
  for (int32_t begin = 0; begin < desc.n_experts; begin += chunk)
    expert_chunk(begin, std::min(begin + chunk, desc.n_experts), routed, f, out);
}

void LayerQuantizer::expert_chunk(int32_t begin, int32_t end,
                                  const std::vector<ExpertTokens>& routed, const at::Tensor& f,
                                  at::Tensor& out) {
  const auto tokens_of = [&](int32_t e) -> const ExpertTokens& {
    return routed[static_cast<std::size_t>(e)];
  };
  std::vector<at::Tensor> inputs;  // of gate and up, then of down
  ExpertBatch gate_up, down;
  for (int32_t e = begin; e < end; e++) {
    check_interrupt();
    inputs.push_back(f.index_select(0, tokens_of(e).rows));
    add_expert(gate_up, planned({AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP}, e), inputs.back(),
               tokens_of(e).weights, [&] { return input_hessian(f); });
  }
  solve(gate_up.groups, gate_up.hessians);
  gate_up = {};
  for (int32_t e = begin; e < end; e++) {
    check_interrupt();
    at::Tensor& x = inputs[static_cast<std::size_t>(e - begin)];
    x = layer_.ffn_hidden(e, x);
    add_expert(down, planned({AQ_ROLE_FFN_DOWN}, e), x, tokens_of(e).weights,
               [&] { return hidden_hessian(e, f); });
  }
  solve(down.groups, down.hessians);
  for (int32_t e = begin; e < end; e++) {
    at::Tensor y = layer_.ffn_output(e, inputs[static_cast<std::size_t>(e - begin)]);
    out.index_add_(0, tokens_of(e).rows, y.mul_(tokens_of(e).weights.unsqueeze(1)));
  }
}

/// Adds an expert's modules and the Hessian of its own tokens (inputs x, routing weights c); where
/// those are too few, with `all`, the Hessian of every token of the layer, mixed in.
void LayerQuantizer::add_expert(ExpertBatch& batch, std::vector<const PlannedModule*> modules,
                                const at::Tensor& x, const at::Tensor& c,
                                const std::function<Hessian()>& all) const {
  if (modules.empty()) return;
  const double power = modules.front()->recipe.routing_power;
  Hessian own(x.size(1));
  own.add(x, to_power(c, power));
  Shared group{std::move(modules), own.tokens(), own.weight(), false};
  const int64_t least = plan_.settings.min_tokens.value_or(x.size(1) / 2);
  if (plan_.settings.calibrate_all_experts) {
    const Hessian every = all();
    group.tokens = every.tokens();
    group.weight = every.weight();
    batch.hessians.push_back(every.sum());
  } else if (own.tokens() < least) {
    group.starved = true;
    const double mean_weight = std::pow(mean_routing_weight_, power);
    batch.hessians.push_back(mix_starved(own, all(), least, mean_weight));
  } else {
    batch.hessians.push_back(own.sum());
  }
  batch.groups.push_back(std::move(group));
}

/// Of all tokens run through one expert, at the input of its down projection.
Hessian LayerQuantizer::hidden_hessian(int32_t expert, const at::Tensor& f) const {
  Hessian hessian(layer_.ffn_desc().inner_size);
  for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
    hessian.add(layer_.ffn_hidden(expert, f.narrow(0, begin, count)), {});
  });
  return hessian;
}

const Hessian& LayerQuantizer::input_hessian(const at::Tensor& f) {
  if (input_hessian_) return *input_hessian_;
  input_hessian_ = std::make_unique<Hessian>(f.size(1));
  for_batches(f.size(0), kBatchTokens, [&](int64_t begin, int64_t count) {
    input_hessian_->add(f.narrow(0, begin, count), {});
  });
  return *input_hessian_;
}

std::vector<const PlannedModule*> LayerQuantizer::planned(std::initializer_list<int32_t> roles,
                                                          int32_t expert) const {
  std::vector<const PlannedModule*> found;
  for (const int32_t role : roles)
    if (const auto it = modules_.find({role, expert}); it != modules_.end())
      found.push_back(it->second);
  return found;
}

void LayerQuantizer::solve_one(std::vector<const PlannedModule*> modules, const Hessian& hessian) {
  if (modules.empty()) return;
  solve({{std::move(modules), hessian.tokens(), hessian.weight(), false}}, {hessian.sum()});
}

void LayerQuantizer::solve(const std::vector<Shared>& groups,
                           const std::vector<at::Tensor>& hessians) {
  // One batch for all that share format, algorithm and shape; usually there is one.
  using FormatKey = std::pair<const Format*, std::string>;
  std::map<std::pair<FormatKey, int64_t>, ExpertBatch> batches;
  for (std::size_t e = 0; e < groups.size(); e++) {
    std::map<FormatKey, Shared> parts;
    for (const PlannedModule* m : groups[e].modules) {
      const FormatKey key{m->format.get(), m->recipe.algorithm};
      auto [it, added] = parts.try_emplace(key, groups[e]);
      if (added) it->second.modules.clear();
      it->second.modules.push_back(m);
    }
    for (auto& [key, part] : parts) {
      int64_t rows = 0;
      for (const PlannedModule* m : part.modules) rows += m->module->out_features;
      ExpertBatch& batch = batches[{key, rows}];
      batch.groups.push_back(std::move(part));
      batch.hessians.push_back(hessians[e]);
    }
  }
  for (const auto& [key, batch] : batches) solve_batch(batch);
}

void LayerQuantizer::solve_batch(const ExpertBatch& batch) {
  std::vector<at::Tensor> weights;
  for (const Shared& group : batch.groups) {
    std::vector<at::Tensor> rows;
    for (const PlannedModule* m : group.modules) rows.push_back(layer_.weight(*m->module));
    weights.push_back(at::cat(rows));
  }
  const PlannedModule& first = *batch.groups.front().modules.front();
  const GptqOptions options{plan_.settings.percdamp, plan_.settings.actorder, 128};
  const auto quantize = first.recipe.algorithm == "gptq" ? quantize_gptq : quantize_rtn;
  timer_.begin("solve");
  const QuantizedBatch solved =
      quantize(*first.format, at::stack(weights), at::stack(batch.hessians), options);
  timer_.begin("pack");
  for (std::size_t e = 0; e < batch.groups.size(); e++)
    finish(batch.groups[e], solved, static_cast<int64_t>(e));
  timer_.begin("calibrate");
}

/// Hands the rows of matrix `e` to the modules they belong to.
void LayerQuantizer::finish(const Shared& group, const QuantizedBatch& solved, int64_t e) {
  int64_t row = 0;
  for (const PlannedModule* m : group.modules) {
    const int64_t rows = m->module->out_features;
    use(*m->module, solved.values[e].narrow(0, row, rows));
    const auto sum = [&](const at::Tensor& losses) {
      return losses[e].narrow(0, row, rows).sum(at::kDouble).item<double>();
    };
    sink_(*m, {solved.matrix(e, row, rows), sum(solved.loss), sum(solved.rtn_loss),
               solved.rtn[static_cast<std::size_t>(e)], true, group.tokens, group.weight,
               group.starved});
    row += rows;
  }
}

void LayerQuantizer::use(const Module& module, at::Tensor values) {
  if (plan_.settings.sequential)
    layer_.set_weight(module, values);
  else
    pending_.emplace_back(&module, values.clone());
}

}  // namespace aqhost
