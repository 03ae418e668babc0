#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "checkpoint/source.h"

namespace aqhost {

/// One entry of a safetensors file and its bytes (borrowed from the file's mapping).
struct StoredTensor : TensorInfo {
  std::span<const std::byte> bytes;
};

/// A safetensors file, mapped and wholly checked when opened: 8-byte length (at most 100 MB and
/// within the file), JSON object, known dtype, shape of non-negative sizes whose product does not
/// overflow, shape x size = range, ranges that neither overlap nor leave gaps nor pass the end, no
/// name twice. Error names file and tensor, what came and what was expected.
/// Format: https://github.com/huggingface/safetensors#format
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // sorted by name
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  MappedFile file_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// The checks above on bytes in memory (what the fuzzer calls); `where` names them in messages.
/// The result borrows `bytes`.
struct SafetensorsHeader {
  std::vector<StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
};
SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, const std::string& where);

}  // namespace aqhost
