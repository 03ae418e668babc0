#include "plugin/model.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "plugin/call.h"
#include "plugin/dl_tensor.h"

namespace aqhost {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 24;  // of hidden states, vocabularies, all heads
constexpr int32_t kMaxLayers = 1 << 16, kMaxExperts = 1 << 16, kMaxHeads = 1 << 16;
constexpr int64_t kMaxRows = int64_t{1} << 38;  // of a tensor, with the rows of all its experts
constexpr uint32_t kMaxModules = 1u << 24;

bool is_ffn_role(int32_t role) { return role >= AQ_ROLE_FFN_GATE && role <= AQ_ROLE_FFN_DOWN; }

/// Whether the value is finite and not negative.
bool is_limit(float value) { return std::isfinite(value) && value >= 0; }

template <typename T>
bool within(T value, T minimum, T maximum) {
  return value >= minimum && value <= maximum;
}

/// Passes to `refuse` a sentence about a size that is not within 1 and `maximum`.
template <typename Refuse>
void check_size(const char* name, int64_t size, int64_t maximum, const Refuse& refuse) {
  if (!within(size, int64_t{1}, maximum))
    refuse(fmt::format("{} is {}, expected 1 to {}", name, size, maximum));
}

}  // namespace

std::string key_text(const aq_tensor_key& key) {
  return fmt::format("layer {}, role {}, expert {}, part {}", key.layer, key.role, key.expert,
                     key.part);
}

void Model::Destroy::operator()(const aq_model* model) const {
  if (AQ_HAS(model, destroy)) call_quietly([&] { model->destroy(model); });
}

std::vector<AttentionLinear> linears_of(const AttentionDesc& a, int64_t d) {
  const int64_t heads = a.n_heads, kv_heads = a.n_kv_heads, dim = a.head_dim;
  const int64_t keys = kv_heads * dim, values = heads * a.value_dim, q = heads * dim;
  std::vector<AttentionLinear> linears;
  switch (a.kind) {
    case AQ_ATTN_STANDARD:
      return {{AQ_ROLE_ATTN_Q, a.output_gate ? 2 * q : q, d, 0, 0},
              {AQ_ROLE_ATTN_K, keys, d, 0, 0},
              {AQ_ROLE_ATTN_V, keys, d, 0, 0},
              {AQ_ROLE_ATTN_O, d, q, 1, 0}};
    case AQ_ATTN_LATENT:
      if (a.q_rank > 0)
        linears = {{AQ_ROLE_ATTN_Q_A, a.q_rank, d, 0, 0}, {AQ_ROLE_ATTN_Q_B, q, a.q_rank, 1, 0}};
      else
        linears = {{AQ_ROLE_ATTN_Q, q, d, 0, 0}};
      linears.insert(linears.begin() + 1, {AQ_ROLE_ATTN_KV_A, a.kv_rank + a.rope_dim(), d, 0, 0});
      linears.push_back({AQ_ROLE_ATTN_KV_B, heads * (dim - a.rope_dim() + a.value_dim), a.kv_rank,
                         1, a.q_rank > 0 ? 1 : 0});
      linears.push_back({AQ_ROLE_ATTN_O, d, values, 2, 0});
      return linears;
    case AQ_ATTN_DELTA:
      if (a.delta_fused)
        linears = {{AQ_ROLE_DELTA_QKVZ, 2 * keys + 2 * values, d, 0, 0},
                   {AQ_ROLE_DELTA_BA, 2 * heads, d, 0, 0}};
      else
        linears = {{AQ_ROLE_DELTA_QKV, 2 * keys + values, d, 0, 0},
                   {AQ_ROLE_DELTA_Z, values, d, 0, 0},
                   {AQ_ROLE_DELTA_B, heads, d, 0, 0},
                   {AQ_ROLE_DELTA_A, heads, d, 0, 0}};
      linears.push_back({AQ_ROLE_DELTA_OUT, d, values, 1, 0});
      return linears;
    default:
      return {};
  }
}

Model::Model(const aq_model* raw, std::string id, std::string plugin_path, const Source& source,
             std::shared_ptr<const Library> library, bool has_tensors)
    : library_(std::move(library)),
      raw_(raw),
      id_(std::move(id)),
      plugin_path_(std::move(plugin_path)) {
  if (!AQ_HAS(raw, describe) || !AQ_HAS(raw, describe_attention) || !AQ_HAS(raw, describe_ffn) ||
      !AQ_HAS(raw, module_count) || !AQ_HAS(raw, get_module) || !AQ_HAS(raw, find_ref) ||
      !AQ_HAS(raw, find_key) || !AQ_HAS(raw, route))
    refuse("a function that every adapter has is missing");
  describe();
  for (int32_t l = 0; l < desc_.n_layers; l++) ffns_.push_back(describe_ffn(l));
  for (int32_t l = 0; l < desc_.n_layers; l++) attention(l, 1);
  list_modules();
  check_modules();
  list_copied();
  if (!has_tensors) return;
  check_tensors(source);
  check_needed(source);
  check_extra_tensors(source);
}

Model::~Model() = default;

void Model::describe() {
  aq_model_desc d{};
  d.struct_size = sizeof d;
  aq_error error;
  const aq_status status =
      call_plugin(error, [&](aq_error* e) { return raw_->describe(raw_.get(), &d, e); });
  if (status != AQ_OK) refuse("describe: {}", error_text(status, error));
  const auto wrong = [&](const std::string& what) { refuse("describe: {}", what); };
  check_size("n_layers", d.n_layers, kMaxLayers, wrong);
  check_size("hidden_size", d.hidden_size, kMaxSize, wrong);
  check_size("vocab_size", d.vocab_size, kMaxSize, wrong);
  if (d.max_positions < 0) wrong(fmt::format("max_positions is {}", d.max_positions));
  if (d.norm_kind != AQ_NORM_RMS && d.norm_kind != AQ_NORM_LAYER)
    refuse("describe: norm_kind {} is not known", d.norm_kind);
  if (!(d.norm_eps >= 0 && d.norm_eps < 1)) refuse("describe: norm_eps is {}", d.norm_eps);
  if (!std::isfinite(d.embedding_scale) || !std::isfinite(d.residual_scale) ||
      !std::isfinite(d.logit_scale))
    wrong("a scale of embeddings, of the residual or of logits is no number");
  if (d.norm_plus_one != 0 && d.norm_kind != AQ_NORM_RMS)
    wrong("norm_plus_one needs the norm_kind AQ_NORM_RMS");
  desc_ = {d.n_layers,  d.hidden_size, d.vocab_size,          d.max_positions,
           d.norm_kind, d.norm_eps,    d.tied_embeddings != 0};
  const auto or_one = [](float scale) { return scale == 0 ? 1.0f : scale; };
  desc_.embedding_scale = or_one(d.embedding_scale);
  desc_.residual_scale = or_one(d.residual_scale);
  desc_.logit_scale = or_one(d.logit_scale);
  desc_.norm_plus_one = d.norm_plus_one != 0;
}

void Model::list_copied() {
  constexpr uint32_t kMost = 1024;
  if (!AQ_HAS(raw_.get(), copied)) return;
  const auto get = [&](uint32_t i) {
    try {
      return call_or_fail("copied", [&] { return raw_->copied(raw_.get(), i); });
    } catch (const Error& e) {
      refuse("{}", e.what());
    }
  };
  for (uint32_t i = 0; const aq_copied* found = get(i); i++) {
    if (i == kMost) refuse("copied lists more than {} kinds of tensors", kMost);
    if (!is_name(found->prefix) || !is_name(found->what))
      refuse("copied({}) gives no prefix, or nothing that says what it is", i);
    copied_.push_back({found->prefix, found->what, {}});
  }
}

/// Whether a tensor is only copied. If so, it is added to the list.
bool Model::take_copied(const std::string& tensor) {
  for (Copied& copied : copied_)
    if (tensor.starts_with(copied.prefix)) {
      copied.tensors.push_back(tensor);
      return true;
    }
  return false;
}

AttentionDesc Model::attention(int32_t layer, int64_t seq_len) const {
  aq_attention_desc d{};
  d.struct_size = sizeof d;
  aq_error error;
  const aq_status status = call_plugin(error, [&](aq_error* e) {
    return raw_->describe_attention(raw_.get(), layer, seq_len, &d, e);
  });
  if (status != AQ_OK) refuse("describe_attention({}): {}", layer, error_text(status, error));
  const auto wrong = [&](const std::string& what) {
    refuse("layer {}: attention: {}", layer, what);
  };
  AttentionDesc a;
  a.kind = d.kind;
  if (d.kind == AQ_ATTN_CUSTOM) return a;
  if (!within(d.kind, int32_t{AQ_ATTN_STANDARD}, int32_t{AQ_ATTN_DELTA}))
    wrong(fmt::format("kind {} is not known", d.kind));
  const bool standard = d.kind == AQ_ATTN_STANDARD, latent = d.kind == AQ_ATTN_LATENT,
             delta = d.kind == AQ_ATTN_DELTA;
  check_size("n_heads", d.n_heads, kMaxHeads, wrong);
  check_size("head_dim", d.head_dim, kMaxHeads, wrong);
  if (d.n_kv_heads < 1 || d.n_heads % d.n_kv_heads != 0)
    wrong(
        fmt::format("{} heads of {}, {} for keys and values", d.n_heads, d.head_dim, d.n_kv_heads));
  if (!within(d.qk_norm, 0, int32_t{AQ_QK_NORM_FULL}))
    wrong(fmt::format("qk_norm {} is not known", d.qk_norm));
  if (d.sliding_window < 0 || !is_limit(d.clip_qkv) || !is_limit(d.scale) ||
      !is_limit(d.rope_scale))
    wrong("a window, clip or scale is negative or no number");
  if (d.rope_dim < 0 || d.rope_dim > d.head_dim || d.rope_dim % 2 != 0 ||
      (d.rope_dim > 0 && d.rope_inv_freq == nullptr))
    wrong(fmt::format("rope_dim {} of heads of {}", d.rope_dim, d.head_dim));
  if (!standard && (d.qk_norm != 0 || d.clip_qkv != 0 || d.output_gate != 0 || d.sinks != 0 ||
                    d.sliding_window != 0))
    wrong("a q/k norm, clip, window, output gate or sink needs the kind AQ_ATTN_STANDARD");
  if (!standard) check_size("value_dim", d.value_dim, kMaxHeads, wrong);
  if (latent) {
    check_size("kv_rank", d.kv_rank, kMaxSize, wrong);
    if (d.q_rank != 0) check_size("q_rank", d.q_rank, kMaxSize, wrong);
    if (d.n_kv_heads != d.n_heads || d.rope_dim == 0 || d.rope_dim == d.head_dim)
      wrong(fmt::format("latent attention with {} heads of {}, {} of which rotate, and {} for keys",
                        d.n_heads, d.head_dim, d.rope_dim, d.n_kv_heads));
    if (!(d.latent_eps >= 0 && d.latent_eps < 1)) wrong(fmt::format("latent_eps {}", d.latent_eps));
  }
  if (delta) {
    check_size("conv_size", d.conv_size, 1024, wrong);
    if (d.rope_dim != 0 || d.scale != 0) wrong("the gated delta rule has no rope and no scale");
  }
  a.n_heads = d.n_heads;
  a.n_kv_heads = d.n_kv_heads;
  a.head_dim = d.head_dim;
  a.output_gate = d.output_gate != 0;
  a.sinks = d.sinks != 0;
  a.delta_fused = d.delta_fused != 0;
  a.q_rank = latent ? d.q_rank : 0;
  a.kv_rank = latent ? d.kv_rank : 0;
  a.value_dim = standard ? d.head_dim : d.value_dim;
  a.conv_size = delta ? d.conv_size : 0;
  a.latent_eps = d.latent_eps > 0 ? d.latent_eps : desc_.norm_eps;
  a.qk_norm = d.qk_norm;
  a.sliding_window = d.sliding_window;
  a.clip_qkv = d.clip_qkv;
  a.scale = d.scale > 0 ? d.scale : 1.0f / std::sqrt(static_cast<float>(d.head_dim));
  a.rope_scale = d.rope_scale > 0 ? d.rope_scale : 1.0f;
  a.rope_interleaved = d.rope_interleaved != 0;
  a.rope_inv_freq.assign(d.rope_inv_freq, d.rope_inv_freq + d.rope_dim / 2);
  for (const float f : a.rope_inv_freq)
    if (!std::isfinite(f)) wrong("rope_inv_freq holds a number that is not finite");
  return a;
}

FfnDesc Model::describe_ffn(int32_t layer) const {
  aq_ffn_desc d{};
  d.struct_size = sizeof d;
  aq_error error;
  const aq_status status =
      call_plugin(error, [&](aq_error* e) { return raw_->describe_ffn(raw_.get(), layer, &d, e); });
  if (status != AQ_OK) refuse("describe_ffn({}): {}", layer, error_text(status, error));
  const auto wrong = [&](const std::string& what) { refuse("layer {}: ffn: {}", layer, what); };
  FfnDesc f;
  f.kind = d.kind;
  if (d.kind == AQ_FFN_CUSTOM) return f;
  if (d.kind != AQ_FFN_DENSE && d.kind != AQ_FFN_MOE)
    wrong(fmt::format("kind {} is not known", d.kind));
  if (!within(d.activation, int32_t{AQ_ACT_SILU_GLU}, int32_t{AQ_ACT_CLAMPED_SWIGLU}))
    wrong(fmt::format("activation {} is not known", d.activation));
  check_size("inner_size", d.inner_size, kMaxSize, wrong);
  if (d.activation == AQ_ACT_CLAMPED_SWIGLU && !(std::isfinite(d.act_alpha) && d.act_alpha > 0 &&
                                                 std::isfinite(d.act_limit) && d.act_limit > 0))
    wrong(fmt::format("clamped SwiGLU with alpha {} and limit {}", d.act_alpha, d.act_limit));
  f.activation = d.activation;
  f.act_alpha = d.act_alpha;
  f.act_limit = d.act_limit;
  f.inner_size = d.inner_size;
  if (d.kind == AQ_FFN_DENSE) return f;
  check_size("n_experts", d.n_experts, kMaxExperts, wrong);
  if (!within(d.top_k, 1, d.n_experts))
    wrong(fmt::format("top {} of {} experts", d.top_k, d.n_experts));
  if (d.router != AQ_ROUTER_SOFTMAX_TOPK && d.router != AQ_ROUTER_SIGMOID_TOPK &&
      d.router != AQ_ROUTER_CUSTOM)
    wrong(fmt::format("router {} is not known", d.router));
  if (!is_limit(d.routed_scale)) wrong(fmt::format("routed_scale {}", d.routed_scale));
  if (!is_limit(d.norm_min)) wrong(fmt::format("norm_min {}", d.norm_min));
  if (d.n_groups < 0 ||
      (d.n_groups > 0 && (d.n_experts % d.n_groups != 0 || !within(d.top_groups, 1, d.n_groups))))
    wrong(fmt::format("top {} of {} groups of {} experts", d.top_groups, d.n_groups, d.n_experts));
  if (d.n_groups > 1 && d.router != AQ_ROUTER_CUSTOM &&
      d.top_k > int64_t{d.top_groups} * (d.n_experts / d.n_groups))
    wrong(fmt::format("top {} of the {} experts of {} groups", d.top_k,
                      int64_t{d.top_groups} * (d.n_experts / d.n_groups), d.top_groups));
  if (d.group_best < 0 || (d.n_groups > 0 && d.group_best > d.n_experts / d.n_groups))
    wrong(fmt::format("the sum of the {} best scores of a group", d.group_best));
  if (d.shared_size != 0) check_size("shared_size", d.shared_size, kMaxSize, wrong);
  f.n_experts = d.n_experts;
  f.top_k = d.top_k;
  f.router = d.router;
  f.norm_topk = d.norm_topk != 0;
  f.norm_min = d.norm_min;
  f.routed_scale = d.routed_scale > 0 ? d.routed_scale : 1.0f;
  f.n_groups = d.n_groups;
  f.top_groups = d.top_groups;
  f.shared_size = d.shared_size;
  f.shared_gated = d.shared_gated != 0;
  f.group_best = std::max(d.group_best, 1);
  f.route_hidden = d.route_hidden != 0;
  return f;
}

TensorRef Model::take_ref(const aq_tensor_ref& raw, const std::string& what) const {
  if (!is_name(raw.name)) refuse("{} has no tensor name", what);
  if (!within(raw.index, int64_t{-1}, int64_t{kMaxExperts}) ||
      !within(raw.row_begin, int64_t{0}, kMaxRows) || !within(raw.row_step, int64_t{0}, kMaxRows) ||
      !within(raw.row_count, int64_t{0}, kMaxRows))
    refuse("{} lies at index {}, rows from {} in steps of {}, {} of them", what, raw.index,
           raw.row_begin, raw.row_step, raw.row_count);
  return {raw.name,      raw.index,          raw.row_begin, std::max<int64_t>(1, raw.row_step),
          raw.row_count, raw.transposed != 0};
}

Module Model::get_module(uint32_t index) const {
  aq_module m{};
  m.struct_size = sizeof m;
  aq_error error;
  const aq_status status =
      call_plugin(error, [&](aq_error* e) { return raw_->get_module(raw_.get(), index, &m, e); });
  if (status != AQ_OK) refuse("get_module({}): {}", index, error_text(status, error));
  if (!is_name(m.name)) refuse("module {} has no name", index);
  Module module;
  module.index = index;
  module.name = m.name;
  module.key = m.key;
  const std::string what = "module " + module.name;
  if (m.key.layer < -1 || m.key.layer >= desc_.n_layers || m.key.expert < AQ_EXPERT_SHARED ||
      m.key.part != AQ_PART_WEIGHT)
    refuse("{} has the key {}", what, key_text(m.key));
  if (!within(m.out_features, int64_t{1}, kMaxSize) || !within(m.in_features, int64_t{1}, kMaxSize))
    refuse("{} is {} x {}, expected 1 to {} features each", what, m.out_features, m.in_features,
           kMaxSize);
  module.weight = take_ref(m.weight, what);
  if (m.bias.name != nullptr) module.bias = take_ref(m.bias, what + "'s bias");
  module.out_features = m.out_features;
  module.in_features = m.in_features;
  module.stage = m.stage;
  module.input_group = m.input_group;
  module.label = is_name(m.label) ? m.label : "";
  module.quantize = (m.flags & AQ_MODULE_QUANTIZE) != 0;
  module.sensitive = (m.flags & AQ_MODULE_SENSITIVE) != 0;
  return module;
}

uint32_t Model::module_count() const {
  try {
    return call_or_fail("module_count", [&] { return raw_->module_count(raw_.get()); });
  } catch (const Error& e) {
    refuse("{}", e.what());
  }
}

void Model::list_modules() {
  const uint32_t count = module_count();
  if (!within(count, 1u, kMaxModules)) refuse("module_count is {}", count);
  std::set<std::string> names;
  const auto place = [](const Module& m) {
    return std::pair(m.key.layer < 0 ? kMaxLayers : m.key.layer, m.stage);
  };
  for (uint32_t i = 0; i < count; i++) {
    modules_.push_back(get_module(i));
    const Module& m = modules_.back();
    if (!names.insert(m.name).second) refuse("two modules are named {}", m.name);
    if (i > 0 && place(m) < place(modules_[i - 1]))
      refuse("module {} comes after {}, which belongs behind it", m.name, modules_[i - 1].name);
    if (!by_key_.try_emplace({m.key.layer, m.key.role, m.key.expert}, i).second)
      refuse("two modules have the key {}", key_text(m.key));
  }
}

const Module* Model::find_module(const aq_tensor_key& key) const {
  const auto it = by_key_.find({key.layer, key.role, key.expert});
  return it == by_key_.end() ? nullptr : &modules_[it->second];
}

/// Checks that the listed modules are exactly the linear maps that follow from the description, and
/// that they have the shapes that follow from it.
void Model::check_modules() const {
  std::set<uint32_t> expected;
  const auto expect = [&](int32_t layer, int32_t role, int32_t expert, int64_t out, int64_t in) {
    const Module* m = find_module({layer, role, expert, AQ_PART_WEIGHT});
    if (m == nullptr)
      refuse("no module for {}, which its description has", key_text({layer, role, expert, 0}));
    if (m->out_features != out || m->in_features != in)
      refuse("module {} is {} x {}, the description makes it {} x {}", m->name, m->out_features,
             m->in_features, out, in);
    expected.insert(m->index);
  };
  const int64_t d = desc_.hidden_size;
  for (int32_t l = 0; l < desc_.n_layers; l++) {
    const AttentionDesc a = attention(l, 1);
    for (const AttentionLinear& linear : linears_of(a, d))
      expect(l, linear.role, AQ_EXPERT_NONE, linear.out_features, linear.in_features);
    const FfnDesc& f = ffn(l);
    const auto expect_ffn = [&](int32_t expert, int64_t inner) {
      expect(l, AQ_ROLE_FFN_GATE, expert, inner, d);
      expect(l, AQ_ROLE_FFN_UP, expert, inner, d);
      expect(l, AQ_ROLE_FFN_DOWN, expert, d, inner);
    };
    if (f.kind == AQ_FFN_DENSE) expect_ffn(AQ_EXPERT_NONE, f.inner_size);
    if (f.kind != AQ_FFN_MOE) continue;
    for (int32_t e = 0; e < f.n_experts; e++) expect_ffn(e, f.inner_size);
    expect(l, AQ_ROLE_ROUTER, AQ_EXPERT_NONE, f.n_experts, d);
    if (f.shared_size > 0) expect_ffn(AQ_EXPERT_SHARED, f.shared_size);
    if (f.shared_size > 0 && f.shared_gated) expect(l, AQ_ROLE_SHARED_ROUTER, AQ_EXPERT_NONE, 1, d);
  }
  if (!desc_.tied_embeddings)
    expect(-1, AQ_ROLE_LM_HEAD, AQ_EXPERT_NONE, desc_.vocab_size, desc_.hidden_size);
  check_input_groups();
  for (const Module& m : modules_)
    if (!expected.contains(m.index) && !may_be_wired(m.key))
      refuse("module {} ({}) is in no layer that its description makes, so nothing runs it", m.name,
             key_text(m.key));
}

/// Whether the adapter itself may run the module of `key`, in an attention or FFN of its own.
bool Model::may_be_wired(const aq_tensor_key& key) const {
  if (key.layer < 0) return false;
  const bool ffn_role = is_ffn_role(key.role) || key.expert != AQ_EXPERT_NONE ||
                        key.role == AQ_ROLE_ROUTER || key.role == AQ_ROLE_SHARED_ROUTER;
  if (ffn(key.layer).kind == AQ_FFN_CUSTOM) return true;
  return !ffn_role && attention(key.layer, 1).kind == AQ_ATTN_CUSTOM;
}

/// Checks that modules in one input group can have the same input.
void Model::check_input_groups() const {
  std::map<std::array<int32_t, 3>, const Module*> first;
  for (const Module& m : modules_) {
    const Module& other =
        *first.try_emplace({m.key.layer, m.key.expert, m.input_group}, &m).first->second;
    if (m.in_features != other.in_features || m.stage != other.stage)
      refuse("modules {} and {} share the input group {}, but not their input's size and stage",
             other.name, m.name, m.input_group);
  }
}

std::optional<TensorRef> Model::find_ref(const aq_tensor_key& key) const {
  aq_tensor_ref ref{};
  aq_error error;
  const aq_status status =
      call_plugin(error, [&](aq_error* e) { return raw_->find_ref(raw_.get(), &key, &ref, e); });
  if (status == AQ_NOT_FOUND) return std::nullopt;
  if (status != AQ_OK) refuse("find_ref({}): {}", key_text(key), error_text(status, error));
  return take_ref(ref, key_text(key));
}

std::optional<aq_tensor_key> Model::find_key(const std::string& name) const {
  aq_tensor_key key{};
  aq_error error;
  const aq_status status = call_plugin(
      error, [&](aq_error* e) { return raw_->find_key(raw_.get(), name.c_str(), &key, e); });
  if (status == AQ_NOT_FOUND) return std::nullopt;
  if (status != AQ_OK) refuse("find_key({}): {}", name, error_text(status, error));
  return key;
}

void Model::route(const RouteArgs& args) const {
  const FfnDesc& f = ffn(args.layer);
  DlTensor logits(args.logits.data(), kDlF32, {args.tokens, int64_t{f.n_experts}});
  DlTensor bias(args.bias.data(), kDlF32, {int64_t{f.n_experts}});
  DlTensor hidden(args.hidden.data(), kDlF32, {args.tokens, desc_.hidden_size});
  DlTensor ids(args.ids.data(), kDlI32, {args.tokens, int64_t{f.top_k}});
  DlTensor weights(args.weights.data(), kDlF32, {args.tokens, int64_t{f.top_k}});
  // entries that the router forgets to fill keep an id that is out of range
  std::fill(args.ids.begin(), args.ids.end(), f.n_experts);
  const aq_route_args raw{sizeof raw,           args.layer, logits.get(), bias.get_or_null(),
                          hidden.get_or_null(), ids.get(),  weights.get()};
  aq_error error;
  const aq_status status =
      call_plugin(error, [&](aq_error* e) { return raw_->route(raw_.get(), &raw, e); });
  if (status != AQ_OK) refuse("route: {}", error_text(status, error));
  const auto k = static_cast<std::size_t>(f.top_k);
  for (std::size_t i = 0; i < args.ids.size(); i++) {
    if (!within(args.ids[i], -1, f.n_experts - 1) || !std::isfinite(args.weights[i]) ||
        (args.ids[i] < 0 && args.weights[i] != 0))
      refuse("route: token {} goes to expert {} of {} with weight {}", i / k, args.ids[i],
             f.n_experts, args.weights[i]);
    if (args.weights[i] < 0)
      refuse("route: token {} goes to expert {} with the weight {}, which may not be negative",
             i / k, args.ids[i], args.weights[i]);
    for (std::size_t j = i / k * k; j < i; j++)
      if (args.ids[j] == args.ids[i] && args.ids[i] >= 0)
        refuse("route: token {} goes to expert {} twice", i / k, args.ids[i]);
  }
}

}  // namespace aqhost
