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

/// Writes a checkpoint's safetensors files into a folder, group by group. All tensors are announced
/// beforehand, so that headers and offsets are known, bytes go straight to their place, and nothing
/// is held in memory. A group's files (its shards) stand under their names once the group is
/// finished, whole and flushed; until then each is called NAME.part. Those of a group that an
/// earlier run has finished are left as they are.
class Writer {
 public:
  /// Lays out the tensors of each group in the order given, in shards of at most `max_shard_bytes`
  /// of tensor data (a larger tensor has a shard to itself). All shards are numbered in one row,
  /// model-00001-of-00003.safetensors; a single one is model.safetensors. Writes nothing.
  /// Error if a name appears twice.
  Writer(const std::filesystem::path& directory, std::vector<std::vector<TensorInfo>> groups,
         int64_t max_shard_bytes);
  ~Writer();

  /// The names of a group's files.
  std::vector<std::string> files(std::size_t group) const;
  /// The bytes of the tensors of all groups, and of one.
  int64_t bytes() const;
  int64_t bytes(std::size_t group) const;

  /// Creates the files of one group at their full size. Error if the disk has not room.
  void begin(std::size_t group);
  /// The whole content of one tensor of a group that was begun; any thread, each tensor once.
  void write(std::string_view name, std::span<const std::byte> bytes);
  /// The same part after part, as `read` gives the bytes from `begin` on: little memory is taken.
  using Read = std::function<void(int64_t begin, std::span<std::byte> out)>;
  void copy(std::string_view name, const Read& read);
  /// Error if a tensor of the group was never written.
  void check_written(std::size_t group) const;
  /// check_written(), flushes the group's files and gives them their names. Any thread.
  void finish(std::size_t group);

  /// Once every group is finished: model.safetensors.index.json, if there are several files.
  void write_index() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace aqhost
