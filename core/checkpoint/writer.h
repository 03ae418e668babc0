#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/source.h"

namespace aqhost {

/// Writes a checkpoint's safetensors files into a folder. All tensors are announced beforehand, so
/// headers and offsets are known, bytes go straight to their place, and nothing is held in memory.
class Writer {
 public:
  /// Lays out `tensors` in the order given: model.safetensors, or shards of at most
  /// `max_shard_bytes` of tensor data (a larger tensor has a shard to itself) named
  /// model-00001-of-00003.safetensors, with model.safetensors.index.json. Creates the files at
  /// their full size. Error if the disk has not room, or a name appears twice.
  Writer(const std::filesystem::path& directory, std::vector<TensorInfo> tensors,
         int64_t max_shard_bytes);
  ~Writer();

  /// The whole content of one announced tensor; any thread, each tensor once.
  void write(std::string_view name, std::span<const std::byte> bytes);
  /// The same part after part, as `read` gives the bytes from `begin` on: little memory is taken.
  using Read = std::function<void(int64_t begin, std::span<std::byte> out)>;
  void copy(std::string_view name, const Read& read);

  /// Error if a tensor was never written.
  void check_written() const;
  /// check_written(), flushes and closes. Returns the bytes of tensor data.
  int64_t finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace aqhost
