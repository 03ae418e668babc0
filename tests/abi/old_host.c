/* A host of as few lines as load a plugin, compiled from the headers of one version: test_abi.py
 * meets hosts and plugins of different versions with it.
 *
 *   old_host PLUGIN.so [CONFIG.json]
 *
 * prints what the plugin offers and describes; a refusal goes to stderr, and the status is 1. */
#include <aq/model.h>
#include <aq/quantizer.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static int refused(const char* what, const aq_error* err) {
  fprintf(stderr, "%s: %s (status %d)\n", what, err->message, (int)err->code);
  return 1;
}

static void AQ_CALL no_log(const aq_host* host, int32_t severity, const char* message) {
  (void)host, (void)severity, (void)message;
}
static const void* AQ_CALL no_extension(const aq_host* host, const char* id) {
  (void)host, (void)id;
  return NULL;
}
static aq_status AQ_CALL no_tensor(const aq_checkpoint* self, const char* name,
                                   aq_tensor_meta* out) {
  (void)self, (void)name, (void)out;
  return AQ_NOT_FOUND;
}

static const aq_host kHost = {sizeof(aq_host), AQ_ABI_MINOR, NULL, "old_host", "0",
                              no_log,          no_extension};

static int try_format(const aq_quantizer_factory* factory) {
  aq_error err = {0};
  const aq_quantizer* format = factory->create(factory, 0, &kHost, "{}", &err);
  if (format == NULL) return refused("create", &err);
  aq_format_desc desc = {0};
  desc.struct_size = sizeof desc;
  const aq_status status = format->describe(format, &desc, &err);
  if (status != AQ_OK) return refused("describe", &err);
  aq_packed_tensor packed = {0};
  packed.struct_size = sizeof packed;
  if (format->get_packed(format, 64, 256, 0, &packed, &err) != AQ_OK)
    return refused("get_packed", &err);
  printf("format %s: %d bits, first %s\n", factory->descriptor(factory, 0)->id,
         (int)desc.element_bits, packed.suffix);
  format->destroy(format);
  return 0;
}

static int try_model(const aq_model_factory* factory, const char* config) {
  aq_error err = {0};
  char why[64] = "";
  const int32_t score = factory->probe(factory, 0, config, why, sizeof why);
  const aq_checkpoint checkpoint = {sizeof checkpoint, 0, NULL, config, no_tensor};
  const aq_model* model = factory->create(factory, 0, &kHost, &checkpoint, &err);
  if (model == NULL) return refused("create", &err);
  aq_model_desc desc = {0};
  aq_module module = {0};
  desc.struct_size = sizeof desc;
  module.struct_size = sizeof module;
  if (model->describe(model, &desc, &err) != AQ_OK) return refused("describe", &err);
  if (model->get_module(model, 0, &module, &err) != AQ_OK) return refused("get_module", &err);
  printf("model %s: score %d, %d layers, first %s\n", factory->descriptor(factory, 0)->id,
         (int)score, (int)desc.n_layers, module.name);
  model->destroy(model);
  return 0;
}

static char* read_text(const char* path) {
  static char text[65536];
  FILE* file = fopen(path, "rb");
  if (file == NULL) exit(2);
  text[fread(text, 1, sizeof text - 1, file)] = '\0';
  fclose(file);
  return text;
}

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  const aq_entry* entry =
      library == NULL ? NULL : (const aq_entry*)dlsym(library, "aq_plugin_entry");
  if (entry == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  aq_error err = {0};
  if (entry->abi_major != AQ_ABI_MAJOR) {
    fprintf(stderr, "it is built for plugin ABI %d\n", entry->abi_major);
    return 1;
  }
  if (AQ_HAS(entry, init) && entry->init(&kHost, argv[1], &err) != AQ_OK)
    return refused("init", &err);
  const void* formats = entry->get_factory(AQ_QUANTIZER_FACTORY_ID);
  const void* models = entry->get_factory(AQ_MODEL_FACTORY_ID);
  int status = formats == NULL && models == NULL;
  if (formats != NULL) status |= try_format((const aq_quantizer_factory*)formats);
  if (models != NULL && argc > 2)
    status |= try_model((const aq_model_factory*)models, read_text(argv[2]));
  if (AQ_HAS(entry, deinit)) entry->deinit();
  return status;
}
