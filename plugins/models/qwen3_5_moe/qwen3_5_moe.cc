// Qwen3.5 and 3.6 MoE (Qwen3.5-35B-A3B, Qwen3.6-35B-A3B): as Qwen3-Next, with projections of their
// own for the gated delta rule. The published models contain a vision tower, which is copied and
// never run; their language model is described by text_config.

#include <aq/sdk/hf_delta.hpp>

namespace {

/// The rows with "model.language_model." in place of "model.".
std::vector<aq::NameRow> in_language_model(std::vector<aq::NameRow> rows) {
  const std::string prefix = "model.";
  for (aq::NameRow& row : rows)
    if (row.pattern.starts_with(prefix))
      row.pattern = "model.language_model." + row.pattern.substr(prefix.size());
  return rows;
}

class Qwen35Moe {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "qwen3_5_moe", "Qwen3.5-MoE", "1.0.0", "AlphaQuant",
      "Qwen3.5-MoE (model_type qwen3_5_moe or qwen3_5_moe_text): Qwen/Qwen3.5-35B-A3B, "
      "Qwen/Qwen3.6-35B-A3B"};

  static constexpr const char* kAliases = "qwen3_5_moe_text qwen3_6_moe";

  static int probe(const nlohmann::json& config, std::string& why) {
    const int whole = aq::probe_config(
        config, {.model_type = "qwen3_5_moe", .architecture = "Qwen3_5MoeForConditionalGeneration"},
        why);
    if (whole == 100) return whole;
    std::string reason;
    const int text = aq::probe_config(
        config, {.model_type = "qwen3_5_moe_text", .architecture = "Qwen3_5MoeForCausalLM"},
        reason);
    if (text > whole) why = reason;
    return std::max(whole, text);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig whole(checkpoint);
    const bool composite = whole.has("text_config");
    const aq::HfConfig config = composite ? whole.object("text_config") : whole;
    whole.ignore({"vision_config", "image_token_id", "video_token_id", "vision_start_token_id",
                  "vision_end_token_id", "tie_word_embeddings"});
    config.ignore({"intermediate_size", "mlp_only_layers", "decoder_sparse_step",
                   "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype",
                   "attn_output_gate", "output_router_logits"});
    aq::hf_fixed(config, {{"norm_topk_prob", true}, {"attn_output_gate", true}});
    const aq_ffn_desc moe = aq::hf_gated_shared_experts(config);
    std::vector<aq::LayerDesc> layers = aq::hf_delta_layers(config, /*fused=*/false);
    for (aq::LayerDesc& layer : layers) layer.ffn = moe;
    aq_model_desc model = aq::hf_delta_model(config);
    // transformers writes models of both types with and without this prefix, and the published ones
    // have it; a plan for config.json alone has no tensor at all
    const bool prefixed = checkpoint.has("model.language_model.norm.weight");
    const bool stored = prefixed || checkpoint.has("model.norm.weight");
    const bool inside = stored ? prefixed : composite;
    model.tied_embeddings =
        whole.flag_or("tie_word_embeddings", false) || config.flag_or("tie_word_embeddings", false);
    std::vector<aq::NameRow> names = aq::hf_names(aq::hf_delta_names());
    if (inside) names = in_language_model(std::move(names));
    return aq::hf_decoder(
        checkpoint, config,
        {.layers = std::move(layers),
         .names = std::move(names),
         .model = model,
         .partial_rope = 0.25,
         .copied = {{"model.visual.", "the vision tower"}, {"mtp.", "multi-token prediction"}}});
  }
};

}  // namespace

AQ_EXPORT_MODEL(Qwen35Moe);
