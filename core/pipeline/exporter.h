#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "checkpoint/reader.h"
#include "checkpoint/writer.h"
#include "pipeline/plan.h"

namespace aqhost {

/// Writes the quantized checkpoint: packed modules under their own names, every other tensor as it
/// was, config.json with quantization_config, and the tokenizer and other side files. Everything
/// goes to a folder beside `target`, which becomes `target` in commit() and disappears otherwise.
/// With `overwrite` an earlier export or an empty folder is replaced, nothing else.
class Exporter {
 public:
  Exporter(const Reader& original, const Model& model, const Plan& plan,
           const std::filesystem::path& target, int64_t max_shard_bytes, bool overwrite);

  /// One planned module, each once; any thread.
  void write(const PlannedModule& planned, const QuantizedMatrix& matrix, float input_global);

  /// The tensors that stay, config.json, side files; `report` becomes quantization_report.json.
  /// Returns the bytes of all tensors.
  int64_t commit(const Json& report);

 private:
  void plan_tensors(const Model& model, const Plan& plan);
  void write_dense();
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
