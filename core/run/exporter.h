#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/observer.h"
#include "base/work_folder.h"
#include "checkpoint/source.h"
#include "checkpoint/writer.h"
#include "plan/plan.h"

namespace aqhost {

/// Error, naming the file, if one of the side files that an export carries over cannot be: a link
/// to nothing, or what a download leaves in place of a file. Exporter checks it as well.
void check_side_files(const Source& original);

/// The files, relative to `target`, that an earlier export wrote there and that this one replaces;
/// none where the folder is free. Error if `overwrite` is set and there is something else:
/// --overwrite is for earlier exports alone, never for an original or a folder of another kind.
std::set<std::string> replaced_files(const Source& original, const std::filesystem::path& target,
                                     bool overwrite);

/// Writes the quantized checkpoint to `work`'s result: packed modules under their own names, every
/// other tensor as it was, config.json with quantization_config, and the tokenizer and other side
/// files. Its tensors are written unit by unit: unit l is layer l, the last unit holds all that
/// lies outside the layers. Each unit has shards of its own, which stand there whole once it is
/// finished.
class Exporter {
 public:
  /// Lays out the files. Writes nothing. Throws an Error if a side file cannot be carried over; the
  /// observer is warned of folders that cannot be read.
  Exporter(const Source& original, const Model& model, const Plan& plan, WorkFolder& work,
           int64_t max_shard_bytes, RunObserver& observer);

  /// The number of units: the layers, and one for the rest.
  int32_t units() const { return units_; }
  /// The names of a unit's shards in the result.
  std::vector<std::string> shards(int32_t unit) const;
  /// The names of all files of the export, sorted but for the report, which is the last.
  std::vector<std::string> files() const;
  /// The bytes of the tensors of one unit, and of all.
  int64_t bytes(int32_t unit) const { return writer_->bytes(static_cast<std::size_t>(unit)); }
  int64_t bytes() const { return writer_->bytes(); }

  /// Writes all that is known before the run, config.json and side files: what cannot be read or
  /// written later is an Error now.
  void write_files() const;

  /// Creates the shards of a unit; before it the unit's modules are not written.
  void begin(int32_t unit) {
    work_.check_in_place();
    writer_->begin(static_cast<std::size_t>(unit));
  }
  /// One planned module, each once; any thread.
  void write(const PlannedModule& planned, const QuantizedMatrix& matrix, float input_global);
  /// Copies the unit's other tensors and flushes it; once all of its modules are written. Any
  /// thread.
  void finish(int32_t unit);

  /// Once every unit is finished: puts the export in place, with `report` and the list of all files
  /// in it as quantization_report.json. A failure keeps the work folder and names it. The observer
  /// is warned of files that the run did not write: they stay in the work folder.
  void commit(Json report);

 private:
  /// A tensor that stays as it is.
  struct Copied {
    std::string stored, written;  // its names
  };
  /// A module that stays dense but whose tensor is split, as other parts of it are quantized.
  struct Split {
    const Module* module;
    DType dtype;
  };
  struct Unit {
    std::vector<Copied> copied;
    std::vector<Split> splits;
  };

  int32_t unit_of(int32_t layer) const { return layer >= 0 ? layer : units_ - 1; }
  void plan_tensors(const Model& model, std::vector<std::vector<TensorInfo>>& tensors);
  void write_config() const;
  void copy_side_files() const;

  const Source& original_;
  const Plan& plan_;
  WorkFolder& work_;
  RunObserver& observer_;
  const std::vector<std::string> side_files_;
  const int32_t units_;
  std::vector<Unit> unit_tensors_;
  /// Linear modules of the model class that stay dense, besides those of the plan.
  std::vector<std::string> other_linears_;
  bool own_head_;  // lm_head is not the embedding
  std::unique_ptr<Writer> writer_;
};

}  // namespace aqhost
