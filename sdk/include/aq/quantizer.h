/* aq/quantizer.h - number formats: a grid, how groups are fitted to it, and how codes are stored.
 *
 * A weight is approximated by   w ~ grid(code) * (scale / global)
 *   grid(code) = values[code]                 AQ_ELEM_TABLE
 *              = code + int_min - zero        AQ_ELEM_INT (zero is 0 without AQ_FORMAT_ZERO_POINT)
 *   global     = global_max / absmax(matrix)  AQ_FORMAT_GLOBAL_SCALE, if the matrix is not all 0
 *              = 1                            otherwise
 *   scale      = round_scale(f * (absmax * global / scale_divisor))          AQ_FIT_ABSMAX
 *                times -1 if AQ_FORMAT_SIGNED_SCALE is set and max > -min
 *              = round_scale(f * ((max - min) * global / (int_max - int_min))),
 *     zero     = clamp(rint(int_min - f * min / (scale / global)), int_min, int_max)  AQ_FIT_MINMAX
 *                where min <= 0 <= max
 *   code       = the code nearest to t = w / (scale / global), saturating at both ends:
 *                rint(t) + zero - int_min                                       AQ_ELEM_INT
 *                the boundary between neighbouring values a and b is (a + b) / 2, where the even
 *                code is taken; of codes with equal values, the first is taken; of +0 and -0, the
 *                one with the sign of t                                         AQ_ELEM_TABLE
 *
 * Every line is computed in float32, in the order written. round_scale rounds to scale_kind in the
 * way that scale_round states, and clamps the result between the smallest positive and the largest
 * number of that kind. A group of zeros has scale 1. AQ_FORMAT_SIGNED_SCALE is for integers that
 * reach one further below 0 than above: with the sign of the scale, the largest weight of a group
 * lies on the side that reaches further.
 *
 * Two-level scales (AQ_FIT_TWO_LEVEL, with AQ_ELEM_INT and at most 8 bits; the K-quants of
 * llama.cpp) are multiples of a number that the groups of a super-group share:
 *   w ~ (code + int_min) * scale - minimum,   code = clamp(rint((w + minimum) / scale)) - int_min
 *   scale   = k * d        k an integer of sub_min..sub_max, but not 0
 *   minimum = m * dmin     m an integer of 0..sub_minimum_max; 0 and dmin 0 without minima
 * The parameters of a group are [scale, minimum, d, dmin]; d and dmin are of scale_kind, and the
 * same in every group of a super-group. Every line above is computed in float32; the products k * d
 * and m * dmin are exact. fit() is given whole super-groups. It may find their parameters in any
 * way; the host finds them as TwoLevelFit of aq/sdk/two_level.hpp does. It may change scales and
 * minima later, but never d and dmin.
 *
 * f takes the values of `search` (1 if there are none) in their order. The first f with the minimum
 * of sum(importance * (w - stored)^2) is used, a sum of doubles in the order of the columns, with
 * importance 1 where none is given (in the host, w^2 plus its mean over the group, up to 4 bits).
 * If E8M0 scales are rounded down, 1, 1/2 and 2 give the best of three neighbouring powers of 2.
 *
 * If a format is described and its scales are not E8M0, the host may then refine the scale, also a
 * float32 one, by least squares and store a scale between 1/2 and 2 times that of this formula,
 * with the same sign. Therefore pack() must store the scale that it is given.
 *
 * The host's fused GPTQ computes by itself whatever the description states. It calls the functions
 * below for the parts marked CUSTOM, and in tests, to check that both agree bit for bit. */
#ifndef AQ_QUANTIZER_H
#define AQ_QUANTIZER_H

#include "abi.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_QUANTIZER_FACTORY_ID "aq.quantizer-factory/1"

enum { AQ_ELEM_INT = 1, AQ_ELEM_TABLE = 2, AQ_ELEM_CUSTOM = 4096 };
enum { AQ_FIT_ABSMAX = 1, AQ_FIT_MINMAX = 2, AQ_FIT_TWO_LEVEL = 3, AQ_FIT_CUSTOM = 4096 };
enum {
  AQ_SCALE_F32 = 1,
  AQ_SCALE_F16 = 2,
  AQ_SCALE_BF16 = 3,
  AQ_SCALE_E4M3 = 4,
  AQ_SCALE_E8M0 = 5
};
enum {
  AQ_ROUND_NEAREST = 0, /* ties to even; not for E8M0, which needs one of the other three */
  AQ_ROUND_DOWN = 1,    /* E8M0: floor of the exponent (OCP MX v1.0) */
  AQ_ROUND_UP = 2,      /* E8M0: ceiling of the exponent, so that no weight saturates */
  AQ_ROUND_EVEN = 3,    /* E8M0: the mantissa is first rounded, half up, to scale_mantissa_bits */
};
enum {
  AQ_FORMAT_ZERO_POINT = 1 << 0,
  AQ_FORMAT_GLOBAL_SCALE = 1 << 1,
  AQ_FORMAT_SIGNED_SCALE = 1 << 2 /* since 1.1; a scale of float32, float16 or bfloat16 */
};

typedef struct aq_format_desc {
  uint32_t struct_size;
  uint32_t flags;
  int32_t element_kind;
  int32_t element_bits; /* of one code, 1..16 */
  int32_t int_min, int_max;
  const float* values; /* 1 << element_bits values, indexed by code */
  int32_t vector_dim;  /* weights per code; 1 unless AQ_ELEM_CUSTOM */
  int32_t fit_rule;
  float scale_divisor; /* int4: 7.5; mxfp4: 4; nvfp4: 6; nf4: 1 */
  int32_t scale_kind;
  int32_t scale_round;
  int32_t scale_mantissa_bits; /* AQ_ROUND_EVEN: mantissa bits of the element; mxfp4: 1 */
  float global_max;            /* AQ_FORMAT_GLOBAL_SCALE; nvfp4: 448 * 6 */
  /* The number of consecutive weights of a row that form a group and share its parameters. -1: each
   * row is one group. 0: the whole matrix is one group; in aq_pack_args each row has a copy of its
   * parameters. */
  int32_t group_size;
  uint32_t group_params;  /* number of f32 per row and group: scale [, zero], or the plugin's own */
  uint32_t tensor_params; /* number of f32 per matrix: [global], or the plugin's own (a codebook) */
  uint32_t n_packed;      /* number of tensors written per matrix */
  uint32_t n_search;
  const float* search;    /* factors to try on the scale; NULL: only 1 */
  uint32_t n_group_sizes; /* number of group sizes that create() accepts */
  uint32_t reserved;
  const int32_t* group_sizes;
  /* AQ_FIT_TWO_LEVEL; all are 0 with other rules. */
  int32_t super_size;       /* consecutive weights of a super-group, which has whole groups: 256 */
  int32_t sub_min, sub_max; /* range of k. sub_min is below 0 if scales may be negative, else 1 */
  int32_t sub_minimum_max;  /* largest m; 0: there are no minima */
} aq_format_desc;

typedef struct aq_fit_args {
  uint32_t struct_size;
  uint32_t reserved;
  const DLTensor* weight; /* [rows, n] f32: fit: one group or super-group; fit_tensor: the matrix */
  const DLTensor* importance;    /* [n] f32, the diagonal of the Hessian; or NULL */
  const DLTensor* tensor_params; /* [tensor_params] f32; NULL in fit_tensor, or if there are none */
  /* out, f32: fit: [rows, group_params], of a super-group [rows, groups * group_params];
   * fit_tensor: [tensor_params] */
  DLTensor* params;
} aq_fit_args;

typedef struct aq_code_args {
  uint32_t struct_size;
  uint32_t reserved;
  const DLTensor* weight;        /* quantize: [rows, n] f32, all n in one group */
  const DLTensor* group_params;  /* [rows, group_params] f32 */
  const DLTensor* tensor_params; /* [tensor_params] f32; NULL if there are none */
  DLTensor* codes;  /* [rows, n / vector_dim] u8, or u16 above 8 bits; quantize: out, may be NULL */
  DLTensor* values; /* out [rows, n] f32: the values of the codes; quantize: may be NULL */
} aq_code_args;

typedef struct aq_packed_tensor {
  uint32_t struct_size;
  int32_t ndim;
  const char* suffix; /* "weight_packed": the tensor is "<module name>.weight_packed" */
  DLDataType dtype;   /* u8 for E4M3 and E8M0, which DLPack 0.6 lacks; st_dtype tells them apart */
  int32_t reserved;
  int64_t shape[4];
  const char* st_dtype; /* the type as safetensors spells it: "I32", "BF16", "F8_E4M3" */
} aq_packed_tensor;

typedef struct aq_pack_args { /* pack writes to `packed`; unpack writes to the other tensors */
  uint32_t struct_size;
  uint32_t reserved;
  int64_t rows, cols;
  DLTensor* codes;         /* [rows, cols / vector_dim] */
  DLTensor* group_params;  /* [rows, groups, group_params] f32; groups = ceil(cols / group_size) */
  DLTensor* tensor_params; /* [tensor_params] f32; NULL if there are none */
  DLTensor* const* packed; /* n_packed tensors */
} aq_pack_args;

typedef struct aq_quantizer aq_quantizer;
struct aq_quantizer {
  uint32_t struct_size;
  uint32_t reserved;
  void* plugin_data;

  void(AQ_CALL* destroy)(const aq_quantizer* self);                              /* [serial] */
  const void*(AQ_CALL* get_extension)(const aq_quantizer* self, const char* id); /* [concurrent] */

  /* Everything below is [concurrent], because experts are quantized in parallel. */

  aq_status(AQ_CALL* describe)(const aq_quantizer* self, aq_format_desc* out, aq_error* err);

  /* fit_tensor() computes the parameters of a matrix (it is NULL if tensor_params is 0), and fit()
   * those of one group of columns. */
  aq_status(AQ_CALL* fit_tensor)(const aq_quantizer* self, const aq_fit_args* args, aq_error* err);
  aq_status(AQ_CALL* fit)(const aq_quantizer* self, const aq_fit_args* args, aq_error* err);

  aq_status(AQ_CALL* quantize)(const aq_quantizer* self, const aq_code_args* args, aq_error* err);
  aq_status(AQ_CALL* dequantize)(const aq_quantizer* self, const aq_code_args* args, aq_error* err);

  /* Describes the i-th tensor (i < n_packed) in which a [rows, cols] matrix is stored on disk.
   * Returns AQ_UNSUPPORTED if the format cannot store this shape; the message then says why. */
  aq_status(AQ_CALL* get_packed)(const aq_quantizer* self, int64_t rows, int64_t cols, uint32_t i,
                                 aq_packed_tensor* out, aq_error* err);
  aq_status(AQ_CALL* pack)(const aq_quantizer* self, const aq_pack_args* args, aq_error* err);
  aq_status(AQ_CALL* unpack)(const aq_quantizer* self, const aq_pack_args* args, aq_error* err);

  /* Returns the description for readers: a JSON object such as {"format": "pack-quantized",
   * "weights": {...}}, as a config group of quantization_config holds it (compressed-tensors). A
   * format that the readers of compressed-tensors do not know adds "quant_method": "...". Two
   * instances that can read each other's files give the same object. */
  const char*(AQ_CALL* config_json)(const aq_quantizer* self);
};

typedef struct aq_quantizer_factory aq_quantizer_factory;
struct aq_quantizer_factory {
  uint32_t struct_size;
  uint32_t reserved;
  uint32_t(AQ_CALL* count)(const aq_quantizer_factory* self); /* [scan] */
  const aq_descriptor*(AQ_CALL* descriptor)(const aq_quantizer_factory* self,
                                            uint32_t i); /* [scan] */

  /* Creates an instance; returns NULL on failure. options_json holds what the recipe says for this
   * format, such as {"group_size": 128, "symmetric": false, "scale_rule": "mse"}. An option that is
   * missing takes the format's default; an unknown option is an error that names it.  [serial]
   *
   * The host itself sets two options. "activations" is the id of the format to which the inputs of
   * the weights are rounded; a format that is then stored in another way reads it (int8:
   * "int-quantized"), the others ignore it. "dynamic": true means that the instance will round
   * activations, each token by itself along its features. The scales of activations are not stored,
   * and "weights" of config_json is what config groups hold as "input_activations". If the format
   * has a global scale, it is computed from all activations seen in calibration, and stored as
   * "input_global_scale". */
  const aq_quantizer*(AQ_CALL* create)(const aq_quantizer_factory* self, uint32_t i,
                                       const aq_host* host, const char* options_json,
                                       aq_error* err);
};

#ifdef __cplusplus
}
#endif
#endif /* AQ_QUANTIZER_H */
