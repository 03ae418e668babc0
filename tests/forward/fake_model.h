#pragma once

#include <ATen/ATen.h>
#include <aq/ext/block_forward.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "plugin/model.h"
#include "tensor/memory_source.h"

namespace aqhost {

/// A small model of one layer with any description. Its random weights depend only on the tensor's
/// name and shape. Set the descriptions, then call open().
struct FakeModel {
  FakeModel();

  aq_model_desc desc{};
  aq_attention_desc attention{};
  std::vector<float> rope_inv_freq;
  aq_ffn_desc ffn{};
  bool attention_biases = false, expert_biases = false, head_bias = false, router_bias = false;

  const aq_block_forward* block_forward = nullptr;  // given as an extension

  std::map<std::string, at::Tensor> tensors;  // filled by open()

  /// The tensor of a role. Its name is "role.expert.part", with "top." in front outside the layer.
  const at::Tensor& tensor(int32_t role, int32_t expert = AQ_EXPERT_NONE,
                           int32_t part = AQ_PART_WEIGHT, bool top = false) const;
  bool has(int32_t role, int32_t expert, int32_t part) const;

  /// Creates the tensors and the adapter. This object must outlive the result. To be called once.
  std::unique_ptr<const Model> open();
  MemorySource source() const { return MemorySource(tensors); }

  /// Attention without RoPE, clipping and norms, which the adapter itself computes.
  void wire_attention();
  /// Latent attention, with low-rank queries unless `q_rank` is 0.
  void use_latent_attention(int32_t q_rank);
  /// The gated delta rule, whose keys are shared by pairs of value heads.
  void use_delta_rule(bool fused);

 private:
  struct Matrix {
    aq_tensor_key key;
    int64_t out, in;
    int32_t stage, input_group;
    std::string name;
  };

  void list_matrices();
  void list_attention();
  void add_attention_vectors();
  void add(int32_t role, int32_t expert, int64_t out, int64_t in, int32_t stage, int32_t group,
           bool bias);
  void add_tensor(const aq_tensor_key& key, std::vector<int64_t> shape);
  void add_norm(int32_t role, int64_t size, int32_t layer);

  static aq_status route(const aq_model* self, const aq_route_args* args, aq_error* err);
  static aq_status attend(const aq_model* self, const aq_forward_args* args, aq_error* err);
  static aq_status get_module(const aq_model* self, uint32_t i, aq_module* out, aq_error* err);
  static aq_status find_ref(const aq_model* self, const aq_tensor_key* key, aq_tensor_ref* out,
                            aq_error* err);
  static aq_status find_key(const aq_model* self, const char* name, aq_tensor_key* out,
                            aq_error* err);

  std::vector<Matrix> matrices_;
  aq_model raw_{};
};

}  // namespace aqhost
