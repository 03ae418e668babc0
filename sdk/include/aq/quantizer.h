/* aq/quantizer.h - quantization formats: a grid, how groups are fitted to it, how codes are stored.
 *
 * A weight is stored as   w ~ grid(code) * (scale / global)
 *   grid(code) = values[code]                 AQ_ELEM_TABLE
 *              = code + int_min - zero        AQ_ELEM_INT (zero is 0 without AQ_FORMAT_ZERO_POINT)
 *   global     = global_max / absmax(matrix)  AQ_FORMAT_GLOBAL_SCALE, else 1; of a zero matrix 1
 *   scale      = round_scale(f * (absmax * global / scale_divisor))          AQ_FIT_ABSMAX
 *              = round_scale(f * ((max - min) * global / (int_max - int_min))),
 *     zero     = clamp(rint(int_min - f * min / (scale / global)), int_min, int_max)  AQ_FIT_MINMAX
 *                where min <= 0 <= max
 *   code       = nearest to t = w / (scale / global), saturating:
 *                rint(t) + zero - int_min                                       AQ_ELEM_INT
 *                by the midpoint (a + b) / 2 of neighbouring values, at it the even code; of equal
 *                values the first code, of +0 and -0 the one with t's sign      AQ_ELEM_TABLE
 *
 * Every line is float32 arithmetic in the order written. round_scale rounds to the scale's kind as
 * scale_round says, to no less than its smallest number above 0 and no more than its largest; a
 * group of zeros has scale 1.
 *
 * f runs over `search` (1 if there is none) in order, and the first f with the least
 * sum(importance * (w - stored)^2), summed as double over the columns in order, is taken
 * (importance 1 where there is none). So an E8M0 scale that is rounded down, with the factors 1,
 * 1/2 and 2, is the best of three neighbouring powers of 2.
 *
 * The host may then refine the scale of a described format that is not E8M0 by least squares, and
 * store one between 1/2 and 2 times that of this formula: pack() must store the scale it is given.
 *
 * Whatever of this the description states, the host's fused GPTQ does itself; it calls the
 * functions for the parts marked CUSTOM, and in tests to check that both agree bit for bit. */
#ifndef AQ_QUANTIZER_H
#define AQ_QUANTIZER_H

#include "abi.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_QUANTIZER_FACTORY_ID "aq.quantizer-factory/1"

enum { AQ_ELEM_INT = 1, AQ_ELEM_TABLE = 2, AQ_ELEM_CUSTOM = 4096 };
enum { AQ_FIT_ABSMAX = 1, AQ_FIT_MINMAX = 2, AQ_FIT_CUSTOM = 4096 };
enum {
  AQ_SCALE_F32 = 1,
  AQ_SCALE_F16 = 2,
  AQ_SCALE_BF16 = 3,
  AQ_SCALE_E4M3 = 4,
  AQ_SCALE_E8M0 = 5
};
enum {
  AQ_ROUND_NEAREST =
      0,             /* ties to even; of E8M0 the nearest exponent is not meant, use the others */
  AQ_ROUND_DOWN = 1, /* E8M0: floor of the exponent, OCP MX v1.0 */
  AQ_ROUND_UP = 2,   /* E8M0: nothing saturates */
  AQ_ROUND_EVEN = 3, /* E8M0: the mantissa is first rounded, half up, to scale_mantissa_bits */
};
enum { AQ_FORMAT_ZERO_POINT = 1 << 0, AQ_FORMAT_GLOBAL_SCALE = 1 << 1 };

typedef struct aq_format_desc {
  uint32_t struct_size;
  uint32_t flags;
  int32_t element_kind;
  int32_t element_bits; /* of one code, 1..16 */
  int32_t int_min, int_max;
  const float* values; /* 1 << element_bits values, by code */
  int32_t vector_dim;  /* weights per code; 1 unless AQ_ELEM_CUSTOM */
  int32_t fit_rule;
  float scale_divisor; /* int4: 7.5; mxfp4: 4; nvfp4: 6; nf4: 1 */
  int32_t scale_kind;
  int32_t scale_round;
  int32_t scale_mantissa_bits; /* AQ_ROUND_EVEN: of the element, mxfp4: 1 */
  float global_max;            /* AQ_FORMAT_GLOBAL_SCALE; nvfp4: 448 * 6 */
  int32_t
      group_size; /* of this instance, along the input; -1: a whole row; 0: the whole matrix, all
                     rows having the same params, that of one group of them all, row by row */
  uint32_t group_params;  /* f32 per row and group: scale [, zero], or the plugin's own */
  uint32_t tensor_params; /* f32 per matrix: [global], or the plugin's own, e.g. a codebook */
  uint32_t n_packed;      /* tensors written per matrix */
  uint32_t n_search;
  const float* search;    /* factors to try on the scale; NULL: 1 alone */
  uint32_t n_group_sizes; /* that create() accepts */
  uint32_t reserved;
  const int32_t* group_sizes;
} aq_format_desc;

typedef struct aq_fit_args {
  uint32_t struct_size;
  uint32_t reserved;
  const DLTensor* weight;     /* [rows, n] f32: one group, or for fit_tensor the matrix */
  const DLTensor* importance; /* [n] f32, diagonal of the Hessian; or NULL */
  const DLTensor*
      tensor_params; /* [tensor_params] f32; NULL for fit_tensor, or if there are none */
  DLTensor* params;  /* out [rows, group_params], or [tensor_params]; f32 */
} aq_fit_args;

typedef struct aq_code_args {
  uint32_t struct_size;
  uint32_t reserved;
  const DLTensor* weight;        /* quantize: [rows, n] f32, all n in one group */
  const DLTensor* group_params;  /* [rows, group_params] f32 */
  const DLTensor* tensor_params; /* [tensor_params] f32; NULL if there are none */
  DLTensor* codes;  /* [rows, n / vector_dim] u8, u16 above 8 bits; quantize: out, may be NULL */
  DLTensor* values; /* out [rows, n] f32: what the codes stand for; quantize: may be NULL */
} aq_code_args;

typedef struct aq_packed_tensor {
  uint32_t struct_size;
  int32_t ndim;
  const char* suffix; /* "weight_packed": the tensor is "<module name>.weight_packed" */
  DLDataType dtype; /* E4M3 and E8M0 are u8 to DLPack 0.6: the suffix's safetensors type is below */
  int32_t reserved;
  int64_t shape[4];
  const char* st_dtype; /* as safetensors spells it: "I32", "BF16", "F8_E4M3" */
} aq_packed_tensor;

typedef struct aq_pack_args { /* pack: `packed` is out; unpack: the others are */
  uint32_t struct_size;
  uint32_t reserved;
  int64_t rows, cols;
  DLTensor* codes;         /* [rows, cols / vector_dim] */
  DLTensor* group_params;  /* [rows, groups, group_params] f32; groups = ceil(cols / group_size) */
  DLTensor* tensor_params; /* [tensor_params] f32; NULL if there are none */
  DLTensor* const* packed; /* n_packed */
} aq_pack_args;

typedef struct aq_quantizer aq_quantizer;
struct aq_quantizer {
  uint32_t struct_size;
  uint32_t reserved;
  void* plugin_data;

  void(AQ_CALL* destroy)(const aq_quantizer* self);                              /* [serial] */
  const void*(AQ_CALL* get_extension)(const aq_quantizer* self, const char* id); /* [concurrent] */

  /* Everything below is [concurrent]: experts are quantized in parallel. */

  aq_status(AQ_CALL* describe)(const aq_quantizer* self, aq_format_desc* out, aq_error* err);

  /* Parameters of a matrix (NULL if tensor_params is 0), then of one group of columns. */
  aq_status(AQ_CALL* fit_tensor)(const aq_quantizer* self, const aq_fit_args* args, aq_error* err);
  aq_status(AQ_CALL* fit)(const aq_quantizer* self, const aq_fit_args* args, aq_error* err);

  aq_status(AQ_CALL* quantize)(const aq_quantizer* self, const aq_code_args* args, aq_error* err);
  aq_status(AQ_CALL* dequantize)(const aq_quantizer* self, const aq_code_args* args, aq_error* err);

  /* The i-th tensor that a [rows, cols] matrix becomes on disk, i < n_packed. AQ_UNSUPPORTED: the
   * format cannot store this shape; the message says why. */
  aq_status(AQ_CALL* get_packed)(const aq_quantizer* self, int64_t rows, int64_t cols, uint32_t i,
                                 aq_packed_tensor* out, aq_error* err);
  aq_status(AQ_CALL* pack)(const aq_quantizer* self, const aq_pack_args* args, aq_error* err);
  aq_status(AQ_CALL* unpack)(const aq_quantizer* self, const aq_pack_args* args, aq_error* err);

  /* How readers are told: a JSON object {"format": "pack-quantized", "weights": {...}} as a config
   * group of quantization_config holds it (compressed-tensors). With "quant_method": "..." where
   * the readers of compressed-tensors do not know the format. Two instances that read each other's
   * files give the same object. */
  const char*(AQ_CALL* config_json)(const aq_quantizer* self);
};

typedef struct aq_quantizer_factory aq_quantizer_factory;
struct aq_quantizer_factory {
  uint32_t struct_size;
  uint32_t reserved;
  uint32_t(AQ_CALL* count)(const aq_quantizer_factory* self); /* [scan] */
  const aq_descriptor*(AQ_CALL* descriptor)(const aq_quantizer_factory* self,
                                            uint32_t i); /* [scan] */

  /* options_json: what the recipe says for this format, e.g. {"group_size": 128, "symmetric":
   * false, "scale_rule": "mse"}; an option it lacks has the format's default, an unknown one is an
   * error that names it. NULL on failure.  [serial]
   * The host itself gives two options. "activations": the id of the format that the inputs of the
   * weights are rounded to; a format that is then stored otherwise reads it (int8:
   * "int-quantized"), the others ignore it. "dynamic": true: the instance is to round activations,
   * each token by itself along its features; such scales are not stored, and "weights" of
   * config_json is what config groups hold as "input_activations". Of a global scale, global is
   * that of all activations seen while calibrating, and stored as "input_global_scale". */
  const aq_quantizer*(AQ_CALL* create)(const aq_quantizer_factory* self, uint32_t i,
                                       const aq_host* host, const char* options_json,
                                       aq_error* err);
};

#ifdef __cplusplus
}
#endif
#endif /* AQ_QUANTIZER_H */
