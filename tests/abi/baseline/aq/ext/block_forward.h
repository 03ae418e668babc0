/* aq/ext/block_forward.h - for adapters whose attention or FFN the host does not know (MLA, ...).
 *
 * The plugin wires the block; the host keeps the heavy parts, linear maps and softmax attention. It
 * runs them on the GPU, records every input of linear() for calibration, and uses the weights as
 * quantized so far. The plugin itself sees CPU tensors only. */
#ifndef AQ_EXT_BLOCK_FORWARD_H
#define AQ_EXT_BLOCK_FORWARD_H

#include "../model.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_EXT_BLOCK_FORWARD "aq.model.block-forward/1" /* aq_model.get_extension() */

typedef struct aq_forward_ctx aq_forward_ctx; /* the host's; valid during the call only */
struct aq_forward_ctx {
  uint32_t struct_size;
  int32_t layer;
  void* host_data;
  /* y = x W^T + b of module i.  [serial] */
  aq_status(AQ_CALL* linear)(const aq_forward_ctx* ctx, uint32_t module, const DLTensor* x,
                             DLTensor* y, aq_error* err);
  /* y = softmax(scale q k^T) v, causal within each sequence. q [tokens, heads, d], k [tokens,
   * kv_heads, d], v [tokens, kv_heads, dv], y [tokens, heads, dv]; f32.  [serial] */
  aq_status(AQ_CALL* attend)(const aq_forward_ctx* ctx, const DLTensor* q, const DLTensor* k,
                             const DLTensor* v, float scale, DLTensor* y, aq_error* err);
  /* A weight that is no linear map (a norm), f32, borrowed until the call returns.  [serial] */
  aq_status(AQ_CALL* tensor)(const aq_forward_ctx* ctx, const aq_tensor_key* key, DLTensor* out,
                             aq_error* err);
  /* Memory that the host frees when the call returns; NULL if there is none.  [serial] */
  void*(AQ_CALL* scratch)(const aq_forward_ctx* ctx, uint64_t bytes);
};

typedef struct aq_forward_args {
  uint32_t struct_size;
  uint32_t reserved;
  const DLTensor* x;         /* [tokens, hidden_size] f32, already normed */
  const DLTensor* positions; /* [tokens] i32 */
  const DLTensor* seq_begin; /* [sequences + 1] i32: first row of each in x */
  DLTensor* y;               /* out [tokens, hidden_size] f32, before the residual is added */
  const aq_forward_ctx* ctx;
} aq_forward_args;

typedef struct aq_block_forward {
  uint32_t struct_size;
  uint32_t reserved;
  /* For AQ_ATTN_CUSTOM and AQ_FFN_CUSTOM; NULL if the model has none.  [concurrent] */
  aq_status(AQ_CALL* attention)(const aq_model* self, const aq_forward_args* args, aq_error* err);
  aq_status(AQ_CALL* ffn)(const aq_model* self, const aq_forward_args* args, aq_error* err);
} aq_block_forward;

#ifdef __cplusplus
}
#endif
#endif
