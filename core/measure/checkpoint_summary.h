#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// A part of all that quantization lost, as its report has it.
struct LossShare {
  int32_t layer = 0, expert = -1;  // -1: of the whole layer
  double share = 0;                // 0 to 1
};

/// What a checkpoint takes, and where an export lost most.
struct CheckpointSummary {
  double bits_per_weight = 0;  // of the quantized modules with scales; of a plain one, of all
  int64_t bytes = 0;           // of all tensors as stored
  std::vector<LossShare> layers, experts;  // largest first; empty where no report tells
};

/// Sums up a checkpoint, `source` being open_source() of its folder, with its
/// quantization_report.json, if it has one. Error, with file and module, where that cannot be read.
CheckpointSummary summarize(const Source& source, const Model& model);

}  // namespace aqhost
