// Model: which tensors of the model a checkpoint has, and which other tensors.

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>

#include "base/error.h"
#include "plugin/model.h"

namespace aqhost {
namespace {

/// Buffers that some writers store beside the weights. They are computed from config.json, or are
/// scales of a cache that is not used here.
constexpr std::array<std::string_view, 7> kBuffers{"rotary_emb.inv_freq",
                                                   "rotary_emb.cos_cached",
                                                   "rotary_emb.sin_cached",
                                                   ".k_scale",
                                                   ".v_scale",
                                                   ".q_scale",
                                                   ".kv_scale"};

bool is_buffer(std::string_view name) {
  return std::any_of(kBuffers.begin(), kBuffers.end(),
                     [name](std::string_view buffer) { return name.ends_with(buffer); });
}

bool same(const aq_tensor_key& a, const aq_tensor_key& b) {
  return a.layer == b.layer && a.role == b.role && a.expert == b.expert && a.part == b.part;
}

/// A small tensor of the model that does not belong to a module, such as a norm's weight.
struct VectorOf {
  int32_t layer, role;
  std::vector<int64_t> shape;
  enum { kNorm, kNeeded, kOptional } kind;  // a norm may also have a bias
};

/// Those of the attention of a layer.
void add_attention_vectors(const AttentionDesc& a, int32_t layer, std::vector<VectorOf>& vectors) {
  const auto add = [&](int32_t role, std::vector<int64_t> shape, bool norm = true) {
    vectors.push_back({layer, role, std::move(shape), norm ? VectorOf::kNorm : VectorOf::kNeeded});
  };
  if (a.qk_norm != AQ_QK_NORM_NONE) {
    const bool full = a.qk_norm == AQ_QK_NORM_FULL;
    add(AQ_ROLE_ATTN_Q_NORM, {int64_t{a.head_dim} * (full ? a.n_heads : 1)});
    add(AQ_ROLE_ATTN_K_NORM, {int64_t{a.head_dim} * (full ? a.n_kv_heads : 1)});
  }
  if (a.sinks) add(AQ_ROLE_ATTN_SINKS, {a.n_heads}, false);
  if (a.kind == AQ_ATTN_LATENT) {
    if (a.q_rank > 0) add(AQ_ROLE_ATTN_Q_A_NORM, {a.q_rank});
    add(AQ_ROLE_ATTN_KV_A_NORM, {a.kv_rank});
  }
  if (a.kind != AQ_ATTN_DELTA) return;
  const int64_t channels =
      2 * int64_t{a.n_kv_heads} * a.head_dim + int64_t{a.n_heads} * a.value_dim;
  add(AQ_ROLE_DELTA_CONV, {channels, 1, a.conv_size}, false);
  add(AQ_ROLE_DELTA_A_LOG, {a.n_heads}, false);
  add(AQ_ROLE_DELTA_DT_BIAS, {a.n_heads}, false);
  add(AQ_ROLE_DELTA_NORM, {a.value_dim}, false);
}

std::vector<VectorOf> vectors_of(const Model& model) {
  const int64_t hidden = model.desc().hidden_size;
  std::vector<VectorOf> vectors{{-1, AQ_ROLE_FINAL_NORM, {hidden}, VectorOf::kNorm}};
  for (int32_t l = 0; l < model.desc().n_layers; l++) {
    vectors.push_back({l, AQ_ROLE_ATTN_NORM, {hidden}, VectorOf::kNorm});
    vectors.push_back({l, AQ_ROLE_FFN_NORM, {hidden}, VectorOf::kNorm});
    if (model.ffn(l).kind == AQ_FFN_MOE)
      vectors.push_back({l, AQ_ROLE_ROUTER_BIAS, {model.ffn(l).n_experts}, VectorOf::kOptional});
    add_attention_vectors(model.attention(l, 1), l, vectors);
  }
  return vectors;
}

}  // namespace

/// Checks that names and keys are inverse to each other, and lists the tensors that have no key.
void Model::check_tensors(const Source& source) {
  std::set<std::string> own;  // names that an export gives to weights stored under other names
  for (const Module& m : modules_)
    if (m.weight.name != m.name + ".weight") own.insert(m.name + ".weight");
  for (const TensorInfo& info : source.tensors()) {
    const auto key = find_key(info.name);
    if (!key) {
      if (own.contains(info.name))
        fail(
            "{}: {} is stored twice: as tensor {}, and in the tensor that holds it together with "
            "others or under another name; delete one of them",
            source.directory(), info.name.substr(0, info.name.rfind('.')), info.name);
      if (take_copied(info.name)) continue;
      if (!is_buffer(info.name)) extra_tensors_.push_back(info.name);
      continue;
    }
    const auto ref = find_ref(*key);
    if (!ref || ref->name != info.name)
      refuse("tensor {} has the key {}, whose tensor is {}", info.name, key_text(*key),
             ref ? ref->name : "not there");
  }
  check_module_tensors(source);
}

/// For messages about a missing tensor: its content may be there under another name.
std::string Model::extra_text() const {
  if (extra_tensors_.empty()) return "";
  return fmt::format(
      "; tensors that it does not know are there ({}, the first is {}): is config.json "
      "that of this model?",
      extra_tensors_.size(), extra_tensors_.front());
}

/// Checks that the tensors of every module exist, with the module's key and shape.
void Model::check_module_tensors(const Source& source) const {
  for (const Module& m : modules_) {
    const TensorInfo* info = source.find(m.weight.name);
    if (info == nullptr)
      fail("{}: tensor {} is missing; model \"{}\" with this config.json needs it for {}{}",
           source.directory(), m.weight.name, id_, m.name, extra_text());
    if (m.bias && source.find(m.bias->name) == nullptr)
      fail("{}: tensor {} is missing; model \"{}\" with this config.json has a bias in {}{}",
           source.directory(), m.bias->name, id_, m.name, extra_text());
    const auto ref = find_ref(m.key);
    if (!ref || ref->name != m.weight.name || ref->index != m.weight.index)
      refuse("module {} lies in {}, but its key's tensor is {}", m.name, m.weight.name,
             ref ? ref->name : "not there");
    const auto key = find_key(m.weight.name);
    if (m.weight.index < 0 && (!key || !same(*key, m.key)))
      refuse("tensor {} has another key than its module {}", m.weight.name, m.name);
    if (!holds(*info, m.weight, std::array{m.out_features, m.in_features}))
      fail("{}: tensor {} is [{}], config.json makes {} {} x {}", source.directory(), info->name,
           fmt::join(info->shape, ", "), m.name, m.out_features, m.in_features);
  }
}

std::vector<NeededTensor> Model::needed_tensors(const Source& source) const {
  std::vector<NeededTensor> needed;
  const auto add = [&](const aq_tensor_key& key, std::vector<int64_t> shape, bool optional) {
    const auto ref = find_ref(key);
    if (ref) needed.push_back({*ref, std::move(shape)});
    if (!ref && !optional) refuse("find_ref({}): there is no such tensor", key_text(key));
  };
  add({-1, AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, AQ_PART_WEIGHT},
      {desc_.vocab_size, desc_.hidden_size}, false);
  for (const VectorOf& v : vectors_of(*this)) {
    add({v.layer, v.role, AQ_EXPERT_NONE, AQ_PART_WEIGHT}, v.shape, v.kind == VectorOf::kOptional);
    if (v.kind == VectorOf::kNorm && desc_.norm_kind == AQ_NORM_LAYER)
      add({v.layer, v.role, AQ_EXPERT_NONE, AQ_PART_BIAS}, v.shape, false);
  }
  if (desc_.tied_embeddings)
    add({-1, AQ_ROLE_LM_HEAD, AQ_EXPERT_NONE, AQ_PART_BIAS}, {desc_.vocab_size}, true);
  for (const Module& m : modules_) {
    needed.push_back({m.weight, {m.out_features, m.in_features}});
    if (m.bias) needed.push_back({*m.bias, {m.out_features}});
  }
  std::set<int32_t> custom;  // layers with custom attention, which may read all of these
  for (int32_t l = 0; l < desc_.n_layers; l++)
    if (attention(l, 1).kind == AQ_ATTN_CUSTOM) custom.insert(l);
  for (const TensorInfo& info : source.tensors()) {
    if (custom.empty()) break;
    const auto key = find_key(info.name);
    if (key && custom.contains(key->layer) &&
        find_module({key->layer, key->role, key->expert, AQ_PART_WEIGHT}) == nullptr)
      needed.push_back({TensorRef{info.name}, info.shape});
  }
  return needed;
}

void Model::check_needed(const Source& source) const {
  for (const NeededTensor& n : needed_tensors(source)) {
    if (source.find(n.ref.name) == nullptr)
      fail("{}: tensor {} is missing; model \"{}\" with this config.json needs it{}",
           source.directory(), n.ref.name, id_, extra_text());
    check_holds(source, n.ref, n.shape);
    // if a tensor is not part of a stack, its name and its key are inverse to each other
    if (n.ref.index < 0 && !find_key(n.ref.name))
      refuse("tensor {} has no key, though a key names it", n.ref.name);
  }
}

}  // namespace aqhost
