#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <string>

#include "base/error.h"
#include "export/gguf_family.h"
#include "export/gguf_rope.h"

namespace aqhost {
namespace {

class OptionCheck {
 public:
  OptionCheck(const Source& source, const Model& model, const GgufFamily& family)
      : file_(source.directory() + "/config.json"),
        config_(source.config()),
        model_(model),
        family_(family) {}

  void run() const {
    const ModelDesc& desc = model_.desc();
    require(desc.norm_kind == AQ_NORM_RMS && !desc.norm_plus_one, "other norms than RMS norm");
    const bool plain =
        desc.embedding_scale == 1 && desc.residual_scale == 1 && desc.logit_scale == 1;
    require(plain || family_.multipliers, "multipliers of embeddings, residuals or logits");
    require(desc.max_positions > 0, "models without max_position_embeddings");
    for (int32_t l = 0; l < desc.n_layers; l++) {
      check_attention(l);
      check_ffn(l);
    }
    if (family_.latent) check_latent();
    for (const Module& m : model_.modules()) check_bias(m);
  }

 private:
  void require(bool holds, const std::string& what) const {
    if (!holds)
      fail("{}: llama.cpp's architecture {} has no {}", file_, family_.architecture, what);
  }

  void check_attention(int32_t layer) const {
    const AttentionDesc a = model_.attention(layer, model_.desc().max_positions);
    require(a.kind == (family_.latent ? AQ_ATTN_LATENT : AQ_ATTN_STANDARD) && !a.output_gate &&
                a.sinks == family_.sinks,
            family_.latent ? "other attention than latent attention"
                           : "other attention than softmax attention");
    const bool lacks_norm = family_.may_lack_qk_norm && a.qk_norm == AQ_QK_NORM_NONE;
    require(lacks_norm || a.qk_norm == family_.qk_norm, "such norms of q and k");
    require(a.clip_qkv == 0, "clip_qkv");
    check_window(layer, a.sliding_window);
    require(family_.fewer_kv || a.n_heads == a.n_kv_heads,
            "num_key_value_heads other than num_attention_heads");
    require(family_.head_dim || int64_t{a.n_heads} * a.head_dim == model_.desc().hidden_size,
            "head_dim other than hidden_size / num_attention_heads");
    check_rotation(a);
  }

  void check_rotation(const AttentionDesc& a) const {
    const AttentionDesc first = model_.attention(0, model_.desc().max_positions);
    require(family_.partial_rope || a.rope_dim() == a.head_dim, "rotation of a part of a head");
    require(a.rope_interleaved == family_.neighbours,
            family_.neighbours ? "rope_interleave: false" : "rotation of pairs of neighbours");
    const std::optional<GgufRope> rope = gguf_rope(config_, a);
    require(rope.has_value(),
            "rope scaling other than linear, and YaRN with beta_fast 32 and beta_slow 1");
    require(!family_.latent || rope->scaling != "linear", "linear rope scaling");
    require(a.rope_inv_freq == first.rope_inv_freq, "rotations that differ among layers");
    const float plain = 1 / std::sqrt(static_cast<float>(a.head_dim));
    const bool stored = family_.multipliers || (family_.latent && rope->scaling == "yarn");
    require(stored ? a.scale == first.scale : std::fabs(a.scale / plain - 1) < 1e-6F,
            "other scale of attention");
  }

  /// llama.cpp has a fixed list of DeepSeek-V2-Lite and its like, of which it does not read
  /// q_lora_rank.
  void check_latent() const {
    const ModelDesc& desc = model_.desc();
    const bool lite = desc.n_layers == 26 || desc.n_layers == 27 ||
                      (desc.n_layers == 48 && desc.vocab_size == 128256);
    require(!lite || model_.attention(0, desc.max_positions).q_rank == 0,
            fmt::format("q_lora_rank in a model of {} layers", desc.n_layers));
    require(!config_.contains("index_topk"), "index_topk (sparse attention)");
  }

  void check_window(int32_t layer, int32_t window) const {
    const bool none = window == 0 || (window >= model_.desc().max_positions && !family_.windows);
    require(family_.windows || none, fmt::format("sliding_window ({})", window));
    require(!family_.windows || none == (layer % 2 == 1),
            "layer_types other than sliding_attention in every second layer, from the first on");
  }

  void check_ffn(int32_t layer) const {
    const FfnDesc& f = model_.ffn(layer);
    require(f.activation == family_.activation, "such a hidden_act");
    require(
        family_.activation != AQ_ACT_CLAMPED_SWIGLU || (f.act_alpha == 1.702F && f.act_limit == 7),
        "swiglu_limit other than 7");
    if (f.kind == AQ_FFN_DENSE) {
      require(family_.dense_layers && (layer == 0 || model_.ffn(layer - 1).kind == AQ_FFN_DENSE),
              family_.dense_layers ? "dense layers after the first layer with experts"
                                   : "dense layers");
      return;
    }
    check_router(f);
    check_shared(f);
  }

  void check_router(const FfnDesc& f) const {
    const bool groups = f.n_groups <= 1 || family_.groups;
    require(f.kind == AQ_FFN_MOE && f.router == family_.router && groups,
            fmt::format("router other than {} over all experts",
                        family_.router == AQ_ROUTER_SOFTMAX_TOPK ? "softmax" : "a sigmoid"));
    require(f.n_groups <= 1 || f.group_best == 2,
            "groups of experts that are scored otherwise than by their best two");
    // llama.cpp divides the weights by their sum, or by the smallest normal number of float16
    require(f.norm_min < 6.2e-5F, fmt::format("moe_norm_min ({})", f.norm_min));
    require(family_.reads_norm_topk || f.norm_topk == family_.norm_topk,
            fmt::format("norm_topk_prob: {}", f.norm_topk));
    require(family_.routed_scale || f.routed_scale == 1, "factor of the experts' weights");
  }

  void check_shared(const FfnDesc& f) const {
    if (family_.shared == SharedExpert::kSized) return;
    require((f.shared_size > 0) == (family_.shared != SharedExpert::kNone),
            f.shared_size > 0 ? "shared experts" : "models without shared experts");
    require(f.shared_gated == (family_.shared == SharedExpert::kGated), "such shared experts");
    require(family_.shared != SharedExpert::kPlain || f.shared_size % f.inner_size == 0,
            "shared experts of such a size");
  }

  void check_bias(const Module& m) const {
    const int32_t role = m.key.role;
    if (role == AQ_ROLE_ATTN_Q || role == AQ_ROLE_ATTN_K || role == AQ_ROLE_ATTN_V) return;
    const bool needed = family_.ffn_biases && role != AQ_ROLE_LM_HEAD;
    require(m.bias || !needed, m.name + " without a bias");
    require(!m.bias || needed || (role == AQ_ROLE_ATTN_O && family_.out_bias), "bias in " + m.name);
  }

  const std::string file_;
  const Json& config_;
  const Model& model_;
  const GgufFamily& family_;
};

}  // namespace

void check_gguf_options(const Source& source, const Model& model, const GgufFamily& family) {
  OptionCheck(source, model, family).run();
}

}  // namespace aqhost
