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
#include "report/report.h"

namespace aqhost {

/// The name of the report (see report.h) in the folder of an export.
inline constexpr const char* kReportFile = "quantization_report.json";

/// The name of the model card (see model_card.h).
inline constexpr const char* kCardFile = "README.md";

/// Throws an Error that names the file if a side file that an export copies from the original
/// cannot be copied: a link to nothing, or what a failed download leaves in place of a file.
/// Exporter makes the same check.
void check_side_files(const Source& original);

/// The files, relative to `target`, that an earlier export wrote there and that this one replaces.
/// There are none if `overwrite` is not set, or if the folder is free. A model card that the user
/// has changed and a report.html that aqhost has not made are not among them. Throws an Error if
/// `overwrite` is set and the folder contains anything but an earlier export, since --overwrite
/// never replaces an original or a folder of another kind.
std::set<std::string> replaced_files(const Source& original, const std::filesystem::path& target,
                                     bool overwrite);

/// Writes the export to `work`.result(): the packed tensors of quantized modules, every other
/// tensor unchanged (but decoded and rounded to its type if the original stores it quantized),
/// config.json with quantization_config, and the tokenizer and other side files.
/// Tensors are written unit by unit: unit l is layer l, and the last unit has everything outside
/// the layers. Every shard belongs to one unit, and is complete when that unit is finished.
class Exporter {
 public:
  /// Lays out the files. Writes nothing. Throws an Error if a side file cannot be copied (see
  /// check_side_files()). The observer is warned of folders that cannot be read.
  Exporter(const Source& original, const Model& model, const Plan& plan, WorkFolder& work,
           int64_t max_shard_bytes, RunObserver& observer);

  /// The number of units: one for each layer, and one for everything outside the layers.
  int32_t units() const { return units_; }
  /// The names of a unit's shards in the result.
  std::vector<std::string> shards(int32_t unit) const;
  /// The names of all files of the export. They are sorted, except that the report is the last.
  std::vector<std::string> files() const;
  /// The number of tensor bytes of one unit, and of all units.
  int64_t bytes(int32_t unit) const { return writer_->bytes(static_cast<std::size_t>(unit)); }
  int64_t bytes() const { return writer_->bytes(); }

  /// Writes the files that do not depend on the run, config.json and the side files, so that a file
  /// that cannot be read or written is an Error before the first layer is solved.
  void write_files() const;

  /// Creates the shards of a unit. Must be called before the unit's modules are written.
  void begin(int32_t unit, bool others_join = false) {
    work_.check_in_place();
    writer_->begin(static_cast<std::size_t>(unit), others_join);
  }
  /// The same for a rank that writes to the shards which rank 0 has created.
  void join(int32_t unit) {
    work_.check_in_place();
    writer_->join(static_cast<std::size_t>(unit));
  }
  /// Flushes what this rank has written to such shards. Returns the names of the tensors.
  std::vector<std::string> leave(int32_t unit) {
    return writer_->leave(static_cast<std::size_t>(unit));
  }
  /// Takes note of the tensors that another rank has written.
  void note_written(const std::vector<std::string>& names) {
    for (const std::string& name : names) writer_->note_written(name);
  }
  /// Writes one planned module. Each module is written once. Thread-safe.
  void write(const PlannedModule& planned, const QuantizedMatrix& matrix, float input_global);
  /// Copies the unit's other tensors and flushes its shards. To be called when all of its modules
  /// are written. Thread-safe.
  void finish(int32_t unit);

  /// Puts the export in place, with `report` and the list of all files as quantization_report.json,
  /// with the page that shows it, report.html, and with `card` as README.md, unless that is empty
  /// or the target has a README.md of the user. To be called when every unit is finished. If it
  /// fails, the work folder is kept, and the Error names it. The observer is warned of files that
  /// the run did not write, which stay in the work folder.
  void commit(const RunReport& report, const std::string& card = "");

 private:
  /// A tensor that does not change.
  struct Copied {
    std::string stored, written;  // its names
  };
  /// A module that stays dense, and is a part of a tensor of which other parts are quantized.
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
  void copy(const Copied& tensor);
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
  bool own_head_;  // whether lm_head is another matrix than the embedding
  std::unique_ptr<Writer> writer_;
};

}  // namespace aqhost
