/* ternary: weights of -1, 0 and 1 times a scale per row, as BitNet b1.58 (arXiv:2402.17764, section
 * 2) rounds them. A whole format plugin in plain C11, from aq/quantizer.h alone.
 *
 * On disk, per module of [rows, cols]:
 *   weight_packed  u8  [rows, ceil(cols / 5)]  five codes a byte: c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4
 *   weight_scale   f32 [rows]                  mean |w|
 *   weight_shape   i64 [2]                     */
#include <aq/quantizer.h>
#include <ctype.h>
#include <math.h>
#include <stdio.h>

enum { kCodesPerByte = 5 };

static aq_status fail(aq_error* err, aq_status code, const char* message) {
  err->code = code;
  snprintf(err->message, sizeof err->message, "ternary: %s", message);
  return code;
}

static int is_matrix(const DLTensor* t, uint8_t type, uint8_t bits, int64_t rows, int64_t cols) {
  return t != NULL && t->ndim == 2 && t->device.device_type == kDLCPU && t->dtype.code == type &&
         t->dtype.bits == bits && t->shape[0] == rows && t->shape[1] == cols;
}

static void* data_of(const DLTensor* t) { return (char*)t->data + t->byte_offset; }

/* --- numbers --- */

static aq_status AQ_CALL describe(const aq_quantizer* self, aq_format_desc* out, aq_error* err) {
  static const float values[4] = {-1, 0, 1, 1}; /* the fourth code is never given */
  static const int32_t group_sizes[1] = {-1};
  aq_format_desc desc = {0};
  (void)self;
  desc.struct_size = sizeof desc;
  desc.element_kind = AQ_ELEM_TABLE;
  desc.element_bits = 2;
  desc.values = values;
  desc.vector_dim = 1;
  desc.fit_rule = AQ_FIT_CUSTOM;
  desc.scale_kind = AQ_SCALE_F32;
  desc.group_size = -1;
  desc.group_params = 1;
  desc.n_packed = 3;
  desc.n_group_sizes = 1;
  desc.group_sizes = group_sizes;
  if (aq_copy_out(out, &desc, sizeof desc) != AQ_OK)
    return fail(err, AQ_UNSUPPORTED, "the host is older than this plugin needs");
  return AQ_OK;
}

static aq_status AQ_CALL fit(const aq_quantizer* self, const aq_fit_args* args, aq_error* err) {
  (void)self;
  if (args->weight == NULL || args->weight->ndim != 2)
    return fail(err, AQ_INVALID_ARGUMENT, "weight is no matrix");
  const int64_t rows = args->weight->shape[0], n = args->weight->shape[1];
  if (!is_matrix(args->weight, kDLFloat, 32, rows, n) ||
      !is_matrix(args->params, kDLFloat, 32, rows, 1))
    return fail(err, AQ_INVALID_ARGUMENT, "weight or params has not the expected shape");
  const float* w = data_of(args->weight);
  float* scales = data_of(args->params);
  for (int64_t r = 0; r < rows; r++) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += fabs((double)w[r * n + i]);
    scales[r] = sum > 0 ? (float)(sum / (double)n) : 1;
  }
  return AQ_OK;
}

static aq_status AQ_CALL quantize(const aq_quantizer* self, const aq_code_args* args,
                                  aq_error* err) {
  (void)self;
  if (args->weight == NULL || args->weight->ndim != 2)
    return fail(err, AQ_INVALID_ARGUMENT, "weight is no matrix");
  const int64_t rows = args->weight->shape[0], n = args->weight->shape[1];
  if (!is_matrix(args->weight, kDLFloat, 32, rows, n) ||
      !is_matrix(args->group_params, kDLFloat, 32, rows, 1) ||
      (args->codes != NULL && !is_matrix(args->codes, kDLUInt, 8, rows, n)) ||
      (args->values != NULL && !is_matrix(args->values, kDLFloat, 32, rows, n)))
    return fail(err, AQ_INVALID_ARGUMENT, "a tensor has not the expected shape");
  const float *w = data_of(args->weight), *scales = data_of(args->group_params);
  uint8_t* codes = args->codes != NULL ? data_of(args->codes) : NULL;
  float* values = args->values != NULL ? data_of(args->values) : NULL;
  for (int64_t i = 0; i < rows * n; i++) {
    const float scale = scales[i / n], t = w[i] / scale;
    const int value = t > 0.5f ? 1 : t < -0.5f ? -1 : 0;
    if (codes != NULL) codes[i] = (uint8_t)(value + 1);
    if (values != NULL) values[i] = (float)value * scale;
  }
  return AQ_OK;
}

static aq_status AQ_CALL dequantize(const aq_quantizer* self, const aq_code_args* args,
                                    aq_error* err) {
  (void)self;
  if (args->codes == NULL || args->codes->ndim != 2)
    return fail(err, AQ_INVALID_ARGUMENT, "codes is no matrix");
  const int64_t rows = args->codes->shape[0], n = args->codes->shape[1];
  if (!is_matrix(args->codes, kDLUInt, 8, rows, n) ||
      !is_matrix(args->group_params, kDLFloat, 32, rows, 1) ||
      !is_matrix(args->values, kDLFloat, 32, rows, n))
    return fail(err, AQ_INVALID_ARGUMENT, "a tensor has not the expected shape");
  const uint8_t* codes = data_of(args->codes);
  const float* scales = data_of(args->group_params);
  float* values = data_of(args->values);
  for (int64_t i = 0; i < rows * n; i++) values[i] = (float)(codes[i] - 1) * scales[i / n];
  return AQ_OK;
}

/* --- files --- */

static aq_status AQ_CALL get_packed(const aq_quantizer* self, int64_t rows, int64_t cols,
                                    uint32_t i, aq_packed_tensor* out, aq_error* err) {
  const aq_packed_tensor tensors[3] = {
      {sizeof *tensors,
       2,
       "weight_packed",
       {kDLUInt, 8, 1},
       0,
       {rows, (cols + kCodesPerByte - 1) / kCodesPerByte, 0, 0},
       "U8"},
      {sizeof *tensors, 1, "weight_scale", {kDLFloat, 32, 1}, 0, {rows, 0, 0, 0}, "F32"},
      {sizeof *tensors, 1, "weight_shape", {kDLInt, 64, 1}, 0, {2, 0, 0, 0}, "I64"}};
  (void)self;
  if (i > 2) return fail(err, AQ_INVALID_ARGUMENT, "a matrix becomes three tensors");
  if (aq_copy_out(out, &tensors[i], sizeof tensors[i]) != AQ_OK)
    return fail(err, AQ_UNSUPPORTED, "the host is older than this plugin needs");
  return AQ_OK;
}

static aq_status AQ_CALL pack(const aq_quantizer* self, const aq_pack_args* args, aq_error* err) {
  const int64_t rows = args->rows, cols = args->cols;
  (void)self;
  if (!is_matrix(args->codes, kDLUInt, 8, rows, cols))
    return fail(err, AQ_INVALID_ARGUMENT, "codes has not the expected shape");
  const uint8_t* codes = data_of(args->codes);
  uint8_t* bytes = data_of(args->packed[0]);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t begin = 0; begin < cols; begin += kCodesPerByte) {
      const int64_t end = begin + kCodesPerByte < cols ? begin + kCodesPerByte : cols;
      int byte = 0;
      for (int64_t i = end - 1; i >= begin; i--) byte = 3 * byte + codes[r * cols + i];
      *bytes++ = (uint8_t)byte;
    }
  memcpy(data_of(args->packed[1]), data_of(args->group_params), (size_t)rows * sizeof(float));
  const int64_t shape[2] = {rows, cols};
  memcpy(data_of(args->packed[2]), shape, sizeof shape);
  return AQ_OK;
}

static aq_status AQ_CALL unpack(const aq_quantizer* self, const aq_pack_args* args, aq_error* err) {
  const int64_t rows = args->rows, cols = args->cols;
  (void)self;
  if (!is_matrix(args->codes, kDLUInt, 8, rows, cols))
    return fail(err, AQ_INVALID_ARGUMENT, "codes has not the expected shape");
  uint8_t* codes = data_of(args->codes);
  const uint8_t* bytes = data_of(args->packed[0]);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t begin = 0; begin < cols; begin += kCodesPerByte, bytes++) {
      int byte = *bytes;
      if (byte >= 243) return fail(err, AQ_INVALID_ARGUMENT, "a byte holds no five codes");
      for (int64_t i = begin; i < begin + kCodesPerByte && i < cols; i++, byte /= 3)
        codes[r * cols + i] = (uint8_t)(byte % 3);
    }
  memcpy(data_of(args->group_params), data_of(args->packed[1]), (size_t)rows * sizeof(float));
  return AQ_OK;
}

static const char* AQ_CALL config_json(const aq_quantizer* self) {
  (void)self;
  return "{\"quant_method\": \"ternary\", \"format\": \"ternary-packed\", \"weights\": "
         "{\"num_bits\": 2, \"type\": \"int\", \"symmetric\": true, \"strategy\": \"channel\", "
         "\"group_size\": null}}";
}

/* --- the plugin --- */

static void AQ_CALL destroy(const aq_quantizer* self) { (void)self; }
static const void* AQ_CALL get_extension(const aq_quantizer* self, const char* id) {
  (void)self, (void)id;
  return NULL;
}

static const aq_quantizer quantizer = {sizeof quantizer, 0,    NULL,   destroy,    get_extension,
                                       describe,         NULL, fit,    quantize,   dequantize,
                                       get_packed,       pack, unpack, config_json};

static uint32_t AQ_CALL count(const aq_quantizer_factory* self) {
  (void)self;
  return 1;
}

static const aq_descriptor* AQ_CALL descriptor(const aq_quantizer_factory* self, uint32_t i) {
  static const aq_descriptor it = {
      sizeof it, 0, "ternary", "Ternary", "1.0.0", "an example", "-1, 0 and 1, a scale per row"};
  (void)self, (void)i;
  return &it;
}

/* The one option is a group size of -1, the whole row. */
static const aq_quantizer* AQ_CALL create(const aq_quantizer_factory* self, uint32_t i,
                                          const aq_host* host, const char* options_json,
                                          aq_error* err) {
  char text[32];
  size_t n = 0;
  (void)self, (void)i, (void)host;
  for (const char* c = options_json; *c != '\0' && n + 1 < sizeof text; c++)
    if (!isspace((unsigned char)*c)) text[n++] = *c;
  text[n] = '\0';
  if (strcmp(text, "{}") != 0 && strcmp(text, "{\"group_size\":-1}") != 0) {
    fail(err, AQ_UNSUPPORTED, "the only option is group_size, and its only value -1 (a whole row)");
    return NULL;
  }
  return &quantizer;
}

static const aq_quantizer_factory factory = {sizeof factory, 0, count, descriptor, create};

static const void* AQ_CALL get_factory(const char* id) {
  return strcmp(id, AQ_QUANTIZER_FACTORY_ID) == 0 ? &factory : NULL;
}

AQ_EXPORT extern const aq_entry aq_plugin_entry;
const aq_entry aq_plugin_entry = {
    sizeof aq_plugin_entry, AQ_ABI_MAJOR, AQ_ABI_MINOR, NULL, NULL, get_factory};
