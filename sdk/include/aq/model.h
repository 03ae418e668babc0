/* aq/model.h - model adapters: what a checkpoint contains and how its router picks experts. */
#ifndef AQ_MODEL_H
#define AQ_MODEL_H

#include "abi.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_MODEL_FACTORY_ID "aq.model-factory/1"

/* --- naming --------------------------------------------------------------------------------- */

enum { /* aq_tensor_key.role */
       AQ_ROLE_EMBEDDING = 1,
       AQ_ROLE_FINAL_NORM = 2,
       AQ_ROLE_LM_HEAD = 3,
       AQ_ROLE_ATTN_NORM = 16,
       AQ_ROLE_ATTN_Q = 17,
       AQ_ROLE_ATTN_K = 18,
       AQ_ROLE_ATTN_V = 19,
       AQ_ROLE_ATTN_O = 20,
       AQ_ROLE_ATTN_Q_NORM = 21,
       AQ_ROLE_ATTN_K_NORM = 22,
       AQ_ROLE_FFN_NORM = 32,
       AQ_ROLE_FFN_GATE = 33, /* dense, routed or shared: see aq_tensor_key.expert */
       AQ_ROLE_FFN_UP = 34,
       AQ_ROLE_FFN_DOWN = 35,
       AQ_ROLE_ROUTER = 48,
       AQ_ROLE_ROUTER_BIAS = 49,   /* added to the scores to pick experts, not to weigh them */
       AQ_ROLE_SHARED_ROUTER = 50, /* sigmoid gate of the shared expert */
       AQ_ROLE_CUSTOM = 4096, /* from here on an adapter's own: one role for each kind of tensor, as
                                 no two modules of a layer and expert have one key */
};
enum { AQ_EXPERT_NONE = -1, AQ_EXPERT_SHARED = -2 };
enum { AQ_PART_WEIGHT = 0, AQ_PART_BIAS = 1 };

/* Names one tensor of any model. Frozen. */
typedef struct aq_tensor_key {
  int32_t layer; /* -1: outside the layers */
  int32_t role;
  int32_t expert; /* 0.., or AQ_EXPERT_* */
  int32_t part;   /* AQ_PART_* */
} aq_tensor_key;

/* Where a matrix [out, in] (or a vector) lies in a checkpoint. Read in this order: entry `index` of
 * dimension 0, transpose, rows begin, begin + step, ... (count of them). Frozen. */
typedef struct aq_tensor_ref {
  const char* name;
  int64_t index; /* -1: the tensor does not stack experts */
  int64_t row_begin;
  int64_t row_step;   /* 2 where gate and up rows alternate; 0: 1 */
  int64_t row_count;  /* 0: all rows from row_begin on */
  int32_t transposed; /* 1: stored [in, out] */
  int32_t reserved;
} aq_tensor_ref;

/* --- description ---------------------------------------------------------------------------- */

enum { AQ_NORM_RMS = 1, AQ_NORM_LAYER = 2 };
enum { AQ_ATTN_STANDARD = 1 /* MHA, GQA, MQA */, AQ_ATTN_CUSTOM = 4096 /* ext/block_forward.h */ };
enum { AQ_QK_NORM_NONE = 0, AQ_QK_NORM_HEAD = 1 /* Qwen3 */, AQ_QK_NORM_FULL = 2 /* OLMoE */ };
enum { AQ_FFN_DENSE = 1, AQ_FFN_MOE = 2, AQ_FFN_CUSTOM = 4096 };
enum { AQ_ACT_SILU_GLU = 1, AQ_ACT_GELU_GLU = 2, AQ_ACT_GELU_TANH_GLU = 3 };
enum { /* aq_ffn_desc.router: what route() computes, so that the host may do it on the GPU */
       AQ_ROUTER_SOFTMAX_TOPK = 1, /* softmax over all experts, then top k */
       AQ_ROUTER_SIGMOID_TOPK = 2,
       AQ_ROUTER_CUSTOM = 4096, /* only route() knows */
};

typedef struct aq_model_desc {
  uint32_t struct_size;
  int32_t n_layers;
  int64_t hidden_size;
  int64_t vocab_size;
  int64_t max_positions; /* longest sequence the model was made for; 0: unknown */
  int32_t norm_kind;
  float norm_eps;
  int32_t tied_embeddings; /* lm_head is the embedding; there is no AQ_ROLE_LM_HEAD tensor */
  int32_t reserved;
} aq_model_desc;

typedef struct aq_attention_desc {
  uint32_t struct_size;
  int32_t kind;
  int32_t n_heads, n_kv_heads;
  int32_t head_dim;
  int32_t qk_norm;
  int32_t sliding_window;     /* a token sees itself and the window - 1 before it; 0: none */
  float clip_qkv;             /* q, k, v clamped to +-this after q/k norm; 0: none */
  float scale;                /* of q k^T; 0: 1 / sqrt(head_dim) */
  float rope_scale;           /* multiplies cos and sin; 0: 1 */
  int32_t rope_dim;           /* first dimensions of a head that rotate; 0: no RoPE */
  int32_t rope_interleaved;   /* 0: pairs (i, i + rope_dim / 2); 1: pairs (2 i, 2 i + 1) */
  const float* rope_inv_freq; /* rope_dim / 2 values: theta, linear, YaRN ... all end up here */
} aq_attention_desc;

typedef struct aq_ffn_desc {
  uint32_t struct_size;
  int32_t kind; /* per layer, so dense first layers need no field */
  int32_t activation;
  int32_t n_experts, top_k;
  int32_t router;
  int32_t norm_topk;            /* weights of the chosen experts are divided by their sum */
  float routed_scale;           /* then multiplied by this; 0: 1 */
  int32_t n_groups, top_groups; /* choice limited to the groups with the best expert (DeepSeek-V2);
                                   0: none. Other rules are for AQ_ROUTER_CUSTOM */
  int64_t inner_size;           /* of a dense FFN or of one routed expert */
  int64_t shared_size;          /* inner size of all shared experts together; 0: none */
  int32_t shared_gated;         /* AQ_ROLE_SHARED_ROUTER weighs the shared expert */
  int32_t route_hidden;         /* route() wants aq_route_args.hidden */
} aq_ffn_desc;

enum {
  AQ_MODULE_QUANTIZE = 1 << 0, /* quantized unless a recipe says otherwise; without it only where a
                                  recipe names it (routers, lm_head) */
  AQ_MODULE_SENSITIVE = 1 << 1 /* plan warns when it gets fewer than 4 bits */
};

/* One linear map y = x W^T + b. */
typedef struct aq_module {
  uint32_t struct_size;
  uint32_t flags;
  aq_tensor_key key;
  const char* name; /* "model.layers.0.mlp.experts.3.up_proj": unique; for recipes, reports, and
                       "<name>.weight..." in exports, however the checkpoint stores it */
  aq_tensor_ref weight;
  aq_tensor_ref bias; /* name NULL: none */
  int64_t out_features, in_features;
  int32_t stage;       /* within a layer, later stages see earlier ones quantized */
  int32_t input_group; /* same layer, expert and group: same input, hence one Hessian */
  const char* label;   /* "kv_a_proj"; for reports; or NULL */
} aq_module;

/* --- router --------------------------------------------------------------------------------- */

typedef struct aq_route_args {
  uint32_t struct_size;
  int32_t layer;
  const DLTensor* logits; /* [tokens, n_experts] f32 */
  const DLTensor* bias;   /* [n_experts] f32, AQ_ROLE_ROUTER_BIAS; or NULL */
  const DLTensor* hidden; /* [tokens, hidden_size] f32 if route_hidden; or NULL */
  DLTensor* expert_ids;   /* out [tokens, top_k] i32, best first; -1: slot not used */
  DLTensor*
      weights; /* out [tokens, top_k] f32, 0 or more: the expert's output is multiplied with */
} aq_route_args;

/* --- adapter -------------------------------------------------------------------------------- */

typedef struct aq_model aq_model;
struct aq_model {
  uint32_t struct_size;
  uint32_t reserved;
  void* plugin_data;

  void(AQ_CALL* destroy)(const aq_model* self);                              /* [serial] */
  const void*(AQ_CALL* get_extension)(const aq_model* self, const char* id); /* [concurrent] */

  /* What the host cannot guess. `seq_len` is the length of the sequences that will be run, for rope
   * settings that depend on it (dynamic NTK, LongRoPE).  [concurrent] */
  aq_status(AQ_CALL* describe)(const aq_model* self, aq_model_desc* out, aq_error* err);
  aq_status(AQ_CALL* describe_attention)(const aq_model* self, int32_t layer, int64_t seq_len,
                                         aq_attention_desc* out, aq_error* err);
  aq_status(AQ_CALL* describe_ffn)(const aq_model* self, int32_t layer, aq_ffn_desc* out,
                                   aq_error* err);

  /* Every linear map that the description, or the adapter's own attention, runs, and no other;
   * ordered by layer, then stage; those outside the layers come last.  [concurrent] */
  uint32_t(AQ_CALL* module_count)(const aq_model* self);
  aq_status(AQ_CALL* get_module)(const aq_model* self, uint32_t i, aq_module* out, aq_error* err);

  /* Name of a tensor and back; each inverts the other. AQ_NOT_FOUND: the model has no such tensor.
   * Of a tensor that holds several matrices, find_key() gives the first.  [concurrent] */
  aq_status(AQ_CALL* find_ref)(const aq_model* self, const aq_tensor_key* key, aq_tensor_ref* out,
                               aq_error* err);
  aq_status(AQ_CALL* find_key)(const aq_model* self, const char* name, aq_tensor_key* out,
                               aq_error* err);

  /* Router logits to chosen experts. The reference: where aq_ffn_desc.router is not
   * AQ_ROUTER_CUSTOM, the host's own code must agree with it, and checks. Of equal scores the lower
   * id comes first. NaN counts as -inf; an expert of score -inf is not chosen, and a slot that
   * nobody fills has id -1 and weight 0.  [concurrent] */
  aq_status(AQ_CALL* route)(const aq_model* self, const aq_route_args* args, aq_error* err);
};

/* --- factory -------------------------------------------------------------------------------- */

typedef struct aq_tensor_meta { /* frozen */
  DLDataType dtype;
  int32_t ndim;
  int64_t shape[8];
} aq_tensor_meta;

typedef struct aq_checkpoint aq_checkpoint; /* the host's; valid during create() only */
struct aq_checkpoint {
  uint32_t struct_size;
  uint32_t reserved;
  void* host_data;
  const char* config_json; /* the whole of config.json */
  /* Of a quantized checkpoint, the tensors as they were before. AQ_NOT_FOUND if there is no such
   * tensor.  [concurrent] */
  aq_status(AQ_CALL* find)(const aq_checkpoint* self, const char* name, aq_tensor_meta* out);
};

typedef struct aq_model_factory aq_model_factory;
struct aq_model_factory {
  uint32_t struct_size;
  uint32_t reserved;
  uint32_t(AQ_CALL* count)(const aq_model_factory* self);                              /* [scan] */
  const aq_descriptor*(AQ_CALL* descriptor)(const aq_model_factory* self, uint32_t i); /* [scan] */

  /* 0: not this architecture; 100: certainly this one. The highest wins, a tie is the user's to
   * break. `why` (why_size bytes, at least 64) gets one line for the user: "model_type is olmoe".
   * [scan] */
  int32_t(AQ_CALL* probe)(const aq_model_factory* self, uint32_t i, const char* config_json,
                          char* why, size_t why_size);

  /* NULL on failure: an option of config.json that is known and set to what is not supported is an
   * error that names it. Of keys that the adapter does not know it warns by host->log(): the host
   * takes such warnings for errors where the user asks it to be strict.  [serial] */
  const aq_model*(AQ_CALL* create)(const aq_model_factory* self, uint32_t i, const aq_host* host,
                                   const aq_checkpoint* checkpoint, aq_error* err);

  /* Other names by which the user may choose it, separated by spaces: "qwen qwen2moe"; NULL: none.
   * This function may be NULL.  [scan] */
  const char*(AQ_CALL* aliases)(const aq_model_factory* self, uint32_t i);
};

#ifdef __cplusplus
}
#endif
#endif /* AQ_MODEL_H */
