#include "export/gguf_model.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "base/error.h"
#include "export/gguf.h"
#include "export/gguf_rope.h"

namespace aqhost {
namespace {

enum class SharedExpert : uint8_t { kNone, kGated, kPlain };

/// What llama.cpp's code for an architecture takes for granted.
struct GgufFamily {
  const char* id;            // of the model plugin
  const char* architecture;  // "general.architecture"
  bool swaps_heads = false;  // see GgufTensor::swapped_heads
  bool norm_topk = false;
  bool reads_norm_topk = false;  // from expert_weights_norm, in place of norm_topk
  int32_t qk_norm = AQ_QK_NORM_NONE;
  bool may_lack_qk_norm = false;
  SharedExpert shared = SharedExpert::kNone;
  bool dense_layers = false;  // the first layers may be dense
  bool out_bias = false;      // o may have a bias
  bool head_dim = false;      // number of heads x head_dim may differ from the hidden size
  bool fewer_kv = true;       // there may be fewer heads for keys than for queries
  bool tied = false;          // "output" may be absent
  bool routed_scale = false;  // reads expert_weights_scale
  bool ffn_scales = false;    // multiplies FFNs by their matrix scales (see has_matrix_scale())
  bool sinks = false;         // every layer has sinks
  bool windows = false;       // every second layer has a window, from the first on
  bool ffn_biases = false;    // o, the router and the experts have biases
  bool multipliers = false;   // of embeddings, residuals, logits and of attention's scale
  bool partial_rope = false;  // a part of a head may rotate
  int32_t router = AQ_ROUTER_SOFTMAX_TOPK;  // AQ_ROUTER_SIGMOID_TOPK: with correction biases
  int32_t activation = AQ_ACT_SILU_GLU;
  const char* ffn_norm = "ffn_norm";  // the name of the norm before the FFN
};

constexpr GgufFamily kFamilies[] = {
    {.id = "olmoe", .architecture = "olmoe", .qk_norm = AQ_QK_NORM_FULL, .fewer_kv = false},
    {.id = "mixtral",
     .architecture = "llama",
     .swaps_heads = true,
     .norm_topk = true,
     .out_bias = true,
     .head_dim = true,
     .tied = true,
     .ffn_scales = true},
    {.id = "qwen2_moe", .architecture = "qwen2moe", .shared = SharedExpert::kGated},
    {.id = "deepseek_moe",
     .architecture = "deepseek",
     .swaps_heads = true,
     .shared = SharedExpert::kPlain,
     .dense_layers = true,
     .tied = true,
     .routed_scale = true},
    {.id = "qwen3_moe",
     .architecture = "qwen3moe",
     .norm_topk = true,
     .qk_norm = AQ_QK_NORM_HEAD,
     .head_dim = true,
     .tied = true,
     .ffn_scales = true},
    {.id = "gpt_oss",
     .architecture = "gpt-oss",
     .norm_topk = true,
     .out_bias = true,
     .head_dim = true,
     .sinks = true,
     .windows = true,
     .ffn_biases = true,
     .activation = AQ_ACT_CLAMPED_SWIGLU,
     .ffn_norm = "post_attention_norm"},
    {.id = "granitemoe",
     .architecture = "granitemoe",
     .swaps_heads = true,
     .norm_topk = true,
     .out_bias = true,
     .head_dim = true,
     .tied = true,
     .multipliers = true},
    {.id = "minimax_m2",
     .architecture = "minimax-m2",
     .norm_topk = true,
     .qk_norm = AQ_QK_NORM_FULL,
     .head_dim = true,
     .partial_rope = true,
     .router = AQ_ROUTER_SIGMOID_TOPK},
    {.id = "glm4_moe",
     .architecture = "glm4moe",
     .reads_norm_topk = true,
     .qk_norm = AQ_QK_NORM_HEAD,
     .may_lack_qk_norm = true,
     .shared = SharedExpert::kPlain,
     .dense_layers = true,
     .head_dim = true,
     .tied = true,
     .routed_scale = true,
     .partial_rope = true,
     .router = AQ_ROUTER_SIGMOID_TOPK,
     .ffn_norm = "post_attention_norm"},
};

const GgufFamily& gguf_family(const Model& model) {
  std::vector<std::string> known;
  for (const GgufFamily& family : kFamilies) {
    if (family.id == model.id()) return family;
    known.emplace_back(family.id);
  }
  fail("the family {} cannot be written as GGUF yet; {} can", model.id(), fmt::join(known, ", "));
}

struct RoleName {
  int32_t role;
  const char* name;
};

constexpr RoleName kLayerNames[] = {
    {AQ_ROLE_ATTN_NORM, "attn_norm"},     {AQ_ROLE_ATTN_Q, "attn_q"},
    {AQ_ROLE_ATTN_K, "attn_k"},           {AQ_ROLE_ATTN_V, "attn_v"},
    {AQ_ROLE_ATTN_O, "attn_output"},      {AQ_ROLE_ATTN_Q_NORM, "attn_q_norm"},
    {AQ_ROLE_ATTN_K_NORM, "attn_k_norm"}, {AQ_ROLE_ATTN_SINKS, "attn_sinks"},
    {AQ_ROLE_FFN_NORM, "ffn_norm"},       {AQ_ROLE_FFN_GATE, "ffn_gate"},
    {AQ_ROLE_FFN_UP, "ffn_up"},           {AQ_ROLE_FFN_DOWN, "ffn_down"},
    {AQ_ROLE_ROUTER, "ffn_gate_inp"},     {AQ_ROLE_SHARED_ROUTER, "ffn_gate_inp_shexp"}};

/// "blk.3.ffn_up_exps", without ".weight".
std::string gguf_stem(const aq_tensor_key& key, const GgufFamily& family) {
  if (key.role == AQ_ROLE_LM_HEAD) return "output";
  const auto* name = std::ranges::find(kLayerNames, key.role, &RoleName::role);
  if (name == std::end(kLayerNames) || key.layer < 0)
    fail("GGUF has no name for the tensor of {}", key_text(key));
  const char* suffix = key.expert >= 0 ? "_exps" : key.expert == AQ_EXPERT_SHARED ? "_shexp" : "";
  return fmt::format("blk.{}.{}{}", key.layer,
                     key.role == AQ_ROLE_FFN_NORM ? family.ffn_norm : name->name, suffix);
}

/// Refuses options of the model that llama.cpp's code for the architecture does not have.
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
    for (const Module& m : model_.modules()) check_bias(m);
  }

 private:
  void require(bool holds, const std::string& what) const {
    if (!holds)
      fail("{}: llama.cpp's architecture {} has no {}", file_, family_.architecture, what);
  }

  void check_attention(int32_t layer) const {
    const int64_t positions = model_.desc().max_positions;
    const AttentionDesc a = model_.attention(layer, positions);
    require(a.kind == AQ_ATTN_STANDARD && !a.output_gate && a.sinks == family_.sinks,
            "other attention than softmax attention");
    const bool lacks_norm = family_.may_lack_qk_norm && a.qk_norm == AQ_QK_NORM_NONE;
    require(lacks_norm || a.qk_norm == family_.qk_norm, "such norms of q and k");
    require(a.clip_qkv == 0, "clip_qkv");
    check_window(layer, a.sliding_window);
    require(family_.fewer_kv || a.n_heads == a.n_kv_heads,
            "num_key_value_heads other than num_attention_heads");
    require(family_.head_dim || int64_t{a.n_heads} * a.head_dim == model_.desc().hidden_size,
            "head_dim other than hidden_size / num_attention_heads");
    require((family_.partial_rope || a.rope_dim() == a.head_dim) && !a.rope_interleaved,
            "rotation of a part of a head, or of neighbours");
    require(gguf_rope(config_, a).has_value(),
            "rope scaling other than linear, and YaRN with beta_fast 32 and beta_slow 1");
    require(a.rope_inv_freq == model_.attention(0, positions).rope_inv_freq,
            "rotations that differ among layers");
    const float plain = 1 / std::sqrt(static_cast<float>(a.head_dim));
    require(family_.multipliers ? a.scale == model_.attention(0, positions).scale
                                : std::fabs(a.scale / plain - 1) < 1e-6F,
            "other scale of attention");
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
    require(f.kind == AQ_FFN_MOE && f.router == family_.router && f.n_groups <= 1,
            fmt::format("router other than {} over all experts",
                        family_.router == AQ_ROUTER_SOFTMAX_TOPK ? "softmax" : "a sigmoid"));
    require(family_.reads_norm_topk || f.norm_topk == family_.norm_topk,
            fmt::format("norm_topk_prob: {}", f.norm_topk));
    require(family_.routed_scale || f.routed_scale == 1, "factor of the experts' weights");
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
}

void add_attention(const AttentionDesc& a, const GgufRope& rope, const GgufFamily& family,
                   GgufMetadata& metadata) {
  const std::string arch = family.architecture;
  metadata.u32(arch + ".attention.head_count", a.n_heads);
  metadata.u32(arch + ".attention.head_count_kv", a.n_kv_heads);
  if (family.head_dim) {
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
  if (family.shared == SharedExpert::kGated)
    metadata.u32(arch + ".expert_shared_feed_forward_length", moe.shared_size);
  if (family.shared == SharedExpert::kPlain)
    metadata.u32(arch + ".expert_shared_count", moe.shared_size / moe.inner_size);
  if (family.routed_scale) metadata.f32(arch + ".expert_weights_scale", moe.routed_scale);
  if (family.reads_norm_topk) metadata.flag(arch + ".expert_weights_norm", moe.norm_topk);
  if (family.router == AQ_ROUTER_SIGMOID_TOPK)
    metadata.u32(arch + ".expert_gating_func", 2);  // LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID
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

void add_metadata(const Source& source, const Model& model, const GgufFamily& family,
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
  add_ffn(model, family, metadata);
}

/// Lists the tensors of a model.
class TensorList {
 public:
  TensorList(const Source& source, const Model& model, const GgufFamily& family,
             const GgufFormatOf& format_of)
      : source_(source), model_(model), family_(family), format_of_(format_of) {}

  std::vector<GgufTensor> take() {
    const ModelDesc& desc = model_.desc();
    add_whole({-1, AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, AQ_PART_WEIGHT}, "token_embd.weight",
              {desc.vocab_size, desc.hidden_size});
    add_vector({-1, AQ_ROLE_FINAL_NORM, AQ_EXPERT_NONE, AQ_PART_WEIGHT}, "output_norm.weight",
               desc.hidden_size);
    if (desc.tied_embeddings && !family_.tied)
      add_whole({-1, AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, AQ_PART_WEIGHT}, "output.weight",
                {desc.vocab_size, desc.hidden_size});
    for (int32_t l = 0; l < desc.n_layers; l++) add_norms(l);
    std::map<std::string, std::vector<const Module*>> matrices;  // by gguf_stem()
    std::vector<std::string> order;
    for (const Module& m : model_.modules()) {
      const std::string stem = gguf_stem(m.key, family_);
      if (!matrices.contains(stem)) order.push_back(stem);
      matrices[stem].push_back(&m);
    }
    for (const std::string& stem : order) add_matrices(stem, matrices.at(stem));
    return std::move(tensors_);
  }

 private:
  TensorRef ref_of(const aq_tensor_key& key) const {
    const auto ref = model_.find_ref(key);
    if (!ref) fail("{}: the tensor of {} is missing", source_.directory(), key_text(key));
    return *ref;
  }

  /// The type in which a dense tensor is stored. Throws an Error if its numbers are not stored as
  /// such.
  GgufType dense_type(const std::string& tensor, const std::string& module) const {
    const TensorInfo& info = *source_.find(tensor);
    const auto type = gguf_type(info.dtype);
    const bool encoded = source_.stored_bytes(tensor) != info.nbytes();
    if (!type || encoded)
      fail("{}: {} is stored in {}, which GGUF has no type for; quantize the model first",
           source_.directory(), module,
           encoded ? "blocks with scales" : std::string(dtype_name(info.dtype)));
    return *type;
  }

  void add_whole(const aq_tensor_key& key, const std::string& name, std::vector<int64_t> shape) {
    const TensorRef ref = ref_of(key);
    tensors_.push_back({{name, dense_type(ref.name, ref.name), std::move(shape)}, {}, ref});
  }

  void add_vector(const aq_tensor_key& key, const std::string& name, int64_t size) {
    tensors_.push_back({{name, GgufType::kF32, {size}}, {}, ref_of(key)});
  }

  void add_norms(int32_t layer) {
    const AttentionDesc a = model_.attention(layer, 1);
    const auto add = [&](int32_t role, int64_t size) {
      const aq_tensor_key key{layer, role, AQ_EXPERT_NONE, AQ_PART_WEIGHT};
      add_vector(key, gguf_stem(key, family_) + ".weight", size);
    };
    add(AQ_ROLE_ATTN_NORM, model_.desc().hidden_size);
    if (a.qk_norm == AQ_QK_NORM_FULL) {
      add(AQ_ROLE_ATTN_Q_NORM, int64_t{a.n_heads} * a.head_dim);
      add(AQ_ROLE_ATTN_K_NORM, int64_t{a.n_kv_heads} * a.head_dim);
    } else if (a.qk_norm == AQ_QK_NORM_HEAD) {
      add(AQ_ROLE_ATTN_Q_NORM, a.head_dim);
      add(AQ_ROLE_ATTN_K_NORM, a.head_dim);
    }
    if (a.sinks) add(AQ_ROLE_ATTN_SINKS, a.n_heads);
    add(AQ_ROLE_FFN_NORM, model_.desc().hidden_size);
    const aq_tensor_key correction{layer, AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE, AQ_PART_WEIGHT};
    const bool has = model_.find_ref(correction).has_value();
    if (has && family_.router == AQ_ROUTER_SOFTMAX_TOPK)
      fail("{}: llama.cpp's architecture {} has no correction bias of experts", source_.directory(),
           family_.architecture);
    if (has)
      add_vector(correction, fmt::format("blk.{}.exp_probs_b.bias", layer),
                 model_.ffn(layer).n_experts);
  }

  /// "int4 g32", or "bfloat16" and so on.
  std::string stored_as(const Module& m) const {
    if (const auto format = format_of_(m)) return gguf_label(*format);
    return std::string(dtype_name(source_.find(m.weight.name)->dtype));
  }

  GgufType matrix_type(const Module& m) const {
    const auto format = format_of_(m);
    const bool small = m.key.role == AQ_ROLE_ROUTER || m.key.role == AQ_ROLE_SHARED_ROUTER;
    if (!format) {
      const GgufType type = dense_type(m.weight.name, m.name);
      return small ? GgufType::kF32 : type;
    }
    if (small)
      fail("{}: {} is in {}, and GGUF has routers and the gates of shared experts in float32",
           source_.directory(), m.name, gguf_label(*format));
    try {
      const GgufType type = gguf_type(*format, m.in_features);
      const bool ffn = m.key.role == AQ_ROLE_FFN_GATE || m.key.role == AQ_ROLE_FFN_UP ||
                       m.key.role == AQ_ROLE_FFN_DOWN;
      if (ffn && has_matrix_scale(type) && !family_.ffn_scales)
        fail(
            "llama.cpp's architecture {} ignores the scale of a matrix in {} in its FFNs; mxfp4 "
            "(MXFP4) has none",
            family_.architecture, gguf_label(*format));
      return type;
    } catch (const Error& e) {
      fail("{}: {}: {}", source_.directory(), m.name, e.what());
    }
  }

  int64_t swapped_heads(const aq_tensor_key& key) const {
    if (!family_.swaps_heads) return 0;
    const AttentionDesc a = model_.attention(std::max(key.layer, 0), 1);
    return key.role == AQ_ROLE_ATTN_Q ? a.n_heads : key.role == AQ_ROLE_ATTN_K ? a.n_kv_heads : 0;
  }

  void add_matrices(const std::string& stem, const std::vector<const Module*>& modules) {
    const Module& first = *modules.front();
    const GgufType type = matrix_type(first);
    for (const Module* m : modules)
      if (matrix_type(*m) != type)
        fail(
            "{}: {} is in {}, and {} in {}; in GGUF, all experts of a layer have one type for each "
            "of their matrices",
            source_.directory(), first.name, stored_as(first), m->name, stored_as(*m));
    std::vector<int64_t> shape{first.out_features, first.in_features};
    if (first.key.expert >= 0) shape.insert(shape.begin(), static_cast<int64_t>(modules.size()));
    if (first.key.role == AQ_ROLE_SHARED_ROUTER) shape = {first.in_features};
    const int64_t swapped = swapped_heads(first.key);
    const auto count = static_cast<int64_t>(modules.size());
    tensors_.push_back({{stem + ".weight", type, shape}, modules, {}, swapped});
    if (has_matrix_scale(type))
      tensors_.push_back(
          {{stem + ".scale", GgufType::kF32, {count}}, modules, {}, 0, GgufPart::kMatrixScales});
    if (!first.bias) return;
    std::vector<int64_t> biases{first.out_features};
    if (first.key.expert >= 0) biases.insert(biases.begin(), count);
    tensors_.push_back(
        {{stem + ".bias", GgufType::kF32, biases}, modules, {}, swapped, GgufPart::kBiases});
  }

  const Source& source_;
  const Model& model_;
  const GgufFamily& family_;
  const GgufFormatOf& format_of_;
  std::vector<GgufTensor> tensors_;
};

}  // namespace

GgufModel gguf_model(const Source& source, const Model& model, const GgufFormatOf& format_of) {
  const GgufFamily& family = gguf_family(model);
  OptionCheck(source, model, family).run();
  GgufModel result;
  result.architecture = family.architecture;
  result.tensors = TensorList(source, model, family, format_of).take();
  add_metadata(source, model, family, result);
  result.left_out = model.extra_tensors();
  for (const Model::Copied& copied : model.copied())
    result.left_out.insert(result.left_out.end(), copied.tensors.begin(), copied.tensors.end());
  return result;
}

int64_t stored_row(const GgufTensor& tensor, int64_t rows, int64_t row) {
  if (tensor.swapped_heads == 0) return row;
  const int64_t size = rows / tensor.swapped_heads;  // of a head
  const int64_t in_head = row % size;
  return row - in_head + in_head % 2 * (size / 2) + in_head / 2;
}

}  // namespace aqhost
