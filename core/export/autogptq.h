#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "export/container.h"
#include "export/targets.h"

namespace aqhost {

/// The container of AutoGPTQ, version 1, as GPTQModel, vLLM and transformers read it. A module
/// [out, in] of b-bit symmetric integers in groups along the input becomes
///   qweight  i32 [in * b / 32, out]      codes q + 2^(b-1), a bit stream down each column
///   qzeros   i32 [groups, out * b / 32]  2^(b-1) - 1 in each field: the zero point minus 1
///   scales   f16 [groups, out]
///   g_idx    i32 [in]                    the group of each input feature
/// It can store only symmetric integers of 2, 3, 4 or 8 bits with float16 scales, and only sizes
/// that are multiples of 32.
const Container& autogptq();

/// One linear module as config.json describes it; bits 0 means that it stays dense.
struct GptqModule {
  std::string name;
  int32_t bits = 0, group_size = -1;
};

/// The "quantization_config" of config.json, which is also written as quantize_config.json. The
/// settings of most modules are at the top. Those of others are under "dynamic", by patterns ("+:"
/// overrides settings, "-:" leaves modules out) that are matched from the start of a name. The
/// experts of a layer share a pattern if their settings are equal.
Json gptq_config(const std::vector<GptqModule>& modules);

/// A "quantization_config" that was read back.
class GptqConfig {
 public:
  /// Throws an Error that names `where` if the config is not understood.
  GptqConfig(const Json& config, const std::string& where);

  /// The bits and group size of a module; nullopt if the module is left out.
  std::optional<GptqModule> find(const std::string& name) const;

 private:
  struct Rule {
    StartPattern pattern;
    std::optional<GptqModule> settings;  // nullopt: left out
  };

  GptqModule settings_;
  std::vector<Rule> rules_;
};

}  // namespace aqhost
