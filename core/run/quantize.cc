#include "run/quantize.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/memory.h"
#include "base/work_folder.h"
#include "export/container.h"
#include "forward/compute_type.h"
#include "plugin/tensor_check.h"
#include "run/calibrated_run.h"
#include "run/exporter.h"
#include "run/phase_timer.h"
#include "run/round_to_nearest.h"
#include "run/run_difference.h"
#include "run/run_identity.h"
#include "run/store.h"
#include "run/unit_sink.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

/// Throws an Error if the disk has not enough room for the units that are not finished, and for the
/// hidden states behind three layers: of two of them while those of a third are written.
void check_room(const WorkFolder& work, const Exporter& exporter, int32_t finished,
                int64_t states_bytes) {
  int64_t needed = 3 * states_bytes;
  for (int32_t u = finished; u < exporter.units(); u++) needed += exporter.bytes(u);
  const int64_t free = free_bytes(work.path());
  const int64_t available = free + (finished == 0 ? work.clearable_bytes() : 0);
  if (free >= 0 && needed > available)
    fail("{}: No space left on device: the export takes {:.3f} GB{}, {:.3f} GB are free",
         work.path().string(), static_cast<double>(needed) / 1e9,
         states_bytes > 0 ? " with the hidden states of the run" : "",
         static_cast<double>(available) / 1e9);
}

void check_calibration(const Plan& plan, const QuantizeOptions& options) {
  if (plan.needs_calibration() && !options.calibration)
    fail("GPTQ needs calibration text: give --calib FILE, or --algorithm rtn to round to nearest");
  if (plan.observes_inputs() && !options.calibration)
    fail(
        "the recipe rounds activations under one scale for all tokens, which is measured on "
        "calibration text: give --calib FILE");
}

/// "1 finished layer", "3 finished layers". The last of all units is no layer.
std::string layers_text(const Exporter& exporter, int32_t units) {
  const int32_t layers = std::min(units, exporter.units() - 1);
  return fmt::format("{} finished layer{}", layers, layers == 1 ? "" : "s");
}

/// Keeps the finished layers of a run that has failed. Returns a sentence that says so, as "3
/// finished layers are kept in OUT.work; ...", or "" if there are none. Throws an Error if the work
/// folder is not in place, which is then the reason of the failure.
std::string keep_finished(RunStore& store, const Exporter& exporter, WorkFolder& work) {
  try {
    store.wait();
  } catch (const std::exception&) {  // the error that has ended the run is the one to report
  }
  const int32_t finished = store.finished_units();
  if (finished > 0) work.keep();
  work.check_in_place();
  if (finished == 0) return {};
  return fmt::format("{} kept in {}; run the same command again to go on after {}",
                     layers_text(exporter, finished) + (finished == 1 ? " is" : " are"),
                     work.path().string(), finished == 1 ? "it" : "them");
}

/// Throws an Error if a value of the model is not finite. The weights of planned modules are left
/// out, because they are checked when they are read to be solved.
void check_unplanned_values(const Source& original, const Model& model, const Plan& plan) {
  std::set<std::string> solved;
  for (const PlannedModule& m : plan.modules)
    if (m.format) solved.insert(m.module->weight.name);
  check_finite(original, model, solved);
}

/// The part of quantize() that uses the work folder. The functions are called in the order in which
/// they stand here.
class QuantizeRun {
 public:
  /// Opens the work folder, or creates it.
  QuantizeRun(const Reader& original, const Model& model, const Plan& plan,
              const QuantizeOptions& options, at::ScalarType dtype, PhaseTimer& timer,
              RunObserver& observer)
      : original_(original),
        model_(model),
        plan_(plan),
        options_(options),
        dtype_(dtype),
        timer_(timer),
        observer_(observer),
        work_(options.target, replaced_files(original, options.target, options.overwrite)),
        exporter_(original, model, plan, work_, options.max_shard_bytes, observer),
        store_(work_, exporter_, observer) {}

  /// Does the whole run. An Error, and RunInterrupted, say which finished layers are kept.
  RunReport run() {
    try {
      Calibration calibration = read_calibration_windows();
      const CalibratedRunOptions run_options = options_for(calibration.windows);
      Finished finished = begin(calibration.windows, run_options);
      const int32_t resumed_units = finished.units;
      UnitReport units = solve_units(calibration.windows, run_options, std::move(finished));
      RunReport report = make_report(std::move(units), resumed_units, std::move(calibration));
      exporter_.commit(to_json(report));
      return report;
    } catch (const Interrupted&) {
      const std::string kept = keep_finished(store_, exporter_, work_);
      if (kept.empty()) throw;
      throw RunInterrupted("interrupted: " + kept);
    } catch (const Error& e) {
      const std::string kept = keep_finished(store_, exporter_, work_);
      if (kept.empty()) throw;
      fail("{}. {}", e.what(), kept);
    } catch (const std::exception&) {
      if (const std::string kept = keep_finished(store_, exporter_, work_); !kept.empty())
        observer_.warn(kept);
      throw;
    }
  }

 private:
  /// The windows are undefined if the plan does not run the model.
  Calibration read_calibration_windows() {
    timer_.begin("tokenize");
    Calibration calibration;
    if (plan_.runs_model())
      calibration = read_calibration(original_, model_, *options_.calibration,
                                     at::TensorOptions(options_.device).dtype(dtype_), observer_);
    timer_.begin("prepare");
    return calibration;
  }

  /// Throws an Error if the memory limit is less than the run needs.
  CalibratedRunOptions options_for(const at::Tensor& windows) const {
    const uint64_t seed = options_.calibration ? options_.calibration->seed : 0;
    CalibratedRunOptions run_options{dtype_, options_.device, seed};
    if (windows.defined()) {
      const MemoryLimit limit{options_.memory_limit, options_.limit_is_standard};
      run_options.chunk_bytes = chunk_bytes(original_, model_, plan_, windows, run_options, limit);
    }
    return run_options;
  }

  /// Finds out what an earlier try has finished, makes the last checks, and writes the files that
  /// are known before the first layer is solved.
  Finished begin(const at::Tensor& windows, const CalibratedRunOptions& run_options) {
    const int32_t with_states = layers_with_states(model_, plan_);
    Json identity =
        run_identity(original_, model_, plan_, options_.plugins, options_.max_shard_bytes, windows,
                     run_options.dtype, run_options.device, run_options.seed);
    Finished finished = store_.open(run_manifest(std::move(identity), options_.calibration),
                                    options_.resume, with_states);
    work_.check_replaceable(exporter_.files());
    check_room(work_, exporter_, finished.units,
               with_states > 0 ? 8 * windows.numel() * model_.desc().hidden_size : 0);
    store_.begin();
    exporter_.write_files();
    timer_.end();
    if (finished.units > 0) {
      timer_.resume(finished.seconds);
      observer_.inform(fmt::format("going on after {} in {}",
                                   layers_text(exporter_, finished.units), work_.path().string()));
    }
    return finished;
  }

  /// Solves and stores all units that are not finished. Returns the report on all units.
  UnitReport solve_units(const at::Tensor& windows, const CalibratedRunOptions& run_options,
                         Finished finished) {
    BoundaryStates states = std::move(finished.states);
    UnitSink sink(exporter_, store_, timer_, plan_, observer_, std::move(finished));
    if (windows.defined())
      run_calibrated(original_, model_, plan_, windows, run_options, std::move(states), sink,
                     timer_);
    else
      round_to_nearest(original_, plan_, exporter_.units(), sink, timer_);
    timer_.begin("write");
    store_.wait();
    timer_.end();
    return sink.take_report();
  }

  RunReport make_report(UnitReport units, int32_t resumed_units, Calibration calibration) const {
    RunReport report;
    report.units = std::move(units);
    report.resumed_layers = std::min(resumed_units, model_.desc().n_layers);
    report.model_type = model_.id();
    report.device = options_.device.str();
    report.weights = plan_.quantized_weights();
    report.bits_per_weight = plan_.bits_per_weight();
    report.seconds = timer_.seconds();
    report.bytes = exporter_.bytes();
    report.peak_memory_bytes = peak_memory_bytes();
    if (!options_.device.is_cpu()) report.peak_device_bytes = peak_device_bytes(options_.device);
    if (calibration.windows.defined()) report.calibration = std::move(calibration.report);
    return report;
  }

  const Reader& original_;
  const Model& model_;
  const Plan& plan_;
  const QuantizeOptions& options_;
  const at::ScalarType dtype_;
  PhaseTimer& timer_;
  RunObserver& observer_;
  WorkFolder work_;
  Exporter exporter_;
  RunStore store_;
};

}  // namespace

Reader open_original(const std::filesystem::path& directory) {
  Reader reader(directory);
  if (is_quantized(reader.config()))
    fail(
        "{}: is quantized already (config.json has a quantization_config), give the folder of its "
        "original",
        reader.directory());
  return reader;
}

RunReport quantize(const Reader& original, const Model& model, const Plan& plan,
                   const QuantizeOptions& options) {
  RunObserver silent;
  RunObserver& observer = options.observer == nullptr ? silent : *options.observer;
  const at::ScalarType dtype = compute_type(options.dtype, original, options.device);
  check_calibration(plan, options);
  check_unplanned_values(original, model, plan);
  PhaseTimer timer;
  timer.begin("prepare");
  WorkFolder::undo_commit(options.target);
  return QuantizeRun(original, model, plan, options, dtype, timer, observer).run();
}

}  // namespace aqhost
