/* aq/abi.h - the plugin ABI of aqhost, common part.  C11 and C++17.
 *
 * Rules that hold in every header of this ABI:
 *
 * 1. Memory.   Nothing changes hands. Arguments are borrowed until the call returns. What a plugin
 *              returns by pointer belongs to the object asked, until that object's destroy()
 *              (descriptors: until deinit()).
 * 2. Growth.   A struct that starts with `struct_size` only gains fields at its end; its allocator
 *              sets struct_size. Reserved and unknown fields are 0, and 0 always means "as before
 *              the field existed". A struct without struct_size is frozen.
 * 3. Out structs are the host's. A plugin fills them with aq_copy_out(), which fails with
 *              AQ_UNSUPPORTED when an older host has no room for a field that is not 0: a meaning
 *              is refused, never dropped.
 * 4. Errors.   Whatever can fail returns aq_status and fills *err, which the caller owns and which
 *              is never NULL. No exception crosses the boundary.
 * 5. Threads.  [scan]        any thread, quick, no side effects; used to list plugins
 *              [serial]      any thread; the host never runs two such calls on one object at once
 *              [concurrent]  any number of threads on one object at once
 * 6. Tensors.  DLTensor, compact row-major, on the CPU unless a comment says otherwise.
 * 7. Strings   are UTF-8 and end in NUL.
 */
#ifndef AQ_ABI_H
#define AQ_ABI_H

#include <dlpack/dlpack.h> /* Debian: libdlpack-dev */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define AQ_EXPORT __declspec(dllexport)
#define AQ_CALL __cdecl
#else
#define AQ_EXPORT __attribute__((visibility("default")))
#define AQ_CALL
#endif

#define AQ_ABI_MAJOR 1 /* changes: no plugin of another major is loaded */
#define AQ_ABI_MINOR 0 /* changes: fields, functions or extensions were added */

#ifdef __cplusplus
extern "C" {
#endif

/* --- errors --------------------------------------------------------------------------------- */

typedef int32_t aq_status;
enum {
  AQ_OK = 0,
  AQ_INVALID_ARGUMENT = 1, /* the caller broke the contract of this header */
  AQ_NOT_FOUND = 2,
  AQ_UNSUPPORTED = 3, /* a valid request that this side cannot serve */
  AQ_OUT_OF_MEMORY = 4,
  AQ_CANCELLED = 5,
  AQ_INTERNAL = 6, /* a bug, or an exception of unknown kind */
};

typedef struct aq_error {
  aq_status code;
  char message[508]; /* cut to fit, always ends in NUL */
} aq_error;

/* --- host ----------------------------------------------------------------------------------- */

enum { AQ_LOG_DEBUG = 0, AQ_LOG_INFO = 1, AQ_LOG_WARNING = 2, AQ_LOG_ERROR = 3 };

typedef struct aq_host aq_host;
struct aq_host {
  uint32_t struct_size;
  uint32_t abi_minor;
  void* host_data;
  const char* name;    /* "aqhost" */
  const char* version; /* "0.1.0" */

  /* [concurrent] */
  void(AQ_CALL* log)(const aq_host* host, int32_t severity, const char* message);

  /* A host service by id, NULL if there is none. Lives as long as the host.  [concurrent] */
  const void*(AQ_CALL* get_extension)(const aq_host* host, const char* id);
};

/* --- entry ---------------------------------------------------------------------------------- */

/* What `aqhost plugins` lists. */
typedef struct aq_descriptor {
  uint32_t struct_size;
  uint32_t reserved;
  const char* id;      /* unique and stable, used in configs: "olmoe", "mxfp4", "com.acme.nf3" */
  const char* name;    /* "OLMoE" */
  const char* version; /* of the plugin: "1.0.2" */
  const char* vendor;
  const char* description; /* one line */
} aq_descriptor;

/* The only symbol a plugin exports:
 *     AQ_EXPORT extern const aq_entry aq_plugin_entry;
 * It is data, so that the host reads the version before it runs any function of the plugin. */
typedef struct aq_entry {
  uint32_t struct_size;
  uint16_t abi_major, abi_minor; /* AQ_ABI_MAJOR, AQ_ABI_MINOR */

  /* Called once before, and once after, everything else. Either may be NULL.  [serial] */
  aq_status(AQ_CALL* init)(const aq_host* host, const char* plugin_path, aq_error* err);
  void(AQ_CALL* deinit)(void);

  /* A factory by id (AQ_MODEL_FACTORY_ID, AQ_QUANTIZER_FACTORY_ID), NULL if not offered. [scan] */
  const void*(AQ_CALL* get_factory)(const char* id);
} aq_entry;

/* --- helper --------------------------------------------------------------------------------- */

/* Copies `src` (a struct of this header's size) into the host's struct `dst`, keeping its
 * struct_size. See rule 3. */
static inline aq_status aq_copy_out(void* dst, const void* src, size_t src_size) {
  uint32_t dst_size;
  memcpy(&dst_size, dst, sizeof dst_size);
  for (size_t i = dst_size; i < src_size; i++)
    if (((const unsigned char*)src)[i] != 0) return AQ_UNSUPPORTED;
  const size_t n = dst_size < src_size ? dst_size : src_size;
  memcpy((char*)dst + sizeof dst_size, (const char*)src + sizeof dst_size, n - sizeof dst_size);
  return AQ_OK;
}

/* Whether `table` (any struct with struct_size) reaches up to and including `field`. */
#define AQ_HAS(table, field)                                                                      \
  ((table)->struct_size >= (size_t)((const char*)(&(table)->field + 1) - (const char*)(table)) && \
   (table)->field != 0)

#ifdef __cplusplus
}
#endif
#endif /* AQ_ABI_H */
