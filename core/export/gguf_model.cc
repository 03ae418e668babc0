#include "export/gguf_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "export/gguf.h"
#include "export/gguf_family.h"
#include "export/gguf_keys.h"

namespace aqhost {
namespace {

struct RoleName {
  int32_t role;
  const char* name;
};

constexpr RoleName kLayerNames[] = {{AQ_ROLE_ATTN_NORM, "attn_norm"},
                                    {AQ_ROLE_ATTN_Q, "attn_q"},
                                    {AQ_ROLE_ATTN_K, "attn_k"},
                                    {AQ_ROLE_ATTN_V, "attn_v"},
                                    {AQ_ROLE_ATTN_O, "attn_output"},
                                    {AQ_ROLE_ATTN_Q_NORM, "attn_q_norm"},
                                    {AQ_ROLE_ATTN_K_NORM, "attn_k_norm"},
                                    {AQ_ROLE_ATTN_SINKS, "attn_sinks"},
                                    {AQ_ROLE_FFN_NORM, "ffn_norm"},
                                    {AQ_ROLE_FFN_GATE, "ffn_gate"},
                                    {AQ_ROLE_FFN_UP, "ffn_up"},
                                    {AQ_ROLE_FFN_DOWN, "ffn_down"},
                                    {AQ_ROLE_ATTN_Q_A, "attn_q_a"},
                                    {AQ_ROLE_ATTN_Q_A_NORM, "attn_q_a_norm"},
                                    {AQ_ROLE_ATTN_Q_B, "attn_q_b"},
                                    {AQ_ROLE_ATTN_KV_A, "attn_kv_a_mqa"},
                                    {AQ_ROLE_ATTN_KV_A_NORM, "attn_kv_a_norm"},
                                    {AQ_ROLE_ATTN_KV_B, "attn_kv_b"},
                                    {AQ_ROLE_ROUTER, "ffn_gate_inp"},
                                    {AQ_ROLE_SHARED_ROUTER, "ffn_gate_inp_shexp"}};

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
    for (const std::string& stem : order)
      if (const Module& first = *matrices.at(stem).front(); first.key.role == AQ_ROLE_ATTN_KV_B)
        add_parts_of_heads(first);
      else
        add_matrices(stem, matrices.at(stem));
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
    if (a.q_rank > 0) add(AQ_ROLE_ATTN_Q_A_NORM, a.q_rank);
    if (a.kv_rank > 0) add(AQ_ROLE_ATTN_KV_A_NORM, a.kv_rank);
    add(AQ_ROLE_FFN_NORM, model_.desc().hidden_size);
    add_correction(layer);
  }

  void add_correction(int32_t layer) {
    const aq_tensor_key correction{layer, AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE, AQ_PART_WEIGHT};
    const bool has = model_.find_ref(correction).has_value();
    if (has && !family_.correction)
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
      if (has_matrix_scale(type) && !(ffn ? family_.ffn_scales : family_.other_scales))
        fail(
            "llama.cpp's architecture {} ignores the scale of a matrix in {}{}; mxfp4 (MXFP4) has "
            "none",
            family_.architecture, gguf_label(*format), ffn ? " in its FFNs" : "");
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

  /// kv_b of latent attention. llama.cpp has its rows for keys, transposed in each head, and those
  /// for values in tensors of their own. A block is a piece of a row, so the transposed ones cannot
  /// stay in blocks.
  void add_parts_of_heads(const Module& m) {
    const AttentionDesc a = model_.attention(m.key.layer, 1);
    const GgufType type = matrix_type(m);
    const bool quantized = format_of_(m) != nullptr;
    const int64_t heads = a.n_heads, keys = a.head_dim - a.rope_dim(), values = a.value_dim;
    const auto add = [&](const char* name, GgufType stored, std::vector<int64_t> shape,
                         const HeadPart& part) {
      GgufTensor tensor{
          {fmt::format("blk.{}.{}.weight", m.key.layer, name), stored, shape}, {&m}, {}};
      tensor.head_part = part;
      tensors_.push_back(std::move(tensor));
    };
    add("attn_k_b", quantized ? GgufType::kF32 : type, {heads, a.kv_rank, keys},
        {.first = 0, .rows = keys, .transposed = true});
    add("attn_v_b", type, {heads, values, a.kv_rank}, {.first = keys, .rows = values});
  }

  const Source& source_;
  const Model& model_;
  const GgufFamily& family_;
  const GgufFormatOf& format_of_;
  std::vector<GgufTensor> tensors_;
};

/// Says which quantized matrices are partly stored as floats.
void note_transposed(const GgufFormatOf& format_of, GgufModel& result) {
  int64_t count = 0;
  const Module* first = nullptr;
  for (const GgufTensor& tensor : result.tensors) {
    if (!tensor.head_part || !tensor.head_part->transposed) continue;
    const Module* m = tensor.modules.front();
    if (format_of(*m) == nullptr) continue;
    if (first == nullptr) first = m;
    count++;
  }
  if (count > 0)
    result.notes.push_back(fmt::format(
        "llama.cpp needs the rows for keys in {}{} transposed, where their groups are columns; "
        "their quantized values are stored in F32, exactly",
        first->name, count > 1 ? fmt::format(" and {} other modules", count - 1) : ""));
}

}  // namespace

GgufModel gguf_model(const Source& source, const Model& model, const GgufFormatOf& format_of) {
  const GgufFamily& family = gguf_family(model);
  check_gguf_options(source, model, family);
  GgufModel result;
  result.architecture = family.architecture;
  result.tensors = TensorList(source, model, family, format_of).take();
  add_gguf_keys(source, model, family, result);
  note_transposed(format_of, result);
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
