#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/observer.h"
#include "checkpoint/reader.h"
#include "plan/plan.h"
#include "plugin/model.h"
#include "plugin/registry.h"
#include "run/calibration.h"
#include "run/report.h"
#include "run/store.h"

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
  Resume resume = Resume::kAuto;
  std::vector<PluginInfo> plugins;  // all that are loaded; see run_identity()
  RunObserver* observer = nullptr;  // null: nothing is told
};

/// Thrown when a signal stops a run; what() says what is kept, and how to go on.
class RunInterrupted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Opens a checkpoint that is to be quantized. Error if it is quantized already.
Reader open_original(const std::filesystem::path& directory);

/// Quantizes `original` as planned and writes it to options.target; the loop over layers. Returns
/// the report that lies beside the checkpoint as quantization_report.json (see report.h).
///
/// Each finished layer is safe on disk in the target's work folder (see RunStore), and a run goes
/// on with what an earlier one has finished there: the result is the same to the byte on the same
/// machine. On any failure the target is as it was before; the work folder is kept if a layer is
/// finished, and the Error says so. RunInterrupted after a signal.
///
/// Memory: the hidden states, one layer (two on a GPU, where the next one is copied meanwhile), and
/// experts taken together as the limit leaves room for, at least one; without a limit 1.5 GiB of
/// them. Error if the limit is less than hidden states and layers need.
RunReport quantize(const Reader& original, const Model& model, const Plan& plan,
                   const QuantizeOptions& options);

}  // namespace aqhost
