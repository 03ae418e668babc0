#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "base/json.h"
#include "checkpoint/reader.h"
#include "plan/plan.h"
#include "plugin/model.h"
#include "run/calibration.h"

namespace aqhost {

struct QuantizeOptions {
  std::optional<CalibrationOptions> calibration;  // needed, and used, if plan.runs_model()
  std::filesystem::path target;
  int64_t max_shard_bytes = int64_t{5} << 30;
  std::string dtype = "auto";  // that layers compute in, see compute_type()
  at::Device device = at::kCPU;
  int64_t memory_limit = 0;  // bytes of tensors on the device, as near as can be; 0: see quantize()
  bool limit_is_standard = false;  // the container's: nothing asks to use it up
  bool overwrite = false;
  bool quiet = false;  // no progress
};

/// Opens a checkpoint that is to be quantized. Error if it is quantized already.
Reader open_original(const std::filesystem::path& directory);

/// Quantizes `original` as planned and writes it to options.target; the loop over layers. Returns
/// the report that lies beside the checkpoint as quantization_report.json (see report.h). On any
/// failure the target is as it was before; one that comes when the work is done (Exporter::finish)
/// keeps the result beside it and says where. Memory: the hidden states, one layer (two on a GPU,
/// where the next one is copied meanwhile), and experts taken together as the limit leaves room
/// for, at least one; without a limit 1.5 GiB of them. Error if the limit is less than hidden
/// states and layers need.
Json quantize(const Reader& original, const Model& model, const Plan& plan,
              const QuantizeOptions& options);

}  // namespace aqhost
