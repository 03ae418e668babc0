// aq/sdk/decoder.hpp - DecoderModel: a complete adapter made from a description and a table of
// names.
#pragma once

#include <algorithm>
#include <aq/sdk/model.hpp>
#include <aq/sdk/names.hpp>
#include <aq/sdk/router.hpp>
#include <aq/sdk/tensor.hpp>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace aq {

/// A linear map of attention. In an attention that only the adapter knows, `role` is
/// AQ_ROLE_ATTN_*, or a role of the adapter's own above AQ_ROLE_CUSTOM, for which the table of
/// names has a row with the whole name of the tensor.
struct CustomLinear {
  int32_t role;
  const char* label;
  int64_t out_features, in_features;
  int32_t stage, input_group;  // see aq_module
};

/// One layer of a DecoderModel. describe_attention() fills in rope_inv_freq.
struct LayerDesc {
  aq_attention_desc attention{};
  aq_ffn_desc ffn{};
  // of q, k, v (in latent attention of q_a and kv_a); of o; of the router; of dense and shared FFNs
  bool qkv_bias = false, out_bias = false, router_bias = false, ffn_bias = false;
  std::vector<CustomLinear> attention_linears{};  // for AQ_ATTN_CUSTOM, ordered by stage
};

/// How a tensor that holds the matrices of all experts is laid out.
struct Stacking {
  bool transposed = false;   // [experts, in, out] instead of [experts, out, in]
  bool interleaved = false;  // gate and up rows alternate, instead of all gate rows first
  bool biases = false;       // each has a bias for every expert, named with "_bias" added
  /// The patterns of the two tensors in checkpoints where they do not follow from the rows of the
  /// experts.
  std::string gate_up{}, down{};
};

/// Gives the frequencies of the rotary embedding for a sequence length. They must live as long as
/// the model.
using InvFreq = std::function<const float*(int64_t seq_len)>;

/// A prefix of the names of tensors that are copied and never run; see aq_copied.
struct Copied {
  std::string prefix, what;
};

/// What a DecoderModel is made of.
struct DecoderSpec {
  aq_model_desc model{};
  std::vector<LayerDesc> layers{};  // model.n_layers of them
  std::vector<NameRow> names{};
  InvFreq inv_freq{};  // needed if a layer has a rope_dim
  Stacking stacking{};
  std::vector<Copied> copied{};
  bool head_bias = false;  // lm_head has a bias
};

/// A decoder that consists of standard blocks. The modules, their stages and shared inputs, their
/// names and the routing all follow from the description. Rows of the name table are patterns
/// without ".weight" or ".bias"; see names.hpp. If two rows stand for the same tensor, the first
/// one names the module, and the second one says where the tensor lies in checkpoints that have it
/// there. Three kinds of row hold the whole name of a tensor. One is the row of
/// AQ_ROLE_ROUTER_BIAS; if it is there, every router has such a bias. Another is that of a
/// parameter of attention which is neither a linear map nor a norm (AQ_ROLE_ATTN_SINKS,
/// AQ_ROLE_DELTA_A_LOG, AQ_ROLE_DELTA_DT_BIAS). The others are rows of AQ_ROLE_CUSTOM and above,
/// each with a role of its own: for tensors of an attention that only the adapter knows, or for
/// tensors that a checkpoint may contain and that nothing needs.
class DecoderModel : public ModelAdapter {
 public:
  DecoderModel(DecoderSpec spec, const Checkpoint& checkpoint)
      : desc_(with_own_head(spec.model, spec.names, checkpoint)),
        layers_(std::move(spec.layers)),
        stacking_(spec.stacking),
        copied_(std::move(spec.copied)),
        head_bias_(spec.head_bias),
        inv_freq_(std::move(spec.inv_freq)),
        module_names_(with_parts(spec.names)),
        names_(with_parts(stored_rows(spec.names, checkpoint))) {
    if (static_cast<int64_t>(layers_.size()) != desc_.n_layers)
      throw Error("the adapter describes " + std::to_string(layers_.size()) +
                      " layers, config.json has " + std::to_string(desc_.n_layers),
                  AQ_INTERNAL);
    for (const Copied& c : copied_) copied_views_.push_back({c.prefix.c_str(), c.what.c_str()});
    find_stacks(spec.names, checkpoint);
    for (int32_t l = 0; l < desc_.n_layers; l++) add_layer(l);
    if (!desc_.tied_embeddings)
      add({-1, AQ_ROLE_LM_HEAD, AQ_EXPERT_NONE, 0}, desc_.vocab_size, desc_.hidden_size, 0, 0, 0);
  }

  aq_model_desc describe() const override { return desc_; }
  aq_attention_desc describe_attention(int32_t layer, int64_t seq_len) const override {
    aq_attention_desc desc = at(layer).attention;
    if (desc.rope_dim > 0) desc.rope_inv_freq = inv_freq_(seq_len);
    return desc;
  }
  aq_ffn_desc describe_ffn(int32_t layer) const override { return at(layer).ffn; }
  const aq_copied* copied(uint32_t i) const override {
    return i < copied_views_.size() ? &copied_views_[i] : nullptr;
  }
  uint32_t module_count() const override { return static_cast<uint32_t>(modules_.size()); }
  /// The index of the module with this role in a layer, not counting experts;
  /// aq_forward_ctx.linear() takes it.
  uint32_t module_index(int32_t layer, int32_t role) const {
    const auto it = module_index_.find({layer, role});
    if (it == module_index_.end())
      throw Error("layer " + std::to_string(layer) + " has no module of role " +
                  std::to_string(role));
    return it->second;
  }

  aq_module module(uint32_t i) const override {
    if (i >= modules_.size()) throw Error("there is no module " + std::to_string(i));
    const Linear& linear = modules_[i];
    aq_module out = linear.module;
    out.name = linear.name.c_str();
    find_ref(out.key, out.weight);
    aq_tensor_key bias = out.key;
    bias.part = AQ_PART_BIAS;
    if (!find_ref(bias, out.bias)) out.bias = {};
    return out;
  }

  bool find_ref(const aq_tensor_key& key, aq_tensor_ref& out) const override {
    if (!exists(key)) return false;
    out = {nullptr, -1, 0, 0, 0, 0, 0};
    if (const Stack* stack = stack_of(key)) {
      out.index = key.expert;
      out.transposed = stacking_.transposed && key.part == AQ_PART_WEIGHT;
      if (key.role != AQ_ROLE_FFN_DOWN) {
        out.row_count = at(key.layer).ffn.inner_size;
        if (key.role == AQ_ROLE_FFN_UP) out.row_begin = stacking_.interleaved ? 1 : out.row_count;
        if (stacking_.interleaved) out.row_step = 2;
      }
      out.name =
          intern(*stack->names.name({key.layer, stack->first_role, AQ_EXPERT_NONE, stack->part}));
      return true;
    }
    out.name = intern(*names_.name(key));
    return true;
  }

  bool find_key(const std::string& name, aq_tensor_key& out) const override {
    for (const Stack& stack : stacks_)
      if (const auto key = stack.names.key(name)) {
        out = {key->layer, stack.first_role, 0, stack.part};
        return exists(out) && stack_of(out) == &stack;
      }
    const auto key = names_.key(name);
    if (!key || !exists(*key) || stack_of(*key) != nullptr) return false;
    out = *key;
    return true;
  }

  void route(const aq_route_args& args) const override {
    const aq_ffn_desc& ffn = at(args.layer).ffn;
    if (ffn.kind != AQ_FFN_MOE)
      throw Error("layer " + std::to_string(args.layer) + " has no router");
    const auto* logits = view<const float>(args.logits, "logits", {-1, ffn.n_experts});
    const int64_t tokens = args.logits->shape[0];
    const auto* bias = optional_view<const float>(args.bias, "bias", {ffn.n_experts});
    auto* ids = view<int32_t>(args.expert_ids, "expert_ids", {tokens, ffn.top_k});
    auto* weights = view<float>(args.weights, "weights", {tokens, ffn.top_k});
    Router router(ffn);
    for (int64_t t = 0; t < tokens; t++)
      router.route(logits + t * ffn.n_experts, bias, ids + t * ffn.top_k, weights + t * ffn.top_k);
  }

 private:
  /// An lm_head that the checkpoint stores is used, as in transformers, even if config.json says
  /// that the embedding takes its place.
  static aq_model_desc with_own_head(aq_model_desc desc, const std::vector<NameRow>& names,
                                     const Checkpoint& checkpoint) {
    for (const NameRow& row : names)
      if (row.role == AQ_ROLE_LM_HEAD && checkpoint.has(row.pattern + ".weight"))
        desc.tied_embeddings = 0;
    return desc;
  }

  struct Linear {
    aq_module module;
    std::string name;
  };
  /// A tensor that holds the matrices of all experts, and the layers that have it.
  struct Stack {
    int32_t first_role, part;
    bool holds_up;
    NameTable names;
    std::set<int32_t> layers;
  };

  std::vector<NameRow> with_parts(const std::vector<NameRow>& rows) const {
    std::vector<NameRow> all;
    for (const NameRow& row : rows) {
      if (is_whole_name(row.role)) {
        all.push_back(row);
        continue;
      }
      all.push_back({row.role, row.expert, row.pattern + ".weight", AQ_PART_WEIGHT});
      all.push_back({row.role, row.expert, row.pattern + ".bias", AQ_PART_BIAS});
    }
    return all;
  }

  /// Whether the rows of a role hold whole names, without ".weight" added.
  static bool is_whole_name(int32_t role) {
    return role >= AQ_ROLE_CUSTOM || role == AQ_ROLE_ROUTER_BIAS || role == AQ_ROLE_ATTN_SINKS ||
           role == AQ_ROLE_DELTA_A_LOG || role == AQ_ROLE_DELTA_DT_BIAS;
  }

  const LayerDesc& at(int32_t layer) const {
    if (layer < 0 || static_cast<std::size_t>(layer) >= layers_.size())
      throw Error("there is no layer " + std::to_string(layer));
    return layers_[static_cast<std::size_t>(layer)];
  }

  /// One row for each kind of tensor: the last one that this checkpoint has, or the first one if it
  /// has none.
  std::vector<NameRow> stored_rows(const std::vector<NameRow>& rows,
                                   const Checkpoint& checkpoint) const {
    std::vector<NameRow> chosen;
    for (const NameRow& row : rows) {
      const auto same = std::find_if(chosen.begin(), chosen.end(), [&row](const NameRow& other) {
        return other.role == row.role && other.expert == row.expert;
      });
      if (same == chosen.end())
        chosen.push_back(row);
      else if (!layers_with(row.pattern + (is_whole_name(row.role) ? "" : ".weight"), checkpoint)
                    .empty())
        *same = row;
    }
    return chosen;
  }

  /// The layers for which the checkpoint has the tensor `pattern` (with expert 0, if it names an
  /// expert).
  std::set<int32_t> layers_with(const std::string& pattern, const Checkpoint& checkpoint) const {
    const NameTable table({{0, 0, pattern}});
    std::set<int32_t> found;
    for (int32_t l = 0; l < desc_.n_layers; l++)
      if (checkpoint.has(*table.name({l, 0, 0, 0}))) found.insert(l);
    return found;
  }

  /// Finds stacked experts as transformers 5 stores them: "...experts.{E}.gate_proj" becomes
  /// "...experts.gate_up_proj" and "...experts.down_proj".
  void find_stacks(const std::vector<NameRow>& rows, const Checkpoint& checkpoint) {
    for (const NameRow& row : rows) {
      const std::size_t hole = row.pattern.find(".{E}.");
      if (hole == std::string::npos || row.role != AQ_ROLE_FFN_GATE) continue;
      for (const bool down : {false, true}) {
        std::string name = row.pattern.substr(0, hole) + (down ? ".down_proj" : ".gate_up_proj");
        if (const std::string& other = down ? stacking_.down : stacking_.gate_up;
            !other.empty() && !layers_with(other, checkpoint).empty())
          name = other;
        const int32_t role = down ? AQ_ROLE_FFN_DOWN : AQ_ROLE_FFN_GATE;
        add_stack(role, AQ_PART_WEIGHT, name, layers_with(name, checkpoint));
        std::set<int32_t> moe;  // in exports, biases stay stacked although weights are not
        for (int32_t l = 0; l < desc_.n_layers; l++)
          if (stacking_.biases && at(l).ffn.kind == AQ_FFN_MOE) moe.insert(l);
        add_stack(role, AQ_PART_BIAS, name + "_bias", std::move(moe));
      }
    }
  }

  void add_stack(int32_t role, int32_t part, const std::string& name, std::set<int32_t> layers) {
    if (layers.empty()) return;
    stacks_.push_back({role, part, role == AQ_ROLE_FFN_GATE,
                       NameTable({{role, AQ_EXPERT_NONE, name, part}}), std::move(layers)});
  }

  const Stack* stack_of(const aq_tensor_key& key) const {
    if (key.expert < 0) return nullptr;
    for (const Stack& stack : stacks_)
      if (stack.part == key.part && stack.layers.contains(key.layer) &&
          (key.role == stack.first_role || (stack.holds_up && key.role == AQ_ROLE_FFN_UP)))
        return &stack;
    return nullptr;
  }

  bool exists(const aq_tensor_key& key) const {
    if (key.role >= AQ_ROLE_CUSTOM)
      return names_.name(key).has_value() && key.layer < desc_.n_layers;
    const bool bias = key.part == AQ_PART_BIAS;
    if (key.part != AQ_PART_WEIGHT && !bias) return false;
    const bool norm_bias = desc_.norm_kind == AQ_NORM_LAYER;
    if (key.layer < 0) {
      if (key.layer != -1 || key.expert != AQ_EXPERT_NONE) return false;
      if (key.role == AQ_ROLE_FINAL_NORM) return !bias || norm_bias;
      if (key.role == AQ_ROLE_LM_HEAD) return bias ? head_bias_ : desc_.tied_embeddings == 0;
      return !bias && key.role == AQ_ROLE_EMBEDDING;
    }
    if (key.layer >= desc_.n_layers) return false;
    const LayerDesc& layer = at(key.layer);
    const aq_ffn_desc& ffn = layer.ffn;
    const bool moe = ffn.kind == AQ_FFN_MOE;
    if (key.role == AQ_ROLE_FFN_GATE || key.role == AQ_ROLE_FFN_UP ||
        key.role == AQ_ROLE_FFN_DOWN) {
      if (bias && stack_of(key) == nullptr && (key.expert >= 0 || !layer.ffn_bias)) return false;
      if (key.expert == AQ_EXPERT_NONE) return !moe;
      if (key.expert == AQ_EXPERT_SHARED) return moe && ffn.shared_size > 0;
      return moe && key.expert >= 0 && key.expert < ffn.n_experts;
    }
    if (key.expert != AQ_EXPERT_NONE) return false;
    if (const auto known = attention_has(layer, key.role, bias)) {
      const bool module = key.role != AQ_ROLE_ATTN_Q_NORM && key.role != AQ_ROLE_ATTN_K_NORM;
      if (layer.attention.kind != AQ_ATTN_CUSTOM || !module) return *known;
      return !bias && module_index_.contains({key.layer, key.role});
    }
    switch (key.role) {
      case AQ_ROLE_ATTN_NORM:
      case AQ_ROLE_FFN_NORM:
        return !bias || norm_bias;
      case AQ_ROLE_ROUTER:
        return moe && (!bias || layer.router_bias);
      case AQ_ROLE_ROUTER_BIAS:
        return moe && !bias && names_.name(key).has_value();
      case AQ_ROLE_SHARED_ROUTER:
        return !bias && moe && ffn.shared_size > 0 && ffn.shared_gated != 0;
      default:
        return false;
    }
  }

  /// Whether the attention of a layer has the weight, or the bias, of a role; nullopt if the role
  /// does not belong to attention.
  static std::optional<bool> attention_has(const LayerDesc& layer, int32_t role, bool bias) {
    const aq_attention_desc& a = layer.attention;
    const bool standard = a.kind == AQ_ATTN_STANDARD, latent = a.kind == AQ_ATTN_LATENT,
               delta = a.kind == AQ_ATTN_DELTA, fused = a.delta_fused != 0;
    switch (role) {
      case AQ_ROLE_ATTN_Q:
        return (standard && (!bias || layer.qkv_bias)) || (latent && a.q_rank == 0 && !bias);
      case AQ_ROLE_ATTN_K:
      case AQ_ROLE_ATTN_V:
        return standard && (!bias || layer.qkv_bias);
      case AQ_ROLE_ATTN_O:
        return !delta && (!bias || layer.out_bias);
      case AQ_ROLE_ATTN_Q_NORM:
      case AQ_ROLE_ATTN_K_NORM:
        return !bias && a.qk_norm != AQ_QK_NORM_NONE;
      case AQ_ROLE_ATTN_Q_A:
        return latent && a.q_rank > 0 && (!bias || layer.qkv_bias);
      case AQ_ROLE_ATTN_Q_A_NORM:
      case AQ_ROLE_ATTN_Q_B:
        return latent && a.q_rank > 0 && !bias;
      case AQ_ROLE_ATTN_KV_A:
        return latent && (!bias || layer.qkv_bias);
      case AQ_ROLE_ATTN_KV_A_NORM:
      case AQ_ROLE_ATTN_KV_B:
        return latent && !bias;
      case AQ_ROLE_ATTN_SINKS:
        return !bias && a.sinks != 0;
      case AQ_ROLE_DELTA_QKV:
      case AQ_ROLE_DELTA_Z:
      case AQ_ROLE_DELTA_B:
      case AQ_ROLE_DELTA_A:
        return delta && !fused && !bias;
      case AQ_ROLE_DELTA_QKVZ:
      case AQ_ROLE_DELTA_BA:
        return delta && fused && !bias;
      case AQ_ROLE_DELTA_OUT:
      case AQ_ROLE_DELTA_CONV:
      case AQ_ROLE_DELTA_A_LOG:
      case AQ_ROLE_DELTA_DT_BIAS:
      case AQ_ROLE_DELTA_NORM:
        return delta && !bias;
      default:
        return std::nullopt;
    }
  }

  /// Lists the linear maps of described attention, in the order of their stages.
  static std::vector<CustomLinear> attention_linears(const aq_attention_desc& a, int64_t d) {
    const int64_t heads = a.n_heads, kv_heads = a.n_kv_heads, dim = a.head_dim, value = a.value_dim;
    if (a.kind == AQ_ATTN_LATENT) {
      std::vector<CustomLinear> linears;
      if (a.q_rank > 0)
        linears.push_back({AQ_ROLE_ATTN_Q_A, nullptr, a.q_rank, d, 0, 0});
      else
        linears.push_back({AQ_ROLE_ATTN_Q, nullptr, heads * dim, d, 0, 0});
      linears.push_back({AQ_ROLE_ATTN_KV_A, nullptr, int64_t{a.kv_rank} + a.rope_dim, d, 0, 0});
      if (a.q_rank > 0) linears.push_back({AQ_ROLE_ATTN_Q_B, nullptr, heads * dim, a.q_rank, 1, 1});
      linears.push_back(
          {AQ_ROLE_ATTN_KV_B, nullptr, heads * (dim - a.rope_dim + value), a.kv_rank, 1, 2});
      linears.push_back({AQ_ROLE_ATTN_O, nullptr, d, heads * value, 2, 3});
      return linears;
    }
    if (a.kind == AQ_ATTN_DELTA) {
      const int64_t keys = kv_heads * dim, values = heads * value;
      if (a.delta_fused != 0)
        return {{AQ_ROLE_DELTA_QKVZ, nullptr, 2 * keys + 2 * values, d, 0, 0},
                {AQ_ROLE_DELTA_BA, nullptr, 2 * heads, d, 0, 0},
                {AQ_ROLE_DELTA_OUT, nullptr, d, values, 1, 1}};
      return {{AQ_ROLE_DELTA_QKV, nullptr, 2 * keys + values, d, 0, 0},
              {AQ_ROLE_DELTA_Z, nullptr, values, d, 0, 0},
              {AQ_ROLE_DELTA_B, nullptr, heads, d, 0, 0},
              {AQ_ROLE_DELTA_A, nullptr, heads, d, 0, 0},
              {AQ_ROLE_DELTA_OUT, nullptr, d, values, 1, 1}};
    }
    const int64_t q = heads * dim, kv = kv_heads * dim;
    return {{AQ_ROLE_ATTN_Q, nullptr, a.output_gate != 0 ? 2 * q : q, d, 0, 0},
            {AQ_ROLE_ATTN_K, nullptr, kv, d, 0, 0},
            {AQ_ROLE_ATTN_V, nullptr, kv, d, 0, 0},
            {AQ_ROLE_ATTN_O, nullptr, d, q, 1, 1}};
  }

  void add_layer(int32_t l) {
    const aq_attention_desc& a = at(l).attention;
    const aq_ffn_desc& f = at(l).ffn;
    const int64_t d = desc_.hidden_size;
    const auto key = [l](int32_t role, int32_t expert = AQ_EXPERT_NONE) {
      return aq_tensor_key{l, role, expert, AQ_PART_WEIGHT};
    };
    constexpr uint32_t kQuantize = AQ_MODULE_QUANTIZE;
    int32_t stage = 0, group = 0;  // the first ones of the FFN
    for (const CustomLinear& c :
         a.kind == AQ_ATTN_CUSTOM ? at(l).attention_linears : attention_linears(a, d)) {
      // beta and the decay have one row for each head; they cost nothing, and an error in them
      // reaches all later tokens
      const bool small =
          c.role == AQ_ROLE_DELTA_B || c.role == AQ_ROLE_DELTA_A || c.role == AQ_ROLE_DELTA_BA;
      add(key(c.role), c.out_features, c.in_features, small ? 0 : kQuantize, c.stage, c.input_group,
          c.label);
      stage = std::max(stage, c.stage + 1);
      group = std::max(group, c.input_group + 1);
    }
    const auto add_ffn = [&](int32_t expert, int64_t inner, bool down) {
      if (down) {
        add(key(AQ_ROLE_FFN_DOWN, expert), d, inner, kQuantize, stage + 1, group + 1);
      } else {
        add(key(AQ_ROLE_FFN_GATE, expert), inner, d, kQuantize, stage, group);
        add(key(AQ_ROLE_FFN_UP, expert), inner, d, kQuantize, stage, group);
      }
    };
    if (f.kind != AQ_FFN_MOE) {
      add_ffn(AQ_EXPERT_NONE, f.inner_size, false);
      add_ffn(AQ_EXPERT_NONE, f.inner_size, true);
      return;
    }
    add(key(AQ_ROLE_ROUTER), f.n_experts, d, 0, stage, group);
    if (f.shared_size > 0 && f.shared_gated != 0)
      add(key(AQ_ROLE_SHARED_ROUTER), 1, d, 0, stage, group);
    for (const bool down : {false, true}) {
      for (int32_t e = 0; e < f.n_experts; e++) add_ffn(e, f.inner_size, down);
      if (f.shared_size > 0) add_ffn(AQ_EXPERT_SHARED, f.shared_size, down);
    }
  }

  void add(const aq_tensor_key& key, int64_t out, int64_t in, uint32_t flags, int32_t stage,
           int32_t group, const char* label = nullptr) {
    Linear linear{};
    const auto name = module_names_.name(key);
    if (!name)
      throw Error("the table of names has no row for role " + std::to_string(key.role),
                  AQ_INTERNAL);
    linear.name = name->substr(0, name->size() - std::string_view(".weight").size());
    linear.module.struct_size = sizeof(aq_module);
    linear.module.flags = flags;
    linear.module.key = key;
    linear.module.out_features = out;
    linear.module.in_features = in;
    linear.module.stage = stage;
    linear.module.input_group = group;
    linear.module.label = label;
    if (key.expert == AQ_EXPERT_NONE)
      module_index_[{key.layer, key.role}] = static_cast<uint32_t>(modules_.size());
    modules_.push_back(std::move(linear));
  }

  /// Returns a copy of the string that lives as long as this object. Equal strings share one copy.
  const char* intern(std::string text) const {
    const std::lock_guard lock(mutex_);
    return strings_.insert(std::move(text)).first->c_str();
  }

  aq_model_desc desc_;
  std::vector<LayerDesc> layers_;
  Stacking stacking_;
  std::vector<Copied> copied_;
  std::vector<aq_copied> copied_views_;  // of copied_
  bool head_bias_;
  InvFreq inv_freq_;
  NameTable module_names_, names_;
  std::vector<Stack> stacks_;
  std::vector<Linear> modules_;
  std::map<std::pair<int32_t, int32_t>, uint32_t> module_index_;  // indexed by layer and role
  mutable std::mutex mutex_;
  mutable std::set<std::string> strings_;
};

}  // namespace aq
