/* aq/model.h - model adapters, which say what a checkpoint contains and how its router chooses
 * experts. */
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
       AQ_ROLE_ATTN_Q_A = 23, /* these six belong to AQ_ATTN_LATENT */
       AQ_ROLE_ATTN_Q_A_NORM = 24,
       AQ_ROLE_ATTN_Q_B = 25,
       AQ_ROLE_ATTN_KV_A = 26,
       AQ_ROLE_ATTN_KV_A_NORM = 27,
       AQ_ROLE_ATTN_KV_B = 28,
       AQ_ROLE_ATTN_SINKS = 29, /* [n_heads], see aq_attention_desc.sinks */
       AQ_ROLE_FFN_NORM = 32,
       AQ_ROLE_FFN_GATE = 33, /* aq_tensor_key.expert says if it is dense, routed or shared */
       AQ_ROLE_FFN_UP = 34,
       AQ_ROLE_FFN_DOWN = 35,
       AQ_ROLE_ROUTER = 48,
       AQ_ROLE_ROUTER_BIAS = 49,   /* added to the scores that choose experts, not to the weights */
       AQ_ROLE_SHARED_ROUTER = 50, /* the sigmoid gate of the shared expert */
       AQ_ROLE_DELTA_QKV = 64,     /* these belong to AQ_ATTN_DELTA, which describes them */
       AQ_ROLE_DELTA_Z = 65,
       AQ_ROLE_DELTA_B = 66,
       AQ_ROLE_DELTA_A = 67,
       AQ_ROLE_DELTA_QKVZ = 68,
       AQ_ROLE_DELTA_BA = 69,
       AQ_ROLE_DELTA_OUT = 70,
       AQ_ROLE_DELTA_CONV = 71,    /* [channels, 1, conv_size] */
       AQ_ROLE_DELTA_A_LOG = 72,   /* [n_heads] */
       AQ_ROLE_DELTA_DT_BIAS = 73, /* [n_heads] */
       AQ_ROLE_DELTA_NORM = 74,    /* [value_dim] */
       AQ_ROLE_CUSTOM = 4096, /* This and higher values are for the adapter's own roles. Each kind
                                 of tensor needs its own role, because every module of a layer and
                                 expert must have its own key. */
};
enum { AQ_EXPERT_NONE = -1, AQ_EXPERT_SHARED = -2 };
enum { AQ_PART_WEIGHT = 0, AQ_PART_BIAS = 1 };

/* Identifies one tensor of any model. Frozen. */
typedef struct aq_tensor_key {
  int32_t layer; /* -1: the tensor is outside the layers */
  int32_t role;
  int32_t expert; /* 0 and up, or AQ_EXPERT_* */
  int32_t part;   /* AQ_PART_* */
} aq_tensor_key;

/* Where a matrix [out, in] (or a vector) lies in a checkpoint. It is read in this order: take entry
 * `index` of dimension 0, transpose, then take the row_count rows row_begin, row_begin + row_step,
 * row_begin + 2 row_step, ... Frozen. */
typedef struct aq_tensor_ref {
  const char* name;
  int64_t index; /* -1: the tensor does not stack experts */
  int64_t row_begin;
  int64_t row_step;   /* 2 where gate and up rows alternate; 0 means 1 */
  int64_t row_count;  /* 0: all rows from row_begin on */
  int32_t transposed; /* 1: the matrix is stored as [in, out] */
  int32_t reserved;
} aq_tensor_ref;

/* --- description ---------------------------------------------------------------------------- */

enum { AQ_NORM_RMS = 1, AQ_NORM_LAYER = 2 };
enum {                       /* aq_attention_desc.kind */
       AQ_ATTN_STANDARD = 1, /* MHA, GQA, MQA: q, k and v, then o */
       /* Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434). Stage 0 has q_a and kv_a, or
        * q and kv_a if q_rank is 0; stage 1 has q_b and kv_b, each with an input of its own; stage
        * 2 has o. kv_a gives kv_rank values, which are normed and go to kv_b, and a key of rope_dim
        * values that all heads share. A head of q has head_dim - rope_dim values without rotation
        * first and rope_dim rotated ones after them; one of kv_b has head_dim - rope_dim values of
        * the key first and value_dim of the value after them. n_kv_heads is n_heads. */
       AQ_ATTN_LATENT = 2,
       /* Gated delta rule (arXiv:2412.06464), as Qwen3-Next has it: n_kv_heads heads of head_dim
        * for queries and keys, n_heads heads of value_dim for values. Stage 0 has the projections,
        * stage 1 has DELTA_OUT. Either DELTA_QKV gives all queries, keys and values, and DELTA_Z,
        * DELTA_B and DELTA_A give the output gate, beta and the decay of every value head; or
        * DELTA_QKVZ and DELTA_BA (delta_fused) give these for one key head after another. A causal
        * convolution without bias over conv_size tokens, then SiLU, comes before the rule; the norm
        * DELTA_NORM, times SiLU of the output gate, comes after it. */
       AQ_ATTN_DELTA = 3,
       AQ_ATTN_CUSTOM = 4096 /* ext/block_forward.h */
};
enum { AQ_QK_NORM_NONE = 0, AQ_QK_NORM_HEAD = 1 /* Qwen3 */, AQ_QK_NORM_FULL = 2 /* OLMoE */ };
enum { AQ_FFN_DENSE = 1, AQ_FFN_MOE = 2, AQ_FFN_CUSTOM = 4096 };
enum {
  AQ_ACT_SILU_GLU = 1,
  AQ_ACT_GELU_GLU = 2,
  AQ_ACT_GELU_TANH_GLU = 3,
  /* g sigmoid(act_alpha g) (u + 1), with g = min(gate, act_limit) and u = up limited to
   * +-act_limit (gpt-oss) */
  AQ_ACT_CLAMPED_SWIGLU = 4
};
enum { /* aq_ffn_desc.router says what route() computes, so that the host can do it on the GPU */
       AQ_ROUTER_SOFTMAX_TOPK = 1, /* softmax over all experts, then the top k */
       AQ_ROUTER_SIGMOID_TOPK = 2,
       AQ_ROUTER_CUSTOM = 4096, /* a rule that only route() knows */
};

typedef struct aq_model_desc {
  uint32_t struct_size;
  int32_t n_layers;
  int64_t hidden_size;
  int64_t vocab_size;
  int64_t max_positions; /* length of the longest sequence the model is made for; 0: unknown */
  int32_t norm_kind;
  float norm_eps;
  int32_t tied_embeddings; /* 1: lm_head is the embedding; there is no AQ_ROLE_LM_HEAD tensor */
  int32_t reserved;
  /* since 1.1 */
  float embedding_scale; /* multiplies embeddings; 0 means 1 */
  float residual_scale;  /* multiplies what attention and FFN add to the residual; 0 means 1 */
  float logit_scale;     /* multiplies logits; 0 means 1 */
  int32_t norm_plus_one; /* 1: norms multiply by 1 + w in float32, except AQ_ROLE_DELTA_NORM */
} aq_model_desc;

typedef struct aq_attention_desc {
  uint32_t struct_size;
  int32_t kind;
  int32_t n_heads, n_kv_heads;
  int32_t head_dim;
  int32_t qk_norm;
  int32_t sliding_window; /* w: a token sees itself and the w - 1 tokens before it; 0: no limit */
  float clip_qkv;         /* q, k, v are clamped to +-clip_qkv after q/k norm; 0: no limit */
  float scale;            /* of q k^T; 0 means 1 / sqrt(head_dim) */
  float rope_scale;       /* multiplies cos and sin; 0 means 1 */
  int32_t rope_dim;       /* how many dimensions of a head rotate, the first ones, or the last ones
                             of AQ_ATTN_LATENT; 0: no RoPE */
  int32_t rope_interleaved;   /* 0: pairs (i, i + rope_dim / 2); 1: pairs (2 i, 2 i + 1) */
  const float* rope_inv_freq; /* rope_dim / 2 values, in which theta, linear scaling, YaRN and so on
                                 are expressed */
  /* since 1.1 */
  int32_t output_gate; /* 1: q has 2 head_dim rows for every head: the query, and a gate whose
                          sigmoid multiplies the head's output (Qwen3-Next); 0: there is no gate */
  int32_t sinks;       /* 1: AQ_ROLE_ATTN_SINKS holds one more score for each head, whose value is 0
                          (gpt-oss); 0: there are none */
  int32_t q_rank;      /* AQ_ATTN_LATENT: the values that q_a gives; 0: q has no a and b */
  int32_t kv_rank;     /* AQ_ATTN_LATENT: see there, at least 1; other kinds: 0 */
  int32_t
      value_dim;    /* AQ_ATTN_LATENT, AQ_ATTN_DELTA: the values of a head, at least 1; others: 0 */
  float latent_eps; /* norm_eps of the norms between a and b; 0 means that of the model */
  int32_t conv_size;   /* AQ_ATTN_DELTA: the tokens of its convolution, at least 1; others: 0 */
  int32_t delta_fused; /* AQ_ATTN_DELTA: 1: DELTA_QKVZ and DELTA_BA; 0: QKV, Z, B and A */
} aq_attention_desc;

typedef struct aq_ffn_desc {
  uint32_t struct_size;
  int32_t kind; /* of this layer, so that dense first layers need no field of their own */
  int32_t activation;
  int32_t n_experts, top_k;
  int32_t router;
  int32_t norm_topk;            /* 1: the weights of the chosen experts are divided by their sum */
  float routed_scale;           /* the weights are then multiplied by this; 0 means 1 */
  int32_t n_groups, top_groups; /* Experts are chosen from the top_groups groups whose best expert
                                   has the highest score (DeepSeek-V2; see group_best); 0: from all
                                   experts. Other rules need AQ_ROUTER_CUSTOM. */
  int64_t inner_size;           /* of a dense FFN or of one routed expert */
  int64_t shared_size;          /* inner size of all shared experts together; 0: there are none */
  int32_t shared_gated;         /* 1: AQ_ROLE_SHARED_ROUTER weights the shared expert's output */
  int32_t route_hidden;         /* 1: route() needs aq_route_args.hidden */
  /* since 1.1 */
  int32_t group_best;         /* the score of a group is the sum of that many best scores
                                 (DeepSeek-V3: 2); 0 means 1 */
  float act_alpha, act_limit; /* AQ_ACT_CLAMPED_SWIGLU: above 0; other activations: 0 */
  float norm_min;             /* norm_topk divides by this if the sum is smaller; 0: by the sum */
} aq_ffn_desc;

enum {
  AQ_MODULE_QUANTIZE = 1 << 0, /* The module is quantized unless a recipe says otherwise. Without
                                  this flag (routers, lm_head) it is quantized only if an override
                                  of a recipe names it. */
  AQ_MODULE_SENSITIVE = 1 << 1 /* `aqhost plan` warns if the module gets fewer than 4 bits */
};

/* One linear map y = x W^T + b. */
typedef struct aq_module {
  uint32_t struct_size;
  uint32_t flags;
  aq_tensor_key key;
  const char* name; /* "model.layers.0.mlp.experts.3.up_proj": unique. Recipes, reports and the
                       tensors of exports ("<name>.weight...") use it, however the checkpoint
                       stores the module. */
  aq_tensor_ref weight;
  aq_tensor_ref bias; /* its name is NULL if there is no bias */
  int64_t out_features, in_features;
  int32_t stage; /* within a layer, the inputs of later stages come from quantized earlier ones */
  int32_t input_group; /* modules of one layer, expert and group have one input, so one Hessian */
  const char* label;   /* for reports, such as "kv_a_proj"; may be NULL */
} aq_module;

/* --- router --------------------------------------------------------------------------------- */

typedef struct aq_route_args {
  uint32_t struct_size;
  int32_t layer;
  const DLTensor* logits; /* [tokens, n_experts] f32 */
  const DLTensor* bias;   /* [n_experts] f32, AQ_ROLE_ROUTER_BIAS; or NULL */
  const DLTensor* hidden; /* [tokens, hidden_size] f32 if route_hidden is 1; otherwise NULL */
  DLTensor* expert_ids;   /* out [tokens, top_k] i32, the best first; -1: the slot is not used */
  DLTensor* weights; /* out [tokens, top_k] f32, not negative: factors of the experts' outputs */
} aq_route_args;

/* --- adapter -------------------------------------------------------------------------------- */

/* Tensors that a checkpoint contains and that are never run, such as layers for multi-token
 * prediction or a vision tower. An export contains them unchanged. Frozen. */
typedef struct aq_copied {
  const char* prefix; /* of their names: "mtp." */
  const char* what;   /* for the user: "multi-token prediction" */
} aq_copied;

typedef struct aq_model aq_model;
struct aq_model {
  uint32_t struct_size;
  uint32_t reserved;
  void* plugin_data;

  void(AQ_CALL* destroy)(const aq_model* self);                              /* [serial] */
  const void*(AQ_CALL* get_extension)(const aq_model* self, const char* id); /* [concurrent] */

  /* These describe what the host cannot know. `seq_len` is the length of the sequences that will be
   * run; some rope settings depend on it (dynamic NTK, LongRoPE).  [concurrent] */
  aq_status(AQ_CALL* describe)(const aq_model* self, aq_model_desc* out, aq_error* err);
  aq_status(AQ_CALL* describe_attention)(const aq_model* self, int32_t layer, int64_t seq_len,
                                         aq_attention_desc* out, aq_error* err);
  aq_status(AQ_CALL* describe_ffn)(const aq_model* self, int32_t layer, aq_ffn_desc* out,
                                   aq_error* err);

  /* The modules are exactly the linear maps that the description, or the adapter's own attention,
   * runs. They are ordered by layer, then by stage; those outside the layers come last.
   * [concurrent] */
  uint32_t(AQ_CALL* module_count)(const aq_model* self);
  aq_status(AQ_CALL* get_module)(const aq_model* self, uint32_t i, aq_module* out, aq_error* err);

  /* find_ref() turns a key into the name of its tensor, and find_key() is its inverse. Both return
   * AQ_NOT_FOUND if the model has no such tensor. If a tensor holds several matrices, find_key()
   * gives the key of the first.  [concurrent] */
  aq_status(AQ_CALL* find_ref)(const aq_model* self, const aq_tensor_key* key, aq_tensor_ref* out,
                               aq_error* err);
  aq_status(AQ_CALL* find_key)(const aq_model* self, const char* name, aq_tensor_key* out,
                               aq_error* err);

  /* Chooses experts from router logits. This function is the reference: if aq_ffn_desc.router is
   * not AQ_ROUTER_CUSTOM, the host's own code must give the same result, and the host checks that
   * it does. Of two experts with equal scores, the one with the lower id comes first. NaN counts as
   * -inf. An expert with score -inf is not chosen, and a slot without an expert has id -1 and
   * weight 0.  [concurrent] */
  aq_status(AQ_CALL* route)(const aq_model* self, const aq_route_args* args, aq_error* err);

  /* since 1.1: returns the kinds of tensors that are only copied, by their numbers from 0 on, and
   * NULL after the last one. The result lives as long as the model. The function pointer may be
   * NULL.  [concurrent] */
  const aq_copied*(AQ_CALL* copied)(const aq_model* self, uint32_t i);
};

/* --- factory -------------------------------------------------------------------------------- */

typedef struct aq_tensor_meta { /* frozen */
  DLDataType dtype;
  int32_t ndim;
  int64_t shape[8];
} aq_tensor_meta;

typedef struct aq_checkpoint aq_checkpoint; /* belongs to the host; valid during create() only */
struct aq_checkpoint {
  uint32_t struct_size;
  uint32_t reserved;
  void* host_data;
  const char* config_json; /* the whole text of config.json */
  /* Gives type and shape of a tensor; in a quantized checkpoint, those that it had before it was
   * quantized. Returns AQ_NOT_FOUND if there is no such tensor.  [concurrent] */
  aq_status(AQ_CALL* find)(const aq_checkpoint* self, const char* name, aq_tensor_meta* out);
};

typedef struct aq_model_factory aq_model_factory;
struct aq_model_factory {
  uint32_t struct_size;
  uint32_t reserved;
  uint32_t(AQ_CALL* count)(const aq_model_factory* self);                              /* [scan] */
  const aq_descriptor*(AQ_CALL* descriptor)(const aq_model_factory* self, uint32_t i); /* [scan] */

  /* Returns how certain it is that this adapter fits: from 0 (it does not) to 100 (it certainly
   * does). The host takes the adapter with the highest value; if there is a tie, the user must
   * choose. `why` (why_size bytes, at least 64) receives one line for the user, such as "model_type
   * is olmoe".  [scan] */
  int32_t(AQ_CALL* probe)(const aq_model_factory* self, uint32_t i, const char* config_json,
                          char* why, size_t why_size);

  /* Returns NULL on failure. A key of config.json that the adapter knows, but whose value it does
   * not support, is an error that names the key. For keys that it does not know, the adapter calls
   * host->log() with a warning; if the user asks for strictness, the host treats these warnings as
   * errors.  [serial] */
  const aq_model*(AQ_CALL* create)(const aq_model_factory* self, uint32_t i, const aq_host* host,
                                   const aq_checkpoint* checkpoint, aq_error* err);

  /* Returns other names by which the user may choose this adapter, separated by spaces, such as
   * "qwen qwen2moe", or NULL if there are none. This function may be NULL.  [scan] */
  const char*(AQ_CALL* aliases)(const aq_model_factory* self, uint32_t i);
};

#ifdef __cplusplus
}
#endif
#endif /* AQ_MODEL_H */
