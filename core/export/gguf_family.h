#pragma once

#include <cstdint>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// kSized: the key-value is their size, which may be 0, and not their number.
enum class SharedExpert : uint8_t { kNone, kGated, kPlain, kSized };

/// What llama.cpp's code for an architecture takes for granted. Read in src/models/*.cpp and
/// llama-model.cpp of llama.cpp b11434.
struct GgufFamily {
  const char* id;            // of the model plugin
  const char* architecture;  // "general.architecture"
  bool swaps_heads = false;  // see GgufTensor::swapped_heads
  bool neighbours = false;   // the checkpoint, too, rotates pairs of neighbours
  bool latent = false;       // latent attention
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
  bool other_scales = true;   // the same for everything else
  bool sinks = false;         // every layer has sinks
  bool windows = false;       // every second layer has a window, from the first on
  bool ffn_biases = false;    // o, the router and the experts have biases
  bool multipliers = false;   // of embeddings, residuals, logits and of attention's scale
  bool partial_rope = false;  // a part of a head may rotate
  bool correction = false;    // experts may have correction biases
  bool groups = false;        // of experts, each scored by the sum of its best two
  bool layer_step = false;    // reads interleave_moe_layer_step
  int32_t router = AQ_ROUTER_SOFTMAX_TOPK;
  int32_t activation = AQ_ACT_SILU_GLU;
  const char* ffn_norm = "ffn_norm";  // the name of the norm before the FFN
};

/// The family of a model. Throws an Error that lists the known ones if it has none.
const GgufFamily& gguf_family(const Model& model);

/// Throws an Error that names the first option of the model that llama.cpp's code for the
/// architecture does not have.
void check_gguf_options(const Source& source, const Model& model, const GgufFamily& family);

}  // namespace aqhost
