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

/// One entry of a file: its bytes lie at [offset, offset + size) of it.
struct StoredTensor : TensorInfo {
  int64_t offset = 0, size = 0;
};

/// A tensor with its content.
struct LoadedTensor : TensorInfo {
  std::vector<std::byte> bytes;
};

/// A safetensors file, wholly checked when opened: 8-byte length (at most 100 MB and within the
/// file), JSON object, known dtype, shape of non-negative sizes whose product does not overflow,
/// shape x size = range, ranges that neither overlap nor leave gaps nor pass the end, no name
/// twice. Error names file and tensor, what came and what was expected. Any thread.
/// Format: https://github.com/huggingface/safetensors#format
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  int64_t size() const { return file_.size(); }
  /// SHA-256 of the header, which tells how the tensors lie in the file.
  const std::string& header_sha256() const { return header_sha256_; }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // sorted by name
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// out.size() bytes of one of its tensors from byte `begin` on; Error names the file, the tensor
  /// and the offset if they cannot be read.
  void read(const StoredTensor& tensor, int64_t begin, std::span<std::byte> out) const;
  LoadedTensor load(const StoredTensor& tensor) const;
  /// See InputFile.
  void check_unchanged() const { file_.check_unchanged(); }

 private:
  InputFile file_;
  std::string header_sha256_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// The checks above on the beginning of a file of `file_size` bytes, which has at least the header
/// (what the fuzzer calls); `where` names the file in messages.
struct SafetensorsHeader {
  std::vector<StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
};
SafetensorsHeader parse_safetensors(std::span<const std::byte> start, int64_t file_size,
                                    const std::string& where);

}  // namespace aqhost
