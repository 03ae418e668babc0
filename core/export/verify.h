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
  std::map<std::string, int64_t> formats;  // id -> number of modules
  std::vector<std::string> extra_tensors;  // unknown to the model; their content is not checked
  std::string extra_note;                  // Model::extra_note()
};

/// Reads an exported checkpoint back and checks it: files and headers, quantization_config against
/// what is stored, the type and shape of every packed tensor, every code and scale (finite, in
/// range), every dense value of the model (finite), and the names and shapes of the model adapter.
/// An Error names the first thing that is wrong. `type` is the id of the model plugin to use, or
/// "auto".
VerifySummary verify(const std::filesystem::path& directory, const Registry& registry,
                     const std::string& type = "auto");

}  // namespace aqhost
