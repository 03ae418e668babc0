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
  std::set<std::string> solved;  // the values of these tensors are checked when they are read
  for (const PlannedModule& m : plan.modules)
    if (m.format) solved.insert(m.module->weight.name);
  check_finite(original, model, solved);
  PhaseTimer timer;
  timer.begin("prepare");
  WorkFolder::undo_commit(options.target);
  WorkFolder work(options.target, replaced_files(original, options.target, options.overwrite));
  Exporter exporter(original, model, plan, work, options.max_shard_bytes, observer);
  RunStore store(work, exporter, observer);
  try {
    timer.begin("tokenize");
    Calibration calibration;
    if (plan.runs_model())
      calibration = read_calibration(original, model, *options.calibration,
                                     at::TensorOptions(options.device).dtype(dtype), observer);
    const at::Tensor& windows = calibration.windows;
    timer.begin("prepare");
    const int32_t with_states = layers_with_states(model, plan);
    const uint64_t seed = options.calibration ? options.calibration->seed : 0;
    CalibratedRunOptions run{dtype, options.device, seed};
    if (windows.defined()) {
      const MemoryLimit limit{options.memory_limit, options.limit_is_standard};
      run.chunk_bytes = chunk_bytes(original, model, plan, windows, run, limit);
    }
    Finished finished = store.open(
        run_manifest(run_identity(original, model, plan, options.plugins, options.max_shard_bytes,
                                  windows, dtype, options.device, seed),
                     options.calibration),
        options.resume, with_states);
    work.check_replaceable(exporter.files());
    check_room(work, exporter, finished.units,
               with_states > 0 ? 8 * windows.numel() * model.desc().hidden_size : 0);
    store.begin();
    exporter.write_files();
    timer.end();
    if (finished.units > 0) timer.resume(finished.seconds);
    RunReport report;
    report.resumed_layers = std::min(finished.units, model.desc().n_layers);
    if (finished.units > 0)
      observer.inform(fmt::format("going on after {} in {}", layers_text(exporter, finished.units),
                                  work.path().string()));
    {
      BoundaryStates states = std::move(finished.states);
      UnitSink sink(exporter, store, timer, plan, observer, std::move(finished));
      if (windows.defined())
        run_calibrated(original, model, plan, windows, run, std::move(states), sink, timer);
      else
        round_to_nearest(original, plan, exporter.units(), sink, timer);
      timer.begin("write");
      store.wait();
      timer.end();
      report.units = sink.take_report();
    }
    report.model_type = model.id();
    report.device = options.device.str();
    report.weights = plan.quantized_weights();
    report.bits_per_weight = plan.bits_per_weight();
    report.seconds = timer.seconds();
    report.bytes = exporter.bytes();
    report.peak_memory_bytes = peak_memory_bytes();
    if (!options.device.is_cpu()) report.peak_device_bytes = peak_device_bytes(options.device);
    if (windows.defined()) report.calibration = std::move(calibration.report);
    exporter.commit(to_json(report));
    return report;
  } catch (const Interrupted&) {
    const std::string kept = keep_finished(store, exporter, work);
    if (kept.empty()) throw;
    throw RunInterrupted("interrupted: " + kept);
  } catch (const Error& e) {
    const std::string kept = keep_finished(store, exporter, work);
    if (kept.empty()) throw;
    fail("{}. {}", e.what(), kept);
  } catch (const std::exception&) {
    if (const std::string kept = keep_finished(store, exporter, work); !kept.empty())
      observer.warn(kept);
    throw;
  }
}

}  // namespace aqhost
