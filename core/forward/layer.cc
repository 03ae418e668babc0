#include "forward/layer.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <vector>

#include "base/error.h"
#include "base/interrupt.h"
#include "forward/fused.h"
#include "forward/router.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

constexpr int64_t kRouteTokens = 512;  // minimum number of tokens per thread

aq_tensor_key key_of(int32_t layer, int32_t role) {
  return {layer, role, AQ_EXPERT_NONE, AQ_PART_WEIGHT};
}

/// The clamped SwiGLU of gate and up, see AQ_ACT_CLAMPED_SWIGLU.
at::Tensor clamped_swiglu(const at::Tensor& gate, const at::Tensor& up, const FfnDesc& desc) {
  const at::Tensor g = gate.clamp_max(desc.act_limit);
  return (up.clamp(-desc.act_limit, desc.act_limit) + 1) * (g * at::sigmoid(g * desc.act_alpha));
}

at::Tensor activate(at::Tensor gate, int32_t activation) {
  switch (activation) {
    case AQ_ACT_GELU_GLU:
      return at::gelu(gate);
    case AQ_ACT_GELU_TANH_GLU:
      return at::gelu(gate, "tanh");
    default:
      return at::silu_(gate);
  }
}

using Weights = std::vector<std::pair<const Module*, at::Tensor>>;

/// Reads weights on all threads. Weights that must be decoded (not `stored`) are read in batches
/// that memory has room for.
void read_in_parallel(const Source& source, const Weights& weights, bool stored) {
  constexpr int64_t kMaxElements = int64_t{1} << 28;
  for (std::size_t begin = 0, end = 0; begin < weights.size(); begin = end) {
    check_interrupt();
    for (int64_t n = 0; end < weights.size() && (stored || end == begin || n < kMaxElements); end++)
      n += weights[end].second.numel();
    Weights read(weights.begin() + static_cast<int64_t>(begin),
                 weights.begin() + static_cast<int64_t>(end));
    for (auto& [module, weight] : read)  // weights for a GPU are copied there below
      if (!weight.is_cpu()) weight = at::empty(weight.sizes(), weight.scalar_type());
    at::parallel_for(0, static_cast<int64_t>(read.size()), 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) {
        const auto& [module, weight] = read[static_cast<std::size_t>(i)];
        read_tensor_into(source, module->weight, weight);
      }
    });
    for (std::size_t i = begin; i < end; i++)
      if (!weights[i].second.is_cpu()) weights[i].second.copy_(read[i - begin].second);
  }
}

/// Reads every weight to its place.
void read_weights(const Source& source, const Weights& weights) {
  Weights stored, decoded;
  for (const auto& [module, weight] : weights)
    (source.read_stored(module->weight.name, 0, {}) ? stored : decoded)
        .emplace_back(module, weight);
  read_in_parallel(source, decoded, false);
  if (!stored.empty() && stored.front().second.is_cpu())
    return read_in_parallel(source, stored, true);
  for (const auto& [module, weight] : stored) read_tensor_into(source, module->weight, weight);
}

}  // namespace

Layer::Layer(const Source& source, const Model& model, int32_t layer, int64_t seq_len,
             const at::TensorOptions& options)
    : model_(model),
      index_(layer),
      options_(options),
      attention_norm_(source, model, key_of(layer, AQ_ROLE_ATTN_NORM), model.desc().hidden_size,
                      options),
      ffn_norm_(source, model, key_of(layer, AQ_ROLE_FFN_NORM), model.desc().hidden_size, options) {
  if (model.attention(layer, seq_len).kind == AQ_ATTN_CUSTOM)
    custom_.emplace(source, model, layer);
  else
    attention_ = make_attention(source, model, layer, seq_len, options);
  const FfnDesc& ffn = model.ffn(layer);
  if (ffn.kind == AQ_FFN_CUSTOM)
    fail(
        "model \"{}\", layer {}: an FFN that only the adapter knows (block-forward) is not "
        "supported by this aqhost",
        model.id(), layer);
  if (ffn.kind == AQ_FFN_MOE) {
    const int64_t d = model.desc().hidden_size, e = ffn.n_experts, inner = ffn.inner_size;
    experts_[AQ_ROLE_FFN_GATE] = at::empty({e, inner, d}, options);
    experts_[AQ_ROLE_FFN_UP] = at::empty({e, inner, d}, options);
    experts_[AQ_ROLE_FFN_DOWN] = at::empty({e, d, inner}, options);
    read_router_bias(source);
  }
  read_linears(source);
}

void Layer::read_linears(const Source& source) {
  Weights weights;
  for (const Module& module : model_.modules()) {
    if (module.key.layer != index_) continue;
    const int32_t role = module.key.role, expert = module.key.expert;
    const bool router = role == AQ_ROLE_ROUTER || role == AQ_ROLE_SHARED_ROUTER;
    const at::TensorOptions options = router ? options_.dtype(at::kFloat) : options_;
    const auto stack = experts_.find(role);
    const bool stacked = expert >= 0 && stack != experts_.end();
    Linear linear{stacked ? stack->second[expert]
                          : at::empty({module.out_features, module.in_features}, options),
                  {}};
    if (module.bias)
      linear.bias = read_tensor(source, *module.bias, {module.out_features}, options);
    weights.emplace_back(&module, linear.weight);
    linears_[{role, expert}] = std::move(linear);
  }
  read_weights(source, weights);
}

void Layer::read_router_bias(const Source& source) {
  const auto ref = model_.find_ref(key_of(index_, AQ_ROLE_ROUTER_BIAS));
  if (ref)
    router_bias_ = read_tensor(source, *ref, {ffn_desc().n_experts}, options_.dtype(at::kFloat));
}

const Linear& Layer::linear(int32_t role, int32_t expert) const {
  return linears_.at({role, expert});
}

at::Tensor Layer::attention_input(const at::Tensor& x) const { return attention_norm_(x); }

Attention::Tensors Layer::attention_advance(std::size_t stage, Attention::Tensors tensors) const {
  const Attention::Apply apply = [this](int32_t role, const at::Tensor& x) {
    return linear(role)(x);
  };
  const at::Tensor& first = tensors.front();
  const int64_t windows = first.size(0);
  const bool attends = stage + 2 == attention_->stages().size();  // the others are linear maps
  if (!attends || !first.is_cpu() || at::GradMode::is_enabled() || windows < at::get_num_threads())
    return attention_->advance(stage, std::move(tensors), apply);
  // On a CPU, each thread computes one window after another: intermediate results stay in its
  // cache, and the threads need not wait for each other after every operation. With gradients this
  // is not possible, because only one thread records them.
  const int32_t output = attention_->stages().back().front().front();
  at::Tensor context = at::empty({windows, first.size(1), linear(output).weight.size(1)}, options_);
  at::parallel_for(0, windows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; w++) {
      Attention::Tensors window;
      for (const at::Tensor& t : tensors) window.push_back(t.narrow(0, w, 1));
      context.narrow(0, w, 1).copy_(attention_->advance(stage, std::move(window), apply).front());
    }
  });
  return {context};
}

at::Tensor Layer::attention_output(const at::Tensor& context) const {
  return scaled(linear(attention_->stages().back().front().front())(context));
}

at::Tensor Layer::attention(const at::Tensor& a, const LinearTap& tap) const {
  if (!custom_) {
    Attention::Tensors tensors{a};
    for (std::size_t stage = 0; stage + 1 < attention_->stages().size(); stage++)
      tensors = attention_advance(stage, std::move(tensors));
    return attention_output(tensors.front());
  }
  const auto find = [this](const Module& m) -> const Linear& {
    return linear(m.key.role, m.key.expert);
  };
  return scaled((*custom_)(a, find, tap));
}

/// What a part of the layer adds to the residual, for the output of its last linear map.
at::Tensor Layer::scaled(at::Tensor output) const {
  const float scale = model_.desc().residual_scale;
  return scale == 1 ? output : output * scale;
}

at::Tensor Layer::ffn_input(const at::Tensor& x) const { return ffn_norm_(x); }

Routing Layer::route(const at::Tensor& f) const {
  const FfnDesc& desc = ffn_desc();
  const int64_t n = f.size(0);
  const at::NoGradGuard no_grad;  // the choice of experts has no gradient, so its weights have none
  const at::Tensor wide = f.to(at::kFloat), logits = linear(AQ_ROLE_ROUTER)(wide);
  if (!f.is_cpu() && desc.router != AQ_ROUTER_CUSTOM)
    return route_batch(desc, logits, router_bias_);
  Routing routing{logits.cpu(), at::empty({n, desc.top_k}, at::kInt),
                  at::empty({n, desc.top_k}, at::kFloat)};
  const at::Tensor bias = router_bias_.defined() ? router_bias_.cpu() : at::Tensor();
  const at::Tensor hidden = desc.route_hidden ? wide.cpu().contiguous() : at::Tensor();
  at::parallel_for(0, n, kRouteTokens, [&](int64_t begin, int64_t end) {
    const auto part = [&](const at::Tensor& t) { return t.narrow(0, begin, end - begin); };
    RouteArgs args;
    args.layer = index_;
    args.tokens = end - begin;
    args.logits = span_of<float>(part(routing.logits));
    if (bias.defined()) args.bias = span_of<float>(bias);
    if (hidden.defined()) args.hidden = span_of<float>(part(hidden));
    args.ids = span_of<int32_t>(part(routing.ids));
    args.weights = span_of<float>(part(routing.weights));
    model_.route(args);
  });
  return {logits, routing.ids.to(f.device()), routing.weights.to(f.device())};
}

at::Tensor Layer::shared_weight(const at::Tensor& f) const {
  if (!ffn_desc().shared_gated) return {};
  return at::sigmoid(linear(AQ_ROLE_SHARED_ROUTER)(f.to(at::kFloat)));
}

GluWeights Layer::glu_weights(int32_t expert) const {
  return {linear(AQ_ROLE_FFN_GATE, expert), linear(AQ_ROLE_FFN_UP, expert)};
}

at::Tensor Layer::ffn_hidden(int32_t expert, const at::Tensor& f) const {
  return ffn_hidden(glu_weights(expert), f);
}

at::Tensor Layer::ffn_hidden(const GluWeights& weights, const at::Tensor& f) const {
  at::Tensor gate = weights.gate(f);
  const at::Tensor up = weights.up(f);
  if (ffn_desc().activation == AQ_ACT_CLAMPED_SWIGLU) return clamped_swiglu(gate, up, ffn_desc());
  if (ffn_desc().activation == AQ_ACT_SILU_GLU && can_fuse(gate) && can_fuse(up)) {
    fused_silu_times(gate, up);
    return gate;
  }
  return activate(std::move(gate), ffn_desc().activation).mul_(up);
}

at::Tensor Layer::ffn_output(int32_t expert, const at::Tensor& h) const {
  return scaled(linear(AQ_ROLE_FFN_DOWN, expert)(h));
}

at::Tensor Layer::ffn(const at::Tensor& f, Routing* routing) const {
  const FfnDesc& desc = ffn_desc();
  if (desc.kind == AQ_FFN_DENSE) return ffn_output(AQ_EXPERT_NONE, ffn_hidden(AQ_EXPERT_NONE, f));
  at::Tensor out = at::zeros_like(f);
  if (desc.shared_size > 0) {
    out = ffn_output(AQ_EXPERT_SHARED, ffn_hidden(AQ_EXPERT_SHARED, f));
    if (const at::Tensor weight = shared_weight(f); weight.defined()) out.mul_(weight);
  }
  const Routing chosen = route(f);
  if (routing != nullptr) *routing = chosen;
  const auto routed = tokens_by_expert(chosen, desc.n_experts);
  for (int32_t e = 0; e < desc.n_experts; e++) {
    const auto& [rows, weights] = routed[static_cast<std::size_t>(e)];
    if (rows.size(0) == 0) continue;
    at::Tensor y = ffn_output(e, ffn_hidden(e, f.index_select(0, rows)));
    out.index_add_(0, rows, y.mul_(weights.unsqueeze(1)));
  }
  return out;
}

at::Tensor Layer::forward(const at::Tensor& x, Routing* routing) const {
  const at::Tensor y = x + attention(attention_input(x));
  const at::Tensor f = ffn_input(y).flatten(0, 1);
  return y + ffn(f, routing).view_as(y);
}

at::Tensor Layer::weight(const Module& module) const {
  return linear(module.key.role, module.key.expert).weight;
}

void Layer::use_weight(const Module& module, const at::Tensor& weight) {
  linears_.at({module.key.role, module.key.expert}).weight = weight;
}

void Layer::set_input_rounding(const Module& module,
                               std::function<at::Tensor(const at::Tensor&)> round) {
  linears_.at({module.key.role, module.key.expert}).round_input = std::move(round);
}

void Layer::see_output(const Module& module, std::function<void(const at::Tensor&)> see) {
  linears_.at({module.key.role, module.key.expert}).see_output = std::move(see);
}

at::Tensor Layer::rounded_input(const Module& module, const at::Tensor& x) const {
  const auto& round = linear(module.key.role, module.key.expert).round_input;
  return round ? round(x) : x;
}

void Layer::set_weight(const Module& module, const at::Tensor& weight) {
  linears_.at({module.key.role, module.key.expert}).weight.copy_(weight);
}

}  // namespace aqhost
