#pragma once

#include <cstdint>
#include <filesystem>
#include <utility>
#include <vector>

#include "checkpoint/writer.h"

namespace aqhost {

/// Writes a checkpoint whose tensors are all of one group.
class WholeWriter : public Writer {
 public:
  WholeWriter(const std::filesystem::path& directory, std::vector<TensorInfo> tensors,
              int64_t max_shard_bytes)
      : Writer(directory, {std::move(tensors)}, max_shard_bytes) {
    begin(0);
  }

  int64_t finish() {
    Writer::finish(0);
    write_index();
    return bytes();
  }
};

}  // namespace aqhost
