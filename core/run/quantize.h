#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/observer.h"
#include "checkpoint/source.h"
#include "plan/loadable.h"
#include "plan/plan.h"
#include "plugin/model.h"
#include "plugin/registry.h"
#include "report/report.h"
#include "run/calibration.h"
#include "run/comm.h"
#include "run/model_card.h"
#include "run/resume.h"
#include "run/store.h"

namespace aqhost {

struct QuantizeOptions {
  std::optional<CalibrationOptions> calibration;  // used, and then required, if plan.runs_model()
  std::filesystem::path target;
  int64_t max_shard_bytes = int64_t{5} << 30;
  std::string dtype = "auto";  // the type in which layers compute, see compute_type()
  at::Device device = at::kCPU;
  int64_t memory_limit = 0;        // bytes for tensors on the device, approximately; 0: no limit
  bool limit_is_standard = false;  // the user gives no limit: it is the container's, or what a GPU
                                   // has room for, and need not be used up
  int64_t later_bytes = 0;         // of files that are made of the export in its folder afterwards
  CardOptions card;                // for README.md
  bool overwrite = false;
  Resume resume = Resume::kAuto;
  std::vector<PluginInfo> plugins;  // all that are loaded; see run_identity()
  RunObserver* observer = nullptr;  // null: nobody receives messages
  Comm* comm = nullptr;             // null: the process is alone
  // what the report says besides what the run finds out: the command and the recipe of `setup`, and
  // what the engines will do with the export
  RunSetup setup;
  std::vector<Loadable> engines;
};

/// Opens a checkpoint that is to be quantized, as its dense tensors if it is published quantized
/// (see open_source()). Throws an Error if it is an export of aqhost.
std::unique_ptr<Source> open_original(const std::filesystem::path& directory,
                                      const Registry& registry);

/// Quantizes `original` as planned and writes the export to options.target. Returns the report,
/// which the export contains as quantization_report.json (see report.h).
///
/// Each finished layer is flushed to the disk, in the target's work folder (see RunStore). A run
/// goes on after the layers that an earlier one has finished there; on the same machine, the result
/// is then byte for byte that of an uninterrupted run. Nothing of an earlier run is removed before
/// everything that can refuse the run is checked. If the run fails, the target is as it was before;
/// if a layer is finished, the work folder is kept, and the Error says so. After a signal,
/// throws RunInterrupted if a layer is finished, or else Interrupted.
///
/// If options.comm has several ranks, each calls this with the same arguments. They share the
/// calibration windows and the modules, and write one export. The same number of ranks gives the
/// same bytes; another number adds up the Hessians in another order. Before work, an Error names
/// what differs between two ranks. The result is that of rank 0; the other ranks' result has only
/// their own modules.
///
/// Memory: the hidden states, one layer (on a GPU two, because the next one is copied meanwhile),
/// and as many experts at the same time as the limit leaves room for, at least one; without a limit
/// 1.5 GiB of them (on GPUs an eighth of the memory for each rank, up to a quarter of it). Hidden
/// states for which the limit leaves no room are held elsewhere (see set_memory), and the observer
/// is told. Throws an Error if the limit is less than the rest needs.
RunReport quantize(const Source& original, const Model& model, const Plan& plan,
                   const QuantizeOptions& options);

}  // namespace aqhost
