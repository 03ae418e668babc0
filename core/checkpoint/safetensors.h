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

/// One entry of a file. Its bytes lie at [offset, offset + size) in the file.
struct StoredTensor : TensorInfo {
  int64_t offset = 0, size = 0;
};

/// A tensor with its content.
struct LoadedTensor : TensorInfo {
  std::vector<std::byte> bytes;
};

/// A safetensors file, which is checked completely when it is opened: the 8-byte length is at most
/// 100 MB and within the file; the header is a JSON object; types are known; sizes are not
/// negative, and their product does not overflow; shape x element size equals the range; ranges
/// neither overlap, nor leave gaps, nor pass the end; no name appears twice. An Error names the
/// file and the tensor, what was found and what was expected. Thread-safe.
/// Format: https://github.com/huggingface/safetensors#format
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  int64_t size() const { return file_.size(); }
  /// The SHA-256 of the header, which says how the tensors lie in the file.
  std::string header_sha256() const;
  /// SHA-256 of 256 pieces of 4 KiB, evenly spread over the file: tells other weights of the same
  /// layout apart without reading all of them.
  std::string sample_sha256() const;
  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // sorted by name
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Reads out.size() bytes of one of the file's tensors from byte `begin` on. An Error names the
  /// file, the tensor and the offset if they cannot be read.
  void read(const StoredTensor& tensor, int64_t begin, std::span<std::byte> out) const;
  /// See InputFile.
  void check_unchanged() const { file_.check_unchanged(); }

 private:
  InputFile file_;
  int64_t header_bytes_ = 0;  // with the length before it
  std::vector<StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// Does the checks above on the beginning of a file of `file_size` bytes; `start` contains at least
/// the header. The fuzzer calls this. `where` names the file in messages.
struct SafetensorsHeader {
  std::vector<StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
};
SafetensorsHeader parse_safetensors(std::span<const std::byte> start, int64_t file_size,
                                    const std::string& where);

}  // namespace aqhost
