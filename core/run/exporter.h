#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/staged_directory.h"
#include "checkpoint/reader.h"
#include "checkpoint/writer.h"
#include "plan/plan.h"

namespace aqhost {

/// Error, naming the file, if one of the side files that an export carries over cannot be: a link
/// to nothing, or what a download leaves in place of a file. Exporter checks it as well.
void check_side_files(const Reader& original);

/// Writes the quantized checkpoint: packed modules under their own names, every other tensor as it
/// was, config.json with quantization_config, and the tokenizer and other side files. Everything
/// goes to a StagedDirectory, which becomes `target` in commit(). With `overwrite` the files of an
/// earlier export are replaced; what the user has added to it stays.
class Exporter {
 public:
  /// Takes the disk space, and writes all that is known before the run: what cannot be read or
  /// written later is an Error now. Warns of what killed runs left.
  Exporter(const Reader& original, const Model& model, const Plan& plan,
           const std::filesystem::path& target, int64_t max_shard_bytes, bool overwrite);

  /// The tensors that stay as they are; to be called once, before the run as well.
  void write_dense();

  /// One planned module, each once; any thread.
  void write(const PlannedModule& planned, const QuantizedMatrix& matrix, float input_global);

  /// Once every tensor is written: flushes them. From here on a failure keeps the staging folder
  /// and names it. Returns the bytes of all tensors.
  int64_t finish();
  /// After finish(): puts the export in place, with `report` and the list of all files in it as
  /// quantization_report.json.
  void commit(Json report);

 private:
  void plan_tensors(const Model& model, const Plan& plan);
  Json gptq_json(const Plan& plan) const;
  void write_config(const Plan& plan);
  void copy_side_files();

  /// A module that stays dense but whose tensor is split, as other parts of it are quantized.
  struct Split {
    const Module* module;
    DType dtype;
  };

  const Reader& original_;
  const Plan& plan_;
  const std::filesystem::path target_;
  const std::vector<std::string> side_files_;  // relative to the original's folder
  StagedDirectory staged_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::pair<std::string, std::string>> copied_;  // as stored, as written
  std::vector<Split> splits_;
  /// Linear modules of the model class that stay dense, besides those of the plan.
  std::vector<std::string> other_linears_;
  bool own_head_;  // lm_head is not the embedding
  std::unique_ptr<Writer> writer_;
};

}  // namespace aqhost
