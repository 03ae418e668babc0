/* aq/ext/gguf.h - for formats whose blocks are those of a type of ggml, the library of llama.cpp.
 *
 * The first packed tensor of such a format is U8 [rows, bytes of a row]. Each row is a
 * sequence of blocks of this type, as ggml-common.h of llama.cpp lays them out. The host copies
 * them to GGUF files. It knows the sizes of the blocks, and refuses a number that it does not know.
 */
#ifndef AQ_EXT_GGUF_H
#define AQ_EXT_GGUF_H

#include "../abi.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_EXT_GGUF "aq.quantizer.gguf/1" /* aq_quantizer.get_extension() */

typedef struct aq_gguf_type {
  uint32_t struct_size;
  uint32_t number; /* of the type in ggml.h (enum ggml_type); Q4_K: 12 */
} aq_gguf_type;

#ifdef __cplusplus
}
#endif
#endif /* AQ_EXT_GGUF_H */
