#include "run/quantize.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "base/counted.h"
#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/memory.h"
#include "base/work_folder.h"
#include "export/container.h"
#include "export/decoded_checkpoint.h"
#include "forward/compute_type.h"
#include "plugin/tensor_check.h"
#include "run/calibrated_run.h"
#include "run/exporter.h"
#include "run/model_card.h"
#include "run/phase_timer.h"
#include "run/round_to_nearest.h"
#include "run/run_difference.h"
#include "run/run_identity.h"
#include "run/store.h"
#include "run/unit_sink.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

/// Throws an Error if the disk has not enough room for the whole export, and for the hidden states
/// behind three layers: of two of them while those of a third are written; and `in_use_bytes` for
/// the hidden states in use, if they will be in files that have not been made yet. What an earlier
/// try has left is part of that, or is replaced. There must also be room for the export and
/// `later_bytes` when the hidden states, and the export that is replaced, are gone.
void check_room(const WorkFolder& work, const Exporter& exporter, int64_t states_bytes,
                int64_t in_use_bytes, int64_t later_bytes) {
  const int64_t free = free_bytes(work.path());
  if (free < 0) return;
  const auto require = [&work](int64_t needed, int64_t available, const std::string& with) {
    if (needed > available)
      fail("{}: No space left on device: the export takes {:.3f} GB{}, {:.3f} GB are free",
           work.path().string(), static_cast<double>(needed) / 1e9, with,
           static_cast<double>(available) / 1e9);
  };
  const int64_t available = free + work.clearable_bytes();
  require(exporter.bytes() + 3 * states_bytes + in_use_bytes, available,
          states_bytes > 0 ? " with the hidden states of the run" : "");
  require(exporter.bytes() + later_bytes, available + work.replaced_bytes(),
          " with the file that is made of it");
}

void check_calibration(const Plan& plan, const QuantizeOptions& options) {
  if (plan.needs_calibration() && !options.calibration)
    fail(
        "GPTQ needs calibration text: give --calib FILE, a text or JSON lines with \"text\" or "
        "\"messages\" (best of the kind that the model will see; otherwise, for example, wikitext "
        "or "
        "ultrachat_200k of the Hugging Face Hub as JSON lines), or --algorithm rtn to round to "
        "nearest");
  if (plan.observes_inputs() && !options.calibration)
    fail(
        "the recipe rounds activations under one scale for all tokens, which is measured on "
        "calibration text: give --calib FILE");
}

/// "1 finished layer", "3 finished layers". The last of all units is no layer.
std::string layers_text(const Exporter& exporter, int32_t units) {
  const int32_t layers = std::min(units, exporter.units() - 1);
  return counted(layers, "finished layer");
}

/// Keeps the finished layers of a run that has failed. Returns a sentence that says so, as "3
/// finished layers are kept in OUT.work; ...", or "" if there are none. Throws an Error if the work
/// folder is not in place, which is then the reason of the failure. Only rank 0 says what is kept;
/// the others do not look at the folder, which rank 0 may have removed by then.
std::string keep_finished(RunStore& store, const Exporter& exporter, const Comm& comm,
                          WorkFolder& work) {
  try {
    store.wait();
  } catch (const std::exception&) {  // the error that has ended the run is the one to report
  }
  if (comm.rank() != 0) return {};
  const int32_t finished = store.finished_units();
  if (finished > 0) work.keep();
  work.check_in_place();
  if (finished == 0) return {};
  return kept_text(layers_text(exporter, finished), finished, work.path().string());
}

/// Throws an Error if a value of the model is not finite. The weights of planned modules are left
/// out, because they are checked when they are read to be solved.
void check_unplanned_values(const Source& original, const Model& model, const Plan& plan) {
  std::set<std::string> solved;
  for (const PlannedModule& m : plan.modules)
    if (m.format) solved.insert(m.module->weight.name);
  check_finite(original, model, solved);
}

/// The name of a file in progress/ by which the others recognise the folder of rank 0.
std::string mark_name(int64_t number) {
  return fmt::format("{}{}.json", WorkFolder::kSharedMark, number);
}

/// Whether a file exists, or does after a few seconds: a file system that several machines share
/// may show it late.
bool appears(const std::filesystem::path& file) {
  const auto latest = std::chrono::steady_clock::now() + std::chrono::seconds(3);
  std::error_code ignored;
  while (!std::filesystem::exists(file, ignored)) {
    if (std::chrono::steady_clock::now() > latest) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return true;
}

/// Opens the work folder on another rank than 0. `targets` are the values of --save of all ranks.
/// Throws an Error if it is not the folder of rank 0, but one that has the same name on a disk of
/// this machine, where an earlier run may have left it.
std::unique_ptr<WorkFolder> open_shared(const std::vector<std::string>& targets, std::size_t rank,
                                        int64_t number) {
  std::string problem;
  try {
    auto work = std::make_unique<WorkFolder>(WorkFolder::OfOtherProcess(), targets[rank]);
    if (appears(work->progress() / mark_name(number))) return work;
    problem = fmt::format(
        "{}: this process sees another folder of this name than rank 0 does; the processes of a "
        "run need one folder on a file system that they share",
        work->path().string());
  } catch (const Error& e) {
    problem = e.what();
  }
  if (targets[rank] != targets[0])
    require_no_differences(rank, {fmt::format("--save: {} on rank 0, {} on rank {}", targets[0],
                                              targets[rank], rank)});
  throw Error(problem);
}

/// Rank 0 creates the work folder, or opens that of an earlier run; then the others open it. They
/// may have other names for it.
std::unique_ptr<WorkFolder> open_work_folder(const Source& original, const QuantizeOptions& options,
                                             Comm& comm) {
  const std::vector<std::string> targets = comm.all_gather(options.target.string());
  at::Tensor number = at::tensor({int64_t{std::random_device()()}}, at::kLong);
  std::unique_ptr<WorkFolder> work;
  std::filesystem::path mark;
  if (comm.rank() == 0) {
    WorkFolder::undo_commit(options.target);
    work = std::make_unique<WorkFolder>(
        options.target, replaced_files(original, options.target, options.overwrite));
    if (comm.size() > 1) {
      mark = work->progress() / mark_name(number.item<int64_t>());
      write_file(mark, "");
    }
  }
  comm.broadcast(number, 0);
  std::error_code ignored;
  try {
    if (comm.rank() != 0)
      work = open_shared(targets, static_cast<std::size_t>(comm.rank()), number.item<int64_t>());
    comm.barrier();
  } catch (const Error&) {
    if (!mark.empty()) std::filesystem::remove(mark, ignored);
    throw;
  }
  if (!mark.empty()) std::filesystem::remove(mark, ignored);
  return work;
}

EngineReport report_on(const Loadable& engine) {
  return {engine.engine,  engine.version,    engine.gguf,  engine.run,   engine.refused.empty(),
          engine.loads(), engine.problems(), engine.notes, engine.remedy};
}

/// The part of quantize() that uses the work folder. The functions are called in the order in which
/// they stand here.
class QuantizeRun {
 public:
  /// Opens the work folder, or creates it.
  QuantizeRun(const Source& original, const Model& model, const Plan& plan,
              const QuantizeOptions& options, Comm& comm, at::ScalarType dtype, PhaseTimer& timer,
              RunObserver& observer)
      : original_(original),
        model_(model),
        plan_(plan),
        options_(options),
        comm_(comm),
        dtype_(dtype),
        timer_(timer),
        observer_(observer),
        work_folder_(open_work_folder(original, options, comm)),
        work_(*work_folder_),
        exporter_(original, model, plan, work_, options.max_shard_bytes, observer),
        store_(work_, exporter_, comm, options.device, observer) {}

  /// Does the whole run. An Error, and RunInterrupted, say which finished layers are kept.
  RunReport run() {
    const auto keep = [this] { return keep_finished(store_, exporter_, comm_, work_); };
    try {
      Calibration calibration = read_calibration_windows();
      const Json manifest = manifest_for(calibration.windows);
      // before all other calls of the comm, which ranks of different runs might make differently
      require_same_run(manifest, comm_);
      const CalibratedRunOptions run_options = options_for(calibration.windows);
      Finished finished = begin(manifest, calibration.windows, run_options.states);
      const int32_t resumed_units = finished.units;
      UnitReport units = solve_units(calibration.windows, run_options, std::move(finished));
      RunReport report =
          make_report(std::move(units), resumed_units, std::move(calibration), manifest);
      if (comm_.rank() == 0)
        exporter_.commit(report, model_card(original_, model_, plan_, report, options_.card));
      comm_.barrier();
      return report;
    } catch (const Interrupted&) {
      end_early(comm_, keep);
    } catch (const Error&) {
      end_early(comm_, keep);
    } catch (const std::exception&) {
      if (const std::string kept = keep(); !kept.empty()) observer_.warn(kept);
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

  uint64_t seed() const { return options_.calibration ? options_.calibration->seed : 0; }

  /// What the work folder records of this run.
  Json manifest_for(const at::Tensor& windows) const {
    Json identity =
        run_identity(original_, model_, plan_, options_.plugins, options_.max_shard_bytes, windows,
                     dtype_, options_.device, seed());
    if (comm_.size() > 1) identity["ranks"] = comm_.size();
    return run_manifest(std::move(identity), options_.calibration);
  }

  /// Throws an Error if the memory limit is less than the run needs.
  CalibratedRunOptions options_for(const at::Tensor& windows) const {
    CalibratedRunOptions run_options{dtype_, options_.device, seed()};
    run_options.comm = &comm_;
    if (windows.defined()) {
      const MemoryLimit limit{options_.memory_limit, options_.limit_is_standard, work_.progress(),
                              available_memory_bytes()};
      set_memory(run_options, original_, model_, plan_, windows, limit);
      say_where_states_are(run_options.states);
    }
    return run_options;
  }

  /// Informs the user if the hidden states are not in the memory of the device.
  void say_where_states_are(const StatesPlace& place) const {
    if (place.device == options_.device && !place.in_files()) return;
    observer_.inform(fmt::format(
        "the hidden states do not fit in the {}; they are held in {}, which may slow the run down",
        options_.limit_is_standard && !options_.device.is_cpu() ? "GPU's memory" : "memory limit",
        place.in_files() ? "a file in " + work_.progress().string() : "the host's memory"));
  }

  /// Finds out what an earlier try has finished, makes the last checks, and writes the files that
  /// are known before the first layer is solved.
  Finished begin(const Json& manifest, const at::Tensor& windows, const StatesPlace& place) {
    const int32_t with_states = layers_with_states(model_, plan_);
    int64_t x_bytes = 0, states_bytes = 0;  // of all windows; with those of the original model
    if (with_states > 0) {
      const int64_t window_bytes = 4 * windows.size(1) * model_.desc().hidden_size;
      x_bytes = windows.size(0) * window_bytes;
      states_bytes =
          x_bytes + original_windows(plan_, windows.size(0), windows.size(1)) * window_bytes;
    }
    Finished finished;
    at::Tensor in_files = at::tensor({place.in_files() ? 1 : 0}, at::kLong);
    comm_.maximum(in_files);  // on any rank
    if (comm_.rank() == 0) {
      finished = store_.open(manifest, options_.resume, with_states, place);
      work_.check_replaceable(exporter_.files());
      int64_t in_use = 0;
      if (in_files.item<int64_t>() > 0) {
        if (!finished.states.x.defined()) in_use = states_bytes;
        if (keeps_input_of_layers(plan_)) in_use += x_bytes;
      }
      check_room(work_, exporter_, states_bytes, in_use, options_.later_bytes);
      store_.begin();
      exporter_.write_files();
    }
    at::Tensor start =
        at::tensor({int64_t{finished.units}, int64_t{std::random_device()()}}, at::kLong);
    comm_.broadcast(start, 0);
    store_.set_start(start[1].item<int64_t>());
    if (comm_.rank() != 0)
      finished =
          store_.open_of_rank_0(static_cast<int32_t>(start[0].item<int64_t>()), with_states, place);
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
    UnitSink sink(exporter_, store_, comm_, timer_, plan_, observer_, std::move(finished));
    if (windows.defined())
      run_calibrated(original_, model_, plan_, windows, run_options, std::move(states), sink,
                     timer_);
    else
      round_to_nearest(original_, plan_, exporter_.units(), sink, timer_);
    timer_.begin("write");
    store_.wait();
    timer_.end();
    UnitReport report = sink.take_report();
    report.append(store_.take_others_report());
    return report;
  }

  /// What each rank says about itself, by rank. Stations of all layers are added up.
  std::vector<RankReport> gather_rank_reports() {
    RankReport own;
    own.peak_memory_bytes = peak_memory_bytes();
    own.peak_device_bytes = timer_.peak_device_bytes();
    std::map<std::string, RankReport::Traffic> stations;
    for (const StationTraffic& t : comm_.traffic()) {
      const std::string name = t.station.substr(t.station.rfind(' ') + 1);  // of "layer 5: reduce"
      RankReport::Traffic& sum = stations.try_emplace(name, name).first->second;
      sum.bytes += t.bytes;
      sum.seconds += t.seconds;
    }
    for (const auto& [name, traffic] : stations) own.traffic.push_back(traffic);
    std::vector<RankReport> ranks;
    for (const std::string& text : comm_.all_gather(to_text(to_json(own)))) {
      const Json json = Json::parse(text);
      ranks.push_back(parse_rank_report(Field(json, "the report of a rank")));
    }
    return ranks;
  }

  RunReport make_report(UnitReport units, int32_t resumed_units, Calibration calibration,
                        Json identity) {
    RunReport report;
    report.setup = options_.setup;
    report.setup.model = original_.directory();
    report.setup.original_bytes = original_.stored_size().bytes;
    identity.erase("plan");  // the report has its modules
    report.setup.identity = std::move(identity);
    for (const Loadable& engine : options_.engines) report.engines.push_back(report_on(engine));
    report.units = std::move(units);
    report.resumed_layers = std::min(resumed_units, model_.desc().n_layers);
    report.model_type = model_.id();
    report.device = options_.device.str();
    report.weights = plan_.quantized_weights();
    report.bits_per_weight = plan_.bits_per_weight();
    report.seconds = timer_.seconds();
    report.memory = timer_.memory();
    report.device_memory = timer_.device_memory();
    report.bytes = exporter_.bytes();
    const std::vector<RankReport> ranks = gather_rank_reports();
    for (const RankReport& rank : ranks) {
      report.peak_memory_bytes = std::max(report.peak_memory_bytes, rank.peak_memory_bytes);
      if (rank.peak_device_bytes)
        report.peak_device_bytes =
            std::max(report.peak_device_bytes.value_or(0), *rank.peak_device_bytes);
    }
    if (ranks.size() > 1) report.ranks = ranks;
    if (calibration.windows.defined()) report.calibration = std::move(calibration.report);
    return report;
  }

  const Source& original_;
  const Model& model_;
  const Plan& plan_;
  const QuantizeOptions& options_;
  Comm& comm_;
  const at::ScalarType dtype_;
  PhaseTimer& timer_;
  RunObserver& observer_;
  std::unique_ptr<WorkFolder> work_folder_;
  WorkFolder& work_;
  Exporter exporter_;
  RunStore store_;
};

}  // namespace

std::unique_ptr<Source> open_original(const std::filesystem::path& directory,
                                      const Registry& registry) {
  std::unique_ptr<Source> source = open_source(directory, registry);
  if (is_quantized(source->config()) && std::filesystem::exists(directory / kReportFile))
    fail("{}: is quantized already, by aqhost (it has a {}), give the folder of its original",
         source->directory(), kReportFile);
  return source;
}

RunReport quantize(const Source& original, const Model& model, const Plan& plan,
                   const QuantizeOptions& options) {
  RunObserver silent;
  RunObserver& observer = options.observer == nullptr ? silent : *options.observer;
  const std::unique_ptr<Comm> alone = Comm::alone();
  Comm& comm = options.comm == nullptr ? *alone : *options.comm;
  const at::ScalarType dtype = compute_type(options.dtype, original, options.device);
  check_calibration(plan, options);
  check_unplanned_values(original, model, plan);
  PhaseTimer timer(options.device);
  timer.begin("prepare");
  return QuantizeRun(original, model, plan, options, comm, dtype, timer, observer).run();
}

}  // namespace aqhost
