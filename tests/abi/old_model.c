/* A model plugin in C, with a dense model of one layer. test_abi.py builds it with the headers of
 * every version. It fills all fields of version 1.0, and no later ones. */
#include <aq/model.h>
#include <stdio.h>
#include <string.h>

enum { kHidden = 4, kVocabulary = 6, kInner = 5 };

/* Every tensor. Those of modules come first, in the order of the modules. */
static const struct {
  const char* name;
  int32_t layer, role;
  int64_t out, in;
  int32_t stage, input_group;
} kTensors[] = {
    {"layer.0.q.weight", 0, AQ_ROLE_ATTN_Q, kHidden, kHidden, 0, 0},
    {"layer.0.k.weight", 0, AQ_ROLE_ATTN_K, kHidden, kHidden, 0, 0},
    {"layer.0.v.weight", 0, AQ_ROLE_ATTN_V, kHidden, kHidden, 0, 0},
    {"layer.0.o.weight", 0, AQ_ROLE_ATTN_O, kHidden, kHidden, 1, 1},
    {"layer.0.gate.weight", 0, AQ_ROLE_FFN_GATE, kInner, kHidden, 2, 2},
    {"layer.0.up.weight", 0, AQ_ROLE_FFN_UP, kInner, kHidden, 2, 2},
    {"layer.0.down.weight", 0, AQ_ROLE_FFN_DOWN, kHidden, kInner, 3, 3},
    {"head.weight", -1, AQ_ROLE_LM_HEAD, kVocabulary, kHidden, 0, 0},
    {"embed.weight", -1, AQ_ROLE_EMBEDDING, 0, 0, 0, 0},
    {"norm.weight", -1, AQ_ROLE_FINAL_NORM, 0, 0, 0, 0},
    {"layer.0.attn_norm.weight", 0, AQ_ROLE_ATTN_NORM, 0, 0, 0, 0},
    {"layer.0.ffn_norm.weight", 0, AQ_ROLE_FFN_NORM, 0, 0, 0, 0},
};
enum { kModules = 8, kTensorCount = sizeof kTensors / sizeof kTensors[0] };
static const char* const kModuleNames[kModules] = {"layer.0.q",    "layer.0.k",    "layer.0.v",
                                                   "layer.0.o",    "layer.0.gate", "layer.0.up",
                                                   "layer.0.down", "head"};

static aq_status failed(aq_error* err, aq_status code, const char* message) {
  snprintf(err->message, sizeof err->message, "%s", message);
  return err->code = code;
}

static aq_status filled(aq_status status, aq_error* err) {
  return status == AQ_OK ? AQ_OK : failed(err, status, "the host is older than this plugin needs");
}

static void destroy(const aq_model* self) { (void)self; }

static const void* get_extension(const aq_model* self, const char* id) {
  (void)self, (void)id;
  return NULL;
}

static aq_status describe(const aq_model* self, aq_model_desc* out, aq_error* err) {
  (void)self;
  aq_model_desc desc = {0};
  desc.struct_size = sizeof desc;
  desc.n_layers = 1;
  desc.hidden_size = kHidden;
  desc.vocab_size = kVocabulary;
  desc.max_positions = 64;
  desc.norm_kind = AQ_NORM_RMS;
  desc.norm_eps = 1e-5f;
  return filled(aq_copy_out(out, &desc, sizeof desc), err);
}

static aq_status describe_attention(const aq_model* self, int32_t layer, int64_t seq_len,
                                    aq_attention_desc* out, aq_error* err) {
  (void)self, (void)seq_len;
  static const float kFrequency = 0.5f;
  aq_attention_desc desc = {0};
  desc.struct_size = sizeof desc;
  desc.kind = AQ_ATTN_STANDARD;
  desc.n_heads = desc.n_kv_heads = 2;
  desc.head_dim = desc.rope_dim = 2;
  desc.scale = 0.5f;
  desc.rope_inv_freq = &kFrequency;
  if (layer != 0) return failed(err, AQ_INVALID_ARGUMENT, "there is no such layer");
  return filled(aq_copy_out(out, &desc, sizeof desc), err);
}

static aq_status describe_ffn(const aq_model* self, int32_t layer, aq_ffn_desc* out,
                              aq_error* err) {
  (void)self;
  aq_ffn_desc desc = {0};
  desc.struct_size = sizeof desc;
  desc.kind = AQ_FFN_DENSE;
  desc.activation = AQ_ACT_SILU_GLU;
  desc.inner_size = kInner;
  if (layer != 0) return failed(err, AQ_INVALID_ARGUMENT, "there is no such layer");
  return filled(aq_copy_out(out, &desc, sizeof desc), err);
}

static uint32_t module_count(const aq_model* self) {
  (void)self;
  return kModules;
}

static void locate(int i, aq_tensor_ref* out) {
  memset(out, 0, sizeof *out);
  out->name = kTensors[i].name;
  out->index = -1;
}

static aq_status get_module(const aq_model* self, uint32_t i, aq_module* out, aq_error* err) {
  (void)self;
  if (i >= kModules) return failed(err, AQ_INVALID_ARGUMENT, "there is no such module");
  aq_module module = {0};
  module.struct_size = sizeof module;
  module.flags = i + 1 < kModules ? AQ_MODULE_QUANTIZE : 0;
  module.key.layer = kTensors[i].layer;
  module.key.role = kTensors[i].role;
  module.key.expert = AQ_EXPERT_NONE;
  module.name = kModuleNames[i];
  locate((int)i, &module.weight);
  module.out_features = kTensors[i].out;
  module.in_features = kTensors[i].in;
  module.stage = kTensors[i].stage;
  module.input_group = kTensors[i].input_group;
  return filled(aq_copy_out(out, &module, sizeof module), err);
}

static aq_status find_ref(const aq_model* self, const aq_tensor_key* key, aq_tensor_ref* out,
                          aq_error* err) {
  (void)self, (void)err;
  for (int i = 0; i < kTensorCount; i++)
    if (kTensors[i].layer == key->layer && kTensors[i].role == key->role &&
        key->expert == AQ_EXPERT_NONE && key->part == AQ_PART_WEIGHT) {
      locate(i, out);
      return AQ_OK;
    }
  return AQ_NOT_FOUND;
}

static aq_status find_key(const aq_model* self, const char* name, aq_tensor_key* out,
                          aq_error* err) {
  (void)self, (void)err;
  for (int i = 0; i < kTensorCount; i++)
    if (strcmp(kTensors[i].name, name) == 0) {
      out->layer = kTensors[i].layer;
      out->role = kTensors[i].role;
      out->expert = AQ_EXPERT_NONE;
      out->part = AQ_PART_WEIGHT;
      return AQ_OK;
    }
  return AQ_NOT_FOUND;
}

static aq_status route(const aq_model* self, const aq_route_args* args, aq_error* err) {
  (void)self, (void)args;
  return failed(err, AQ_UNSUPPORTED, "no layer has a router");
}

static const aq_model kModel = {
    .struct_size = sizeof(aq_model),
    .destroy = destroy,
    .get_extension = get_extension,
    .describe = describe,
    .describe_attention = describe_attention,
    .describe_ffn = describe_ffn,
    .module_count = module_count,
    .get_module = get_module,
    .find_ref = find_ref,
    .find_key = find_key,
    .route = route,
};

static uint32_t count(const aq_model_factory* self) {
  (void)self;
  return 1;
}

static const aq_descriptor* descriptor(const aq_model_factory* self, uint32_t i) {
  static const aq_descriptor kDescriptor = {.struct_size = sizeof kDescriptor,
                                            .id = "old_model",
                                            .name = "Old",
                                            .version = "1.0.0",
                                            .vendor = "tests",
                                            .description = "a dense model of one layer"};
  (void)self, (void)i;
  return &kDescriptor;
}

static int32_t probe(const aq_model_factory* self, uint32_t i, const char* config, char* why,
                     size_t why_size) {
  (void)self, (void)i;
  if (strstr(config, "\"old_model\"") == NULL) return 0;
  snprintf(why, why_size, "model_type is old_model");
  return 100;
}

static const aq_model* create(const aq_model_factory* self, uint32_t i, const aq_host* host,
                              const aq_checkpoint* checkpoint, aq_error* err) {
  (void)self, (void)i, (void)host;
  if (strstr(checkpoint->config_json, "\"old_model\"") != NULL) return &kModel;
  failed(err, AQ_UNSUPPORTED, "config.json is not of an old_model");
  return NULL;
}

static const aq_model_factory kFactory = {.struct_size = sizeof(aq_model_factory),
                                          .count = count,
                                          .descriptor = descriptor,
                                          .probe = probe,
                                          .create = create};

static const void* get_factory(const char* id) {
  return strcmp(id, AQ_MODEL_FACTORY_ID) == 0 ? &kFactory : NULL;
}

AQ_EXPORT extern const aq_entry aq_plugin_entry;
const aq_entry aq_plugin_entry = {.struct_size = sizeof(aq_entry),
                                  .abi_major = AQ_ABI_MAJOR,
                                  .abi_minor = AQ_ABI_MINOR,
                                  .get_factory = get_factory};
