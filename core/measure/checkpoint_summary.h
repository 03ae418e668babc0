#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// A share of the total loss of quantization, from the export's report.
struct LossShare {
  int32_t layer = 0, expert = -1;  // expert -1: the whole layer
  double share = 0;                // 0 to 1
};

/// The size of a checkpoint, and where an export lost most.
struct CheckpointSummary {
  double bits_per_weight = 0;  // quantized modules with scales; in a plain checkpoint, all tensors
  int64_t bytes = 0;           // of all tensors, as stored
  std::vector<LossShare> layers, experts;  // largest first; empty without a report
};

/// Summarizes a checkpoint and its quantization_report.json, if there is one. `source` is what
/// open_source() returns for its folder. An unreadable report is an Error that names file and
/// module.
CheckpointSummary summarize(const Source& source, const Model& model);

}  // namespace aqhost
