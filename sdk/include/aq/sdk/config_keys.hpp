// aq/sdk/config_keys.hpp - records which keys of config.json an adapter has read. The user is
// warned of the other keys, because a key that the adapter does not know may change what the model
// computes.
#pragma once

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace aq {

/// Whether a key of config.json, or of an object in it such as text_config, has no influence on
/// what a decoder computes from its tokens. Such keys say where the file comes from, how the
/// model was trained, how text is generated, or how results are returned.
inline bool is_harmless_key(std::string_view key) {
  static constexpr auto kKeys = std::to_array<std::string_view>({
      // the file
      "_commit_hash",
      "_name_or_path",
      "architectures",
      "auto_map",
      "dtype",
      "model_type",
      "quantization_config",
      "torch_dtype",
      "transformers_version",
      "unsloth_fixed",
      "unsloth_version",
      // training
      "attention_dropout",
      "attention_probs_dropout_prob",
      "attn_pdrop",
      "aux_loss_alpha",
      "classifier_dropout",
      "embd_pdrop",
      "ep_size",
      "hidden_dropout",
      "hidden_dropout_prob",
      "initializer_factor",
      "initializer_range",
      "pretraining_tp",
      "resid_pdrop",
      "router_aux_loss_coef",
      "router_jitter_noise",
      "router_z_loss_coef",
      "seq_aux",
      // tokens
      "bos_token_id",
      "decoder_start_token_id",
      "eos_token_id",
      "pad_token_id",
      "prefix",
      "sep_token_id",
      "tokenizer_class",
      "unk_token_id",
      // generation
      "bad_words_ids",
      "begin_suppress_tokens",
      "diversity_penalty",
      "do_sample",
      "early_stopping",
      "encoder_no_repeat_ngram_size",
      "exponential_decay_length_penalty",
      "forced_bos_token_id",
      "forced_eos_token_id",
      "length_penalty",
      "max_length",
      "min_length",
      "no_repeat_ngram_size",
      "num_beam_groups",
      "num_beams",
      "num_return_sequences",
      "remove_invalid_values",
      "repetition_penalty",
      "suppress_tokens",
      "temperature",
      "top_k",
      "top_p",
      "typical_p",
      "use_cache",
      // how transformers runs the model, and what it returns
      "_attn_implementation",
      "_attn_implementation_autoset",
      "_flash_attn_2_enabled",
      "_experts_implementation",
      "attn_implementation",
      "chunk_size_feed_forward",
      "output_attentions",
      "output_hidden_states",
      "output_router_logits",
      "output_scores",
      "return_dict",
      "return_dict_in_generate",
      "tf_legacy_loss",
      "torchscript",
      "use_bfloat16",
      // tasks other than predicting the next token
      "add_cross_attention",
      "cross_attention_hidden_size",
      "finetuning_task",
      "id2label",
      "is_decoder",
      "is_encoder_decoder",
      "label2id",
      "num_labels",
      "problem_type",
      "pruned_heads",
      "task_specific_params",
      "tie_encoder_decoder",
  });
  return std::find(kKeys.begin(), kKeys.end(), key) != kKeys.end();
}

/// The keys that HfConfig was asked for. Not thread-safe.
class ConfigKeys {
 public:
  /// Marks a key as read. `path` is "num_experts" or "rope_scaling.factor". A path that ends in a
  /// dot, such as "rope_scaling.", names an object whose members are checked one by one.
  void mark(std::string path) { read_.insert(std::move(path)); }
  /// Whether any key was read.
  bool any() const { return !read_.empty(); }

  /// The keys of `config` that are set (null counts as not set), were not read, and are not
  /// harmless.
  std::vector<std::string> unread(const nlohmann::json& config,
                                  const std::string& path = "") const {
    std::vector<std::string> keys;
    for (const auto& [key, value] : config.items()) {
      const std::string whole = path + key;
      if (value.is_null() || is_harmless_key(key)) continue;
      if (!read_.contains(whole)) keys.push_back(whole);
      if (!value.is_object() || !read_.contains(whole + ".")) continue;
      for (std::string& inner : unread(value, whole + ".")) keys.push_back(std::move(inner));
    }
    return keys;
  }

 private:
  std::set<std::string> read_;
};

}  // namespace aq
