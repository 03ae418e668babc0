#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "plugin/registry.h"

namespace aqhost {

struct VerifySummary {
  std::string model_type;
  int64_t modules = 0;  // stored quantized
  int64_t tensors = 0;  // in the files
  int64_t weights = 0;  // in quantized modules
  double bits_per_weight = 0;
  std::map<std::string, int64_t> formats;  // id -> modules
  std::vector<std::string> extra_tensors;  // that the model does not know, not looked into
  std::string extra_note;                  // of Model
};

/// Reads an exported checkpoint back: files and headers, quantization_config against what is
/// stored, every packed tensor's type and shape, every code and scale (finite, in range), every
/// dense value of the model (finite), and the model adapter's names and shapes. Error names the
/// first thing that is wrong. `type` is the id of the model plugin to use, or "auto".
VerifySummary verify(const std::filesystem::path& directory, const Registry& registry,
                     const std::string& type = "auto");

}  // namespace aqhost
