#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/source.h"
#include "export/targets.h"
#include "plugin/format.h"

namespace aqhost {

// The checkpoint format of AutoGPTQ, version 1, as GPTQModel, vLLM and transformers read it. A
// module [out, in] of b-bit symmetric integers in groups along the input becomes
//   qweight  i32 [in * b / 32, out]      codes q + 2^(b-1), a bit stream down each column
//   qzeros   i32 [groups, out * b / 32]  2^(b-1) - 1 in each field: the zero point less 1
//   scales   f16 [groups, out]
//   g_idx    i32 [in]                    the group of each input feature

/// Names, types and shapes of those tensors for a [rows = out, cols = in] matrix. Error if the
/// format or the shape has no place there: anything but symmetric integers of 2, 3, 4 or 8 bits
/// with float16 scales, sides that are no multiples of 32.
std::vector<TensorInfo> gptq_tensors(const Format& format, int64_t rows, int64_t cols);

/// `matrix` in them, and read back. Error if a code, zero point or group is not what the format
/// has.
std::vector<PackedTensor> gptq_pack(const Format& format, const QuantizedMatrix& matrix);
QuantizedMatrix gptq_unpack(const Format& format, int64_t rows, int64_t cols,
                            const std::vector<std::span<const std::byte>>& tensors);

/// One linear module as readers are told of it; bits 0: it stays dense.
struct GptqModule {
  std::string name;
  int32_t bits = 0, group_size = -1;
};

/// The "quantization_config" of config.json, also written as quantize_config.json: what most
/// modules have at the top, others under "dynamic" by patterns ("+:" overrides, "-:" leaves out)
/// that are matched from a name's start, by the experts of a layer together where they are alike.
Json gptq_config(const std::vector<GptqModule>& modules);

/// Such a config, read back.
class GptqConfig {
 public:
  /// Error (naming `where`) if it is not understood.
  GptqConfig(const Json& config, const std::string& where);

  /// Bits and group size of a module; nothing if it is left out.
  std::optional<GptqModule> find(const std::string& name) const;

 private:
  struct Rule {
    StartPattern pattern;
    std::optional<GptqModule> settings;  // nothing: left out
  };

  GptqModule settings_;
  std::vector<Rule> rules_;
};

}  // namespace aqhost
