#include "export/gguf_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>

#include "export/gguf_rope.h"

namespace aqhost {
namespace {

/// The first layer that has experts.
int32_t first_expert_layer(const Model& model) {
  int32_t layer = 0;
  while (layer + 1 < model.desc().n_layers && model.ffn(layer).kind != AQ_FFN_MOE) layer++;
  return layer;
}

void add_rope(const GgufRope& rope, const std::string& arch, GgufMetadata& metadata) {
  metadata.f32(arch + ".rope.freq_base", rope.theta);
  const std::string scaling = arch + ".rope.scaling.";
  metadata.text(scaling + "type", rope.scaling);
  if (rope.scaling != "none") metadata.f32(scaling + "factor", rope.factor);
  if (rope.scaling != "yarn") return;
  metadata.u32(scaling + "original_context_length", rope.original_positions);
  metadata.f32(scaling + "attn_factor", rope.attention_factor);
  // llama.cpp's code for deepseek2 divides by 0.1
  if (rope.log_multiplier != 0)
    metadata.f32(scaling + "yarn_log_multiplier", 0.1F * rope.log_multiplier);
}

/// Of heads that share one key, the vector of a token with the part that rotates behind it, and one
/// value, the same vector without that part.
void add_latent(const AttentionDesc& a, const std::string& attention, GgufMetadata& metadata) {
  metadata.u32(attention + "q_lora_rank", a.q_rank);
  metadata.u32(attention + "kv_lora_rank", a.kv_rank);
  metadata.u32(attention + "key_length", a.kv_rank + a.rope_dim());
  metadata.u32(attention + "value_length", a.kv_rank);
  metadata.u32(attention + "key_length_mla", a.head_dim);
  metadata.u32(attention + "value_length_mla", a.value_dim);
}

void add_attention(const AttentionDesc& a, const GgufRope& rope, const GgufFamily& family,
                   GgufMetadata& metadata) {
  const std::string arch = family.architecture;
  metadata.u32(arch + ".attention.head_count", a.n_heads);
  metadata.u32(arch + ".attention.head_count_kv", family.latent ? 1 : a.n_kv_heads);
  if (family.latent) {
    add_latent(a, arch + ".attention.", metadata);
  } else if (family.head_dim) {
    metadata.u32(arch + ".attention.key_length", a.head_dim);
    metadata.u32(arch + ".attention.value_length", a.head_dim);
  }
  if (family.windows) metadata.u32(arch + ".attention.sliding_window", a.sliding_window);
  metadata.u32(arch + ".rope.dimension_count", a.rope_dim());
  add_rope(rope, arch, metadata);
}

void add_ffn(const Model& model, const GgufFamily& family, GgufMetadata& metadata) {
  const std::string arch = family.architecture;
  const int32_t first = first_expert_layer(model);
  const FfnDesc& moe = model.ffn(first);
  // olmoe and llama take this for the size of an expert
  metadata.u32(arch + ".feed_forward_length", model.ffn(0).inner_size);
  metadata.u32(arch + ".expert_feed_forward_length", moe.inner_size);
  metadata.u32(arch + ".expert_count", moe.n_experts);
  metadata.u32(arch + ".expert_used_count", moe.top_k);
  if (family.shared == SharedExpert::kGated || family.shared == SharedExpert::kSized)
    metadata.u32(arch + ".expert_shared_feed_forward_length", moe.shared_size);
  if (family.shared == SharedExpert::kPlain)
    metadata.u32(arch + ".expert_shared_count", moe.shared_size / moe.inner_size);
  if (family.routed_scale) metadata.f32(arch + ".expert_weights_scale", moe.routed_scale);
  if (family.reads_norm_topk) metadata.flag(arch + ".expert_weights_norm", moe.norm_topk);
  const bool sigmoid = family.router == AQ_ROUTER_SIGMOID_TOPK;
  if (sigmoid || family.latent)  // a llama_expert_gating_func_type
    metadata.u32(arch + ".expert_gating_func", sigmoid ? 2 : 1);
  if (moe.n_groups > 1) {
    metadata.u32(arch + ".expert_group_count", moe.n_groups);
    metadata.u32(arch + ".expert_group_used_count", moe.top_groups);
  }
  if (family.layer_step) metadata.u32(arch + ".interleave_moe_layer_step", 1);
  if (family.dense_layers) metadata.u32(arch + ".leading_dense_block_count", first);
}

/// The type of most weights of matrices.
GgufType most_frequent_type(const std::vector<GgufTensor>& tensors) {
  std::map<GgufType, int64_t> weights;
  for (const GgufTensor& t : tensors)
    if (t.shape.size() > 1)
      weights[t.type] += t.bytes() / info_of(t.type).bytes * info_of(t.type).weights;
  return std::ranges::max_element(weights, {}, [](const auto& pair) { return pair.second; })->first;
}

/// Says what llama.cpp's code for latent attention computes otherwise.
void note_latent_eps(const AttentionDesc& a, float norm_eps, GgufModel& result) {
  if (a.kind == AQ_ATTN_LATENT && a.latent_eps != norm_eps)
    result.notes.push_back(fmt::format(
        "the norms inside latent attention have an eps of {:g}, and in llama.cpp that of the other "
        "norms, {:g}",
        a.latent_eps, norm_eps));
}

}  // namespace

void add_gguf_keys(const Source& source, const Model& model, const GgufFamily& family,
                   GgufModel& result) {
  const ModelDesc& desc = model.desc();
  GgufMetadata& metadata = result.metadata;
  std::filesystem::path folder = std::filesystem::absolute(source.directory()).lexically_normal();
  if (folder.filename().empty()) folder = folder.parent_path();
  metadata.text("general.architecture", family.architecture);
  metadata.text("general.type", "model");
  metadata.text("general.name", folder.filename().string());
  metadata.text("general.quantized_by", "aqhost");
  metadata.u32("general.quantization_version", 2);
  metadata.u32("general.file_type", info_of(most_frequent_type(result.tensors)).file_type);
  const std::string arch = family.architecture;
  metadata.u32(arch + ".block_count", desc.n_layers);
  metadata.u32(arch + ".context_length", desc.max_positions);
  metadata.u32(arch + ".embedding_length", desc.hidden_size);
  metadata.u32(arch + ".vocab_size", desc.vocab_size);
  metadata.f32(arch + ".attention.layer_norm_rms_epsilon", desc.norm_eps);
  const AttentionDesc attention = model.attention(0, desc.max_positions);
  if (family.multipliers) {
    metadata.f32(arch + ".embedding_scale", desc.embedding_scale);
    metadata.f32(arch + ".residual_scale", desc.residual_scale);
    metadata.f32(arch + ".logit_scale", 1 / desc.logit_scale);  // llama.cpp divides by it
    metadata.f32(arch + ".attention.scale", attention.scale);
  }
  const GgufRope rope = *gguf_rope(source.config(), attention);
  add_attention(attention, rope, family, metadata);
  result.rounded_rope = rope.rounded;
  note_latent_eps(attention, desc.norm_eps, result);
  add_ffn(model, family, metadata);
}

}  // namespace aqhost
