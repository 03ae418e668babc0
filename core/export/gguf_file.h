#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "export/gguf_blocks.h"

namespace aqhost {

/// The key-values of a GGUF file, in the order in which they are added. Format:
/// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
class GgufMetadata {
 public:
  void text(std::string_view key, std::string_view value);
  // these throw an Error if the value does not fit
  void u16(std::string_view key, int64_t value);
  void u32(std::string_view key, int64_t value);
  void i32(std::string_view key, int64_t value);
  void f32(std::string_view key, float value);
  void flag(std::string_view key, bool value);
  void texts(std::string_view key, const std::vector<std::string>& values);
  void integers(std::string_view key, const std::vector<int32_t>& values);
  void numbers(std::string_view key, const std::vector<float>& values);
  void append(const GgufMetadata& other);

  uint64_t count() const { return count_; }
  const std::string& bytes() const { return bytes_; }

 private:
  void key(std::string_view key, uint32_t type);
  void array(std::string_view key, uint32_t type, std::size_t size);

  uint64_t count_ = 0;
  std::string bytes_;
};

/// The entry of a tensor. The shape is that of the checkpoint, outermost dimension first.
struct GgufTensorInfo {
  std::string name;
  GgufType type;
  std::vector<int64_t> shape;

  /// The number of bytes of the content.
  int64_t bytes() const;
};

/// Writes a GGUF file of version 3. The content is written to PATH.part, which has its full size
/// from the beginning, and which finish() flushes and renames. Without finish(), the destructor
/// removes it.
class GgufWriter {
 public:
  /// Writes everything but the content of the tensors. Throws an Error if the file exists already
  /// and `overwrite` is not set, if it cannot be created, if the disk has not enough room, or if a
  /// name is longer than llama.cpp's limit.
  GgufWriter(std::filesystem::path path, const GgufMetadata& metadata,
             std::vector<GgufTensorInfo> tensors, bool overwrite);
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  /// Writes the next bytes of a tensor.
  void write(std::size_t tensor, std::span<const std::byte> bytes);
  /// To be called when every tensor is written to its end: flush(), then publish().
  void finish();
  /// Brings the content to the disk. Throws an Error if a tensor lacks bytes.
  void flush();
  /// Gives the file its name.
  void publish();

  int64_t file_bytes() const { return file_bytes_; }

 private:
  struct Place {
    int64_t next, end;  // in the file
  };

  void create(bool overwrite);
  void write_at(int64_t offset, std::span<const std::byte> bytes) const;

  std::filesystem::path path_, part_;
  std::vector<GgufTensorInfo> tensors_;
  std::vector<Place> places_;
  int64_t file_bytes_ = 0;
  int fd_ = -1;
};

/// Writes a model to one GGUF file, or to several as llama.cpp reads them: NAME-00001-of-00003.gguf
/// and so on, of which the first has the key-values.
class GgufFiles {
 public:
  /// A file has at most `max_bytes`, unless it has one tensor alone; 0: all are in one file, which
  /// is `path`. Throws the Errors of GgufWriter(), and one if there are more files than llama.cpp
  /// counts.
  GgufFiles(const std::filesystem::path& path, const GgufMetadata& metadata,
            std::vector<GgufTensorInfo> tensors, int64_t max_bytes, bool overwrite);

  /// Writes the next bytes of a tensor.
  void write(std::size_t tensor, std::span<const std::byte> bytes);
  /// To be called when every tensor is written to its end. Either all files appear, or none.
  void finish();

  const std::vector<std::filesystem::path>& paths() const { return paths_; }
  int64_t bytes() const;

 private:
  std::vector<std::filesystem::path> paths_;
  std::vector<std::size_t> first_;  // tensor of each file
  std::vector<std::unique_ptr<GgufWriter>> writers_;
};

}  // namespace aqhost
