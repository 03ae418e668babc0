#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <cstdint>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/observer.h"
#include "base/work_folder.h"
#include "run/exporter.h"
#include "run/report.h"

namespace aqhost {

/// What a run does with what an earlier run to the same target has left.
enum class Resume : uint8_t {
  kAuto,      // goes on with it if there is any
  kNever,     // removes it and begins anew
  kRequired,  // goes on with it, and fails if there is none
};

/// The hidden states [windows, tokens, hidden] f32 behind a layer: of the quantized model, and of
/// the original on the first windows. Undefined where a run has none.
struct BoundaryStates {
  at::Tensor x, original;
};

/// What an earlier try of a run has finished.
struct Finished {
  int32_t units = 0;  // the first ones: the next to do
  ReportRows rows;
  PhaseSeconds seconds;
  BoundaryStates states;  // behind the last of them, on the CPU
};

/// Makes a run resumable at every layer. In the work folder:
///   manifest.json                 what identifies the run (see run_identity.h), the options that
///                                 it was given, and the files of export/
///   export/                       the shards of the units that are finished, see Exporter
///   progress/unit-00007.json      written once a unit's shards and states are safe on disk: their
///                                 sizes and SHA-256, the unit's rows of the report, and the
///                                 seconds of the run so far
///   progress/states-00007.safetensors   the hidden states behind the unit; of the last two
/// What is not named by a unit-*.json is not finished. A run that dies loses the unit that it was
/// at, and on a GPU those that were finished faster than their states could be written.
class RunStore {
 public:
  RunStore(WorkFolder& work, Exporter& exporter, RunObserver& observer);
  /// Waits for what is being written.
  ~RunStore();
  RunStore(const RunStore&) = delete;
  RunStore& operator=(const RunStore&) = delete;

  /// Finds out which units the run of `manifest` (see run_manifest()) has finished; changes
  /// nothing. `needs_states` is the number of units, from the first on, whose states a later unit
  /// needs; the shards of all others are enough. Every finished shard is read and its SHA-256 is
  /// compared. The observer is warned of a damaged unit; that unit and those behind it are done
  /// again. Throws an Error if the work folder holds another run (see run_differences()), if a unit
  /// must be done again whose input is gone, or as `resume` says.
  Finished open(const Json& manifest, Resume resume, int32_t needs_states);
  /// Begins the run, or goes on with it, as open() has found. If open() has found no finished unit,
  /// this removes what an earlier run has left; so it comes after everything that may refuse the
  /// run.
  void begin();

  /// Takes a unit whose modules are all written. Its files are flushed beside the work on the next
  /// unit; an Error of that comes with the next call. The states may be changed after this returns.
  void finish(int32_t unit, const ReportRows& rows, const PhaseSeconds& seconds,
              const BoundaryStates& states);
  /// Waits until all units given to finish() are safe on disk.
  void wait();

  /// The units that are safe on disk.
  int32_t finished_units() const { return finished_; }

 private:
  struct Record;
  std::optional<Record> read_record(int32_t unit) const;
  bool shards_are_whole(int32_t unit, const Record& record) const;
  bool states_are_whole(const Record& record) const;
  void refuse_other_run() const;
  void remove_states_before(int32_t unit) const;

  WorkFolder& work_;
  Exporter& exporter_;
  RunObserver& observer_;
  Json manifest_;
  int32_t needs_states_ = 0;
  std::vector<int32_t> stored_states_;  // units, in order
  std::atomic<int32_t> finished_ = 0;
  std::future<void> writing_;
};

}  // namespace aqhost
