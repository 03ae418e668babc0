#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/observer.h"
#include "base/work_folder.h"
#include "report/report.h"
#include "run/comm.h"
#include "run/exporter.h"
#include "run/states.h"
#include "run/unit_record.h"

namespace aqhost {

/// What an earlier try of a run has finished.
struct Finished {
  int32_t units = 0;  // the number of units, from the first on; also the number of the next unit
  UnitReport report;
  PhaseSeconds seconds;
  BoundaryStates states;  // behind the last of these units, on the CPU or in files
};

/// Makes a run resumable at every layer. The work folder contains:
///   manifest.json                 what identifies the run (see run_identity.h), the options that
///                                 it was given, and the files of export/
///   export/                       the shards of the finished units, see Exporter
///   progress/unit-00007.json      the record of a unit, written when its shards and states are
///                                 flushed to the disk: their sizes and SHA-256, the report on the
///                                 unit, and the seconds of the run so far
///   progress/states-00007.safetensors   the hidden states behind the unit, for the last two units
/// If a run has several ranks, each has its own hidden states (states-00007.rank-0001.safetensors),
/// and writes its part of the unit's shards. It says so in states-00007.rank-0001.json, for which
/// rank 0 waits before it completes the shards and writes the record; so they all need one file
/// system. If a rank cannot write its files, it tells the others at once, because they may be
/// waiting for these files. A unit without a record is not finished. A run that is killed loses the
/// unit in progress; on a GPU also units whose states were not written (see should_store_states()).
class RunStore {
 public:
  /// `device` is the one on which the run computes.
  RunStore(WorkFolder& work, Exporter& exporter, const Comm& comm, at::Device device,
           RunObserver& observer);
  /// Waits until nothing is being written any more.
  ~RunStore();
  RunStore(const RunStore&) = delete;
  RunStore& operator=(const RunStore&) = delete;

  /// Finds out which units the run of `manifest` (see run_manifest()) has finished; changes
  /// nothing. `needs_states` is the number of units, from the first on, whose states a later unit
  /// needs; the shards of all others are enough. Every finished shard is read and its SHA-256 is
  /// compared. The observer is warned of a damaged unit; that unit and those behind it are done
  /// again. So are all units, and the observer is told, if none has stored states yet. Throws an
  /// Error if the work folder holds another run (see run_differences()), if a unit must be done
  /// again whose input is gone, or as `resume` says. The states are loaded to `place`.
  Finished open(const Json& manifest, Resume resume, int32_t needs_states,
                const StatesPlace& place);
  /// What rank 0 has found, for another rank: it has its own states, and neither a report nor the
  /// seconds. `units` is the number of finished units.
  Finished open_of_rank_0(int32_t units, int32_t needs_states, const StatesPlace& place);
  /// Sets the number that tells this start of the run from others, on all ranks alike. A rank of an
  /// earlier start may still write its files, which are then not taken for those of this one.
  void set_start(int64_t start) { start_ = start; }
  /// Begins the run, or goes on with it, as open() has found. If open() has found no finished unit,
  /// this removes what an earlier run has left; so it comes after everything that may refuse the
  /// run.
  void begin();

  /// Whether the hidden states behind a unit that begins should be written. On a CPU, they always
  /// should. In a run on a GPU, writing them slows down the layers after it, so they are written
  /// only if nothing else is being written and enough time has passed: since the last states were
  /// written, at least half a minute and at least ten times the time that writing them took; before
  /// the first states, half a minute since the run began.
  bool should_store_states() const;
  /// Finishes a unit whose modules are all written, by this rank and the others. Another thread
  /// flushes its files and writes its record; if that fails, the next call throws the exception.
  /// The states may be changed when this has returned. `store_states` is what
  /// should_store_states() of rank 0 said when the unit began.
  void finish(int32_t unit, const UnitReport& report, const PhaseSeconds& seconds,
              const BoundaryStates& states, bool store_states);
  /// Hands over what the other ranks have reported on units that were given to finish(). To be
  /// called after wait(), by rank 0.
  UnitReport take_others_report() { return std::move(others_report_); }
  /// Waits until all units given to finish() have their records on the disk.
  void wait();

  /// The number of units whose records are on the disk.
  int32_t finished_units() const { return finished_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Record;
  struct Part;
  bool is_writing() const;
  Part wait_for_part(int32_t unit, int rank) const;
  void finish_part(int32_t unit, const UnitReport& report, Json states);
  void finish_unit(int32_t unit, UnitReport report, const PhaseSeconds& seconds, Json states);
  std::optional<Record> read_record(int32_t unit) const;
  bool shards_are_whole(int32_t unit, const Record& record) const;
  bool states_are_whole(const Record& record) const;
  void remove_states_before(int32_t unit) const;

  WorkFolder& work_;
  Exporter& exporter_;
  const Comm& comm_;
  const at::Device device_;
  RunObserver& observer_;
  Json manifest_;
  int32_t needs_states_ = 0;
  int64_t start_ = 0;
  std::vector<int32_t> stored_states_;  // units, in order; belongs to the writing thread
  UnitReport others_report_;            // likewise
  std::atomic<int32_t> finished_ = 0;
  std::future<void> writing_;
  std::atomic<Clock::time_point> next_states_;  // see should_store_states()
};

}  // namespace aqhost
