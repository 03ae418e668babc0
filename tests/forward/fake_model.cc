#include "forward/fake_model.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <aq/sdk/block_forward.hpp>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>

namespace aqhost {
namespace {

std::string name_of(const aq_tensor_key& key) {
  return fmt::format("{}{}.{}.{}", key.layer < 0 ? "top." : "", key.role, key.expert, key.part);
}

const FakeModel& fake(const aq_model* self) {
  return *static_cast<const FakeModel*>(self->plugin_data);
}

aq_tensor_ref ref_of(const char* name) { return {name, -1, 0, 1, 0, 0, 0}; }

}  // namespace

FakeModel::FakeModel() {
  desc.struct_size = sizeof desc;
  desc.n_layers = 1;
  desc.hidden_size = 24;
  desc.vocab_size = 50;
  desc.norm_kind = AQ_NORM_RMS;
  desc.norm_eps = 1e-5f;
  attention.struct_size = sizeof attention;
  attention.kind = AQ_ATTN_STANDARD;
  attention.n_heads = attention.n_kv_heads = 4;
  attention.head_dim = 8;
  attention.rope_dim = 8;
  rope_inv_freq = {1.0f, 0.3f, 0.1f, 0.03f};
  ffn.struct_size = sizeof ffn;
  ffn.kind = AQ_FFN_MOE;
  ffn.activation = AQ_ACT_SILU_GLU;
  ffn.router = AQ_ROUTER_CUSTOM;
  ffn.n_experts = 6;
  ffn.top_k = 2;
  ffn.inner_size = 20;
}

const at::Tensor& FakeModel::tensor(int32_t role, int32_t expert, int32_t part, bool top) const {
  return tensors.at(name_of({top ? -1 : 0, role, expert, part}));
}

bool FakeModel::has(int32_t role, int32_t expert, int32_t part) const {
  return tensors.contains(name_of({0, role, expert, part}));
}

void FakeModel::add_tensor(const aq_tensor_key& key, std::vector<int64_t> shape) {
  const std::string name = name_of(key);
  const auto generator = at::detail::createCPUGenerator(std::hash<std::string>()(name));
  const double spread = shape.size() == 2 ? 1.5 / std::sqrt(static_cast<double>(shape[1])) : 0.5;
  at::Tensor values = at::randn(shape, generator).mul_(spread);
  const bool norm_weight = key.part == AQ_PART_WEIGHT && shape.size() == 1 &&
                           key.role != AQ_ROLE_ROUTER_BIAS && key.role != AQ_ROLE_ATTN_SINKS &&
                           key.role != AQ_ROLE_DELTA_A_LOG && key.role != AQ_ROLE_DELTA_DT_BIAS;
  tensors[name] = norm_weight ? values.add_(1) : values;
}

void FakeModel::add(int32_t role, int32_t expert, int64_t out, int64_t in, int32_t stage,
                    int32_t group, bool bias) {
  aq_tensor_key key{role == AQ_ROLE_LM_HEAD ? -1 : 0, role, expert, AQ_PART_WEIGHT};
  add_tensor(key, {out, in});
  matrices_.push_back({key, out, in, stage, group, "module." + name_of(key)});
  key.part = AQ_PART_BIAS;
  if (bias) add_tensor(key, {out});
}

void FakeModel::add_norm(int32_t role, int64_t size, int32_t layer) {
  add_tensor({layer, role, AQ_EXPERT_NONE, AQ_PART_WEIGHT}, {size});
  if (desc.norm_kind == AQ_NORM_LAYER)
    add_tensor({layer, role, AQ_EXPERT_NONE, AQ_PART_BIAS}, {size});
}

void FakeModel::list_attention() {
  const aq_attention_desc& a = attention;
  const int64_t d = desc.hidden_size, rope = a.rope_dim, value = a.value_dim;
  const int64_t q = a.n_heads * a.head_dim, kv = a.n_kv_heads * a.head_dim;
  const auto linear = [&](int32_t role, int64_t out, int64_t in, int32_t stage, int32_t group) {
    add(role, AQ_EXPERT_NONE, out, in, stage, group, attention_biases);
  };
  if (a.kind == AQ_ATTN_LATENT) {
    linear(a.q_rank > 0 ? AQ_ROLE_ATTN_Q_A : AQ_ROLE_ATTN_Q, a.q_rank > 0 ? a.q_rank : q, d, 0, 0);
    linear(AQ_ROLE_ATTN_KV_A, a.kv_rank + rope, d, 0, 0);
    if (a.q_rank > 0) linear(AQ_ROLE_ATTN_Q_B, q, a.q_rank, 1, 1);
    linear(AQ_ROLE_ATTN_KV_B, a.n_heads * (a.head_dim - rope + value), a.kv_rank, 1, 2);
    linear(AQ_ROLE_ATTN_O, d, a.n_heads * value, 2, 3);
  } else if (a.kind == AQ_ATTN_DELTA) {
    const int64_t values = a.n_heads * value;
    if (a.delta_fused != 0) {
      linear(AQ_ROLE_DELTA_QKVZ, 2 * kv + 2 * values, d, 0, 0);
      linear(AQ_ROLE_DELTA_BA, 2 * a.n_heads, d, 0, 0);
    } else {
      linear(AQ_ROLE_DELTA_QKV, 2 * kv + values, d, 0, 0);
      linear(AQ_ROLE_DELTA_Z, values, d, 0, 0);
      linear(AQ_ROLE_DELTA_B, a.n_heads, d, 0, 0);
      linear(AQ_ROLE_DELTA_A, a.n_heads, d, 0, 0);
    }
    linear(AQ_ROLE_DELTA_OUT, d, values, 1, 1);
  } else {
    linear(AQ_ROLE_ATTN_Q, a.output_gate != 0 ? 2 * q : q, d, 0, 0);
    linear(AQ_ROLE_ATTN_K, kv, d, 0, 0);
    linear(AQ_ROLE_ATTN_V, kv, d, 0, 0);
    linear(AQ_ROLE_ATTN_O, d, q, 1, 1);
  }
}

void FakeModel::list_matrices() {
  list_attention();
  const int64_t d = desc.hidden_size;
  const int32_t stage = matrices_.back().stage + 1, group = matrices_.back().input_group + 1;
  const auto add_inputs = [&](int32_t expert, int64_t inner) {
    add(AQ_ROLE_FFN_GATE, expert, inner, d, stage, group, expert_biases);
    add(AQ_ROLE_FFN_UP, expert, inner, d, stage, group, expert_biases);
  };
  const auto each_expert = [&](const auto& call) {
    if (ffn.kind == AQ_FFN_DENSE) call(AQ_EXPERT_NONE, ffn.inner_size);
    if (ffn.kind != AQ_FFN_MOE) return;
    for (int32_t e = 0; e < ffn.n_experts; e++) call(e, ffn.inner_size);
    if (ffn.shared_size > 0) call(AQ_EXPERT_SHARED, ffn.shared_size);
  };
  if (ffn.kind == AQ_FFN_MOE)
    add(AQ_ROLE_ROUTER, AQ_EXPERT_NONE, ffn.n_experts, d, stage, group, false);
  if (ffn.shared_gated) add(AQ_ROLE_SHARED_ROUTER, AQ_EXPERT_NONE, 1, d, stage, group, false);
  each_expert(add_inputs);
  each_expert([&](int32_t expert, int64_t inner) {
    add(AQ_ROLE_FFN_DOWN, expert, d, inner, stage + 1, group + 1, expert_biases);
  });
  if (!desc.tied_embeddings)
    add(AQ_ROLE_LM_HEAD, AQ_EXPERT_NONE, desc.vocab_size, d, 0, 0, head_bias);
}

void FakeModel::add_attention_vectors() {
  const aq_attention_desc& a = attention;
  const auto add_vector = [&](int32_t role, std::vector<int64_t> shape) {
    add_tensor({0, role, AQ_EXPERT_NONE, AQ_PART_WEIGHT}, std::move(shape));
  };
  if (a.qk_norm != AQ_QK_NORM_NONE) {
    const bool full = a.qk_norm == AQ_QK_NORM_FULL;
    add_norm(AQ_ROLE_ATTN_Q_NORM, a.head_dim * (full ? a.n_heads : 1), 0);
    add_norm(AQ_ROLE_ATTN_K_NORM, a.head_dim * (full ? a.n_kv_heads : 1), 0);
  }
  if (a.sinks != 0) add_vector(AQ_ROLE_ATTN_SINKS, {a.n_heads});
  if (a.kind == AQ_ATTN_LATENT) {
    if (a.q_rank > 0) add_norm(AQ_ROLE_ATTN_Q_A_NORM, a.q_rank, 0);
    add_norm(AQ_ROLE_ATTN_KV_A_NORM, a.kv_rank, 0);
  }
  if (a.kind != AQ_ATTN_DELTA) return;
  add_vector(AQ_ROLE_DELTA_CONV,
             {2 * a.n_kv_heads * a.head_dim + a.n_heads * a.value_dim, 1, a.conv_size});
  add_vector(AQ_ROLE_DELTA_A_LOG, {a.n_heads});
  add_vector(AQ_ROLE_DELTA_DT_BIAS, {a.n_heads});
  add_vector(AQ_ROLE_DELTA_NORM, {a.value_dim});
}

std::unique_ptr<const Model> FakeModel::open() {
  list_matrices();
  const int64_t d = desc.hidden_size;
  add_tensor({-1, AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, AQ_PART_WEIGHT}, {desc.vocab_size, d});
  add_norm(AQ_ROLE_FINAL_NORM, d, -1);
  add_norm(AQ_ROLE_ATTN_NORM, d, 0);
  add_norm(AQ_ROLE_FFN_NORM, d, 0);
  add_attention_vectors();
  if (router_bias)
    add_tensor({0, AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE, AQ_PART_WEIGHT}, {ffn.n_experts});

  attention.rope_inv_freq = rope_inv_freq.data();
  raw_.struct_size = sizeof raw_;
  raw_.plugin_data = this;
  raw_.describe = [](const aq_model* self, aq_model_desc* out, aq_error*) {
    return aq_copy_out(out, &fake(self).desc, sizeof *out);
  };
  raw_.describe_attention = [](const aq_model* self, int32_t, int64_t, aq_attention_desc* out,
                               aq_error*) {
    return aq_copy_out(out, &fake(self).attention, sizeof *out);
  };
  raw_.describe_ffn = [](const aq_model* self, int32_t, aq_ffn_desc* out, aq_error*) {
    return aq_copy_out(out, &fake(self).ffn, sizeof *out);
  };
  raw_.module_count = [](const aq_model* self) {
    return static_cast<uint32_t>(fake(self).matrices_.size());
  };
  raw_.get_extension = [](const aq_model* self, const char* id) -> const void* {
    return std::string_view(id) == AQ_EXT_BLOCK_FORWARD ? fake(self).block_forward : nullptr;
  };
  raw_.get_module = get_module;
  raw_.find_ref = find_ref;
  raw_.find_key = find_key;
  raw_.route = route;
  return std::make_unique<const Model>(&raw_, "fake", "fake.so", source());
}

void FakeModel::wire_attention() {
  static constexpr aq_block_forward kWired{sizeof(aq_block_forward), 0, attend, nullptr};
  attention.kind = AQ_ATTN_CUSTOM;
  block_forward = &kWired;
}

void FakeModel::use_latent_attention(int32_t q_rank) {
  attention.kind = AQ_ATTN_LATENT;
  attention.head_dim = 14;  // 6 features without rotation
  attention.value_dim = 10;
  attention.q_rank = q_rank;
  attention.kv_rank = 12;
}

void FakeModel::use_delta_rule(bool fused) {
  attention.kind = AQ_ATTN_DELTA;
  attention.n_kv_heads = attention.n_heads / 2;
  attention.rope_dim = 0;
  attention.value_dim = 6;
  attention.conv_size = 4;
  attention.delta_fused = fused;
}

aq_status FakeModel::attend(const aq_model* self, const aq_forward_args* args, aq_error* err) {
  return aq::guard(err, [&] {
    const aq_attention_desc& a = fake(self).attention;
    const aq::ForwardCall call(args, fake(self).desc.hidden_size);
    const auto module = [&](int32_t role) {
      const auto& all = fake(self).matrices_;
      const auto it =
          std::find_if(all.begin(), all.end(), [&](const Matrix& m) { return m.key.role == role; });
      return static_cast<uint32_t>(it - all.begin());
    };
    const int64_t q_size = a.n_heads * a.head_dim, kv_size = a.n_kv_heads * a.head_dim;
    const aq::Rows q = call.linear(module(AQ_ROLE_ATTN_Q), call.x(), q_size),
                   k = call.linear(module(AQ_ROLE_ATTN_K), call.x(), kv_size),
                   v = call.linear(module(AQ_ROLE_ATTN_V), call.x(), kv_size);
    const float scale = 1 / std::sqrt(static_cast<float>(a.head_dim));
    const aq::Rows context = call.attend(q, k, v, a.n_heads, a.n_kv_heads, scale);
    call.linear(module(AQ_ROLE_ATTN_O), context, call.y());
  });
}

aq_status FakeModel::get_module(const aq_model* self, uint32_t i, aq_module* out, aq_error*) {
  const Matrix& matrix = fake(self).matrices_[i];
  aq_tensor_key bias = matrix.key;
  bias.part = AQ_PART_BIAS;
  const auto stored_bias = fake(self).tensors.find(name_of(bias));
  aq_module module{};
  module.key = matrix.key;
  module.name = matrix.name.c_str();
  module.weight = ref_of(fake(self).tensors.find(name_of(matrix.key))->first.c_str());
  if (stored_bias != fake(self).tensors.end()) module.bias = ref_of(stored_bias->first.c_str());
  module.out_features = matrix.out;
  module.in_features = matrix.in;
  module.stage = matrix.stage;
  module.input_group = matrix.input_group;
  return aq_copy_out(out, &module, sizeof module);
}

aq_status FakeModel::find_ref(const aq_model* self, const aq_tensor_key* key, aq_tensor_ref* out,
                              aq_error*) {
  const auto it = fake(self).tensors.find(name_of(*key));
  if (it == fake(self).tensors.end()) return AQ_NOT_FOUND;
  *out = ref_of(it->first.c_str());
  return AQ_OK;
}

aq_status FakeModel::find_key(const aq_model*, const char* name, aq_tensor_key* out, aq_error*) {
  const std::string_view text = name;
  const bool top = text.starts_with("top.");
  *out = {top ? -1 : 0, 0, 0, 0};
  return std::sscanf(name + (top ? 4 : 0), "%d.%d.%d", &out->role, &out->expert, &out->part) == 3
             ? AQ_OK
             : AQ_NOT_FOUND;
}

/// Chooses the top_k experts by logit + bias. The weight is sigmoid(logit), times 1 + the token's
/// first hidden value if route_hidden is set. Tokens whose first logit is positive do not use their
/// last slot.
aq_status FakeModel::route(const aq_model* self, const aq_route_args* args, aq_error* err) {
  const aq_ffn_desc& ffn = fake(self).ffn;
  if ((args->bias != nullptr) != fake(self).router_bias ||
      (args->hidden != nullptr) != (ffn.route_hidden != 0)) {
    std::snprintf(err->message, sizeof err->message, "bias or hidden missing, or not asked for");
    return err->code = AQ_INVALID_ARGUMENT;
  }
  const auto data = [](const DLTensor* t) { return static_cast<float*>(t->data); };
  const int64_t n = ffn.n_experts, k = ffn.top_k;
  std::vector<int32_t> order(static_cast<std::size_t>(n));
  for (int64_t t = 0; t < args->logits->shape[0]; t++) {
    const float* logits = data(args->logits) + t * n;
    const auto score = [&](int32_t e) {
      return logits[e] + (args->bias != nullptr ? data(args->bias)[e] : 0.0f);
    };
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int32_t a, int32_t b) { return score(a) > score(b); });
    for (int64_t slot = 0; slot < k; slot++) {
      const int32_t e = order[static_cast<std::size_t>(slot)];
      const bool used = slot + 1 < k || logits[0] <= 0;
      float weight = 1.0f / (1.0f + std::exp(-logits[e]));
      if (args->hidden != nullptr)
        weight *= 1 + std::abs(data(args->hidden)[t * fake(self).desc.hidden_size]);
      static_cast<int32_t*>(args->expert_ids->data)[t * k + slot] = used ? e : -1;
      data(args->weights)[t * k + slot] = used ? weight : 0;
    }
  }
  return AQ_OK;
}

}  // namespace aqhost
