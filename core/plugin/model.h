#pragma once

#include <aq/model.h>
#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/tensor_ref.h"

namespace aqhost {

class Library;

struct Module {        // a checked aq_module
  uint32_t index = 0;  // the index for get_module()
  std::string name;
  aq_tensor_key key{};
  TensorRef weight;
  std::optional<TensorRef> bias;
  int64_t out_features = 0, in_features = 0;
  int32_t stage = 0, input_group = 0;
  std::string label;
  bool quantize = false, sensitive = false;
};

struct ModelDesc {
  int32_t n_layers = 0;
  int64_t hidden_size = 0, vocab_size = 0, max_positions = 0;
  int32_t norm_kind = AQ_NORM_RMS;
  float norm_eps = 0;
  bool tied_embeddings = false;
  float embedding_scale = 1, residual_scale = 1, logit_scale = 1;
  bool norm_plus_one = false;
};

struct AttentionDesc {
  int32_t kind = AQ_ATTN_STANDARD;
  int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0, qk_norm = AQ_QK_NORM_NONE;
  int32_t sliding_window = 0;
  float clip_qkv = 0, scale = 0 /* never 0 once described */, rope_scale = 1;
  bool rope_interleaved = false;
  std::vector<float> rope_inv_freq;  // empty: no RoPE
  bool output_gate = false, sinks = false, delta_fused = false;
  int32_t q_rank = 0, kv_rank = 0, value_dim = 0, conv_size = 0;
  float latent_eps = 0;  // never 0 once described

  int64_t rope_dim() const { return 2 * static_cast<int64_t>(rope_inv_freq.size()); }
};

/// A linear map that described attention has: its role, and its place among the stages of
/// attention. `input` counts the different inputs of a stage.
struct AttentionLinear {
  int32_t role = 0;
  int64_t out_features = 0, in_features = 0;
  int32_t stage = 0, input = 0;
};

/// The linear maps of attention that is not AQ_ATTN_CUSTOM, in the order of their stages.
std::vector<AttentionLinear> linears_of(const AttentionDesc& desc, int64_t hidden_size);

struct FfnDesc {
  int32_t kind = AQ_FFN_DENSE, activation = AQ_ACT_SILU_GLU;
  int32_t n_experts = 0, top_k = 0, router = 0;
  bool norm_topk = false;
  float routed_scale = 1;
  int32_t n_groups = 0, top_groups = 0;
  int64_t inner_size = 0, shared_size = 0;
  bool shared_gated = false, route_hidden = false;
  int32_t group_best = 1;
  float act_alpha = 0, act_limit = 0, norm_min = 0;
};

struct RouteArgs {
  int32_t layer = 0;
  int64_t tokens = 0;
  std::span<const float> logits;  // [tokens, n_experts]
  std::span<const float> bias;    // [n_experts] or empty
  std::span<const float> hidden;  // [tokens, hidden_size] or empty
  std::span<int32_t> ids;         // out [tokens, top_k]; -1: the slot is not used
  std::span<float> weights;       // out [tokens, top_k]
};

/// A tensor that running the model reads, and the shape in which it is read.
struct NeededTensor {
  TensorRef ref;
  std::vector<int64_t> shape;
};

/// "layer 0, role 17, expert -1, part 0", for messages.
std::string key_text(const aq_tensor_key& key);

/// A model adapter of a plugin. Everything that the plugin returns is checked here, and only here:
/// ids and sizes must be in range, numbers finite, tensors must exist with the shapes that follow
/// from the description, and names must be the inverse of their keys. An Error names the plugin's
/// file and what it returned. Const functions are thread-safe.
class Model {
 public:
  /// Reads the description of `raw` and checks it against `source`. Takes ownership of `raw`, which
  /// is destroyed with this object, or if the constructor fails. Every tensor that the model needs
  /// must exist, have a float type, and have the shape that follows from the description. Whether
  /// its values are finite is checked when they are read, or before that by check_finite().
  /// `library` stays open as long as this object lives. If `has_tensors` is false, `source` is
  /// known only by its config.json (see config_only.h), and nothing is checked against its tensors.
  Model(const aq_model* raw, std::string id, std::string plugin_path, const Source& source,
        std::shared_ptr<const Library> library = nullptr, bool has_tensors = true);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const std::string& id() const { return id_; }  // "olmoe"
  const ModelDesc& desc() const { return desc_; }
  AttentionDesc attention(int32_t layer, int64_t seq_len) const;
  const FfnDesc& ffn(int32_t layer) const { return ffns_[static_cast<std::size_t>(layer)]; }

  const std::vector<Module>& modules() const { return modules_; }
  /// Where the tensor of `key` lies; nullopt if the model has no such tensor.
  std::optional<TensorRef> find_ref(const aq_tensor_key& key) const;
  std::optional<aq_tensor_key> find_key(const std::string& name) const;
  /// The module of `key` (whose part is the weight), or nullptr.
  const Module* find_module(const aq_tensor_key& key) const;

  /// Every tensor, or part of a tensor, that running the model on `source` reads.
  std::vector<NeededTensor> needed_tensors(const Source& source) const;
  /// Tensors of the checkpoint that are never run, as the adapter says. They are copied to an
  /// export unchanged.
  struct Copied {
    std::string prefix, what;  // "mtp.", "multi-token prediction"
    std::vector<std::string> tensors;
  };
  const std::vector<Copied>& copied() const { return copied_; }
  /// The names of tensors in the checkpoint that the adapter does not know. They are copied to an
  /// export unchanged, and never run. The list does not contain known buffers (rotary_emb.inv_freq,
  /// k_scale, ...). It does not contain tensors that would change the model either: if there is
  /// another tensor of one of the model's modules, of an expert beyond the last, or of a layer that
  /// is run, the constructor throws an Error.
  const std::vector<std::string>& extra_tensors() const { return extra_tensors_; }
  /// A note about those extra tensors that belong to layers beyond the last; empty if there are
  /// none.
  std::string extra_note() const;

  /// Calls the adapter's router and checks the result: ids must be in range and distinct, weights
  /// finite and not negative.
  void route(const RouteArgs& args) const;

  const aq_model* raw() const { return raw_.get(); }

 private:
  void describe();
  FfnDesc describe_ffn(int32_t layer) const;
  uint32_t module_count() const;
  void list_modules();
  Module get_module(uint32_t index) const;
  TensorRef take_ref(const aq_tensor_ref& raw, const std::string& what) const;
  void check_modules() const;
  bool may_be_wired(const aq_tensor_key& key) const;
  void check_input_groups() const;
  void check_tensors(const Source& source);
  void list_copied();
  bool take_copied(const std::string& tensor);
  void check_extra_tensors(const Source& source) const;
  void check_module_tensors(const Source& source) const;
  void check_needed(const Source& source) const;
  std::string extra_text() const;
  template <typename... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail("plugin {}: model \"{}\": {}", plugin_path_, id_,
         fmt::format(format, std::forward<Args>(args)...));
  }

  struct Destroy {
    void operator()(const aq_model* model) const;
  };
  std::shared_ptr<const Library> library_;
  std::unique_ptr<const aq_model, Destroy> raw_;
  std::string id_, plugin_path_;
  ModelDesc desc_;
  std::vector<FfnDesc> ffns_;
  std::vector<Module> modules_;
  std::vector<std::string> extra_tensors_;
  std::vector<Copied> copied_;
  // (layer, role, expert) -> index in modules_
  std::map<std::array<int32_t, 3>, std::size_t> by_key_;
};

}  // namespace aqhost
