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

/// Writes the safetensors files of a checkpoint into a folder, group by group. The constructor
/// receives all tensors, so that headers and offsets are known from the start, and bytes go
/// straight to their place without being held in memory. While a group is written, each of its
/// files (shards) is called NAME.part; finish() flushes the complete files and gives them their
/// final names. Files of groups that an earlier run has finished stay as they are.
class Writer {
 public:
  /// Lays out the tensors of each group in the given order, in shards with at most
  /// `max_shard_bytes` of tensor data (a larger tensor has a shard of its own). Shards are numbered
  /// across all groups, as in model-00001-of-00003.safetensors; a single shard is called
  /// model.safetensors. Writes nothing. Throws an Error if a name appears twice.
  Writer(const std::filesystem::path& directory, std::vector<std::vector<TensorInfo>> groups,
         int64_t max_shard_bytes);
  ~Writer();

  /// The names of the files of a group.
  std::vector<std::string> files(std::size_t group) const;
  /// The number of tensor bytes in all groups, and in one group.
  int64_t bytes() const;
  int64_t bytes(std::size_t group) const;

  /// Creates the files of one group at their full size. Throws an Error if the disk has not enough
  /// room. `flush` is needed if other processes will join(): a network file system may reserve room
  /// by writing zeros, which must not reach the file after their data.
  void begin(std::size_t group, bool flush = false);
  /// Opens the files of a group that another process has begun, so that both write to them.
  void join(std::size_t group);
  /// Writes the whole content of one tensor. Its group must have begun, and each tensor is written
  /// once. Thread-safe.
  void write(std::string_view name, std::span<const std::byte> bytes);
  /// Does the same in parts of `part_bytes`, to save memory: `read` returns the bytes from `begin`
  /// on. A signal does not stop it, unless `read` calls check_interrupt().
  using Read = std::function<void(int64_t begin, std::span<std::byte> out)>;
  void copy(std::string_view name, const Read& read, int64_t part_bytes = int64_t{1} << 22);
  /// Flushes and closes the files of a group that were opened by join(). Returns the names of the
  /// tensors that this object has written to them.
  std::vector<std::string> leave(std::size_t group);
  /// Takes note that another process has written this tensor.
  void note_written(const std::string& name);
  /// Throws an Error if a tensor of the group was not written.
  void check_written(std::size_t group) const;
  /// Calls check_written(), flushes the files of the group and gives them their final names.
  /// Thread-safe.
  void finish(std::size_t group);

  /// Must be called after every group is finished: writes model.safetensors.index.json if there are
  /// several files.
  void write_index() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace aqhost
