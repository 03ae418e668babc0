#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/dtype.h"
#include "plugin/format.h"

namespace aqhost {

/// The types of tensors in GGUF files that aqhost writes, by their numbers in ggml.h. Formats of
/// plugins may have types of other numbers, which info_of() knows.
enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kIq4Nl = 20,
  kBF16 = 30,
  kMxfp4 = 39,
  kNvfp4 = 40,
};

/// A row of a tensor is a sequence of blocks.
struct GgufTypeInfo {
  const char* name;        // "Q4_0"
  int64_t weights, bytes;  // of one block
  uint32_t file_type;      // "general.file_type" of a file that has mostly this type
};
/// Throws an Error if ggml has no type of this number that holds quantized weights.
const GgufTypeInfo& info_of(GgufType type);

/// The type of a dense tensor; nullopt unless it is F32, F16 or BF16.
std::optional<GgufType> gguf_type(DType dtype);

/// The type whose blocks hold the codes of `format` exactly, in rows of `cols` weights: the one
/// that its plugin names (aq/ext/gguf.h), or else one that follows from the description of the
/// format, and not from its id. Throws an Error that says why there is none, and what fits.
GgufType gguf_type(const Format& format, int64_t cols);

/// Whether a type has one more scale, the same for the whole matrix, in a tensor of its own.
inline bool has_matrix_scale(GgufType type) { return type == GgufType::kNvfp4; }

/// What was rounded because blocks store real numbers in float16.
struct GgufRounding {
  int64_t scales = 0, rounded_scales = 0;  // one for each block
  int64_t minima = 0, rounded_minima = 0;  // likewise, of Q4_1 and Q5_1
  double worst_scale = 0;                  // the largest change of a scale, relative to it
  double worst_minimum = 0;  // the largest change of a minimum, in steps between two codes

  void add(const GgufRounding& other);
};

/// The rows of a matrix as blocks of `type`, which is gguf_type(format, matrix.cols). Adds what was
/// rounded to `rounding`. Throws an Error if a scale exceeds the range of float16. If the plugin
/// has blocks of its own, they are what it packs.
///
/// Layouts: ggml-common.h of llama.cpp. In a block of 32 weights of 4 bits, byte j has weight j in
/// its low nibble and weight j + 16 in its high one. All scales are d:
///   Q4_0    f16 d; 16 bytes                       d (q - 8)
///   Q4_1    f16 d, f16 m; 16 bytes                d q + m
///   Q5_0    f16 d; u32 fifth bits; 16 bytes       d (q - 16)
///   Q5_1    f16 d, f16 m; u32 fifth bits; 16 bytes
///   Q8_0    f16 d; 32 signed bytes                d q
///   IQ4_NL  f16 d; 16 bytes                       d table[q]
///   MXFP4   E8M0 d; 16 bytes                      d E2M1(q)
///   NVFP4   4 UE4M3 d; 4 x 8 bytes                d E2M1(q), times the scale of the matrix
/// In NVFP4, each of the four groups of 16 has its own scale, and 8 bytes like the 16 above.
std::vector<std::byte> pack_blocks(GgufType type, const Format& format,
                                   const QuantizedMatrix& matrix, GgufRounding& rounding);

/// The scale of a matrix of NVFP4: 1 / the global scale, rounded to float32.
float matrix_scale(const QuantizedMatrix& matrix);

/// "int4 g128 with zero points"
std::string gguf_label(const Format& format);

}  // namespace aqhost
