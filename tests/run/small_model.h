#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "checkpoint/reader.h"
#include "plan/plan.h"
#include "plugin/registry.h"
#include "run/quantize.h"
#include "temp_folder.h"

namespace aqhost {

/// The plugins of this build.
const Registry& registry();

/// An OLMoE of random bfloat16 weights, small enough for a run to take a moment, with the tokenizer
/// and some side files.
struct SmallModel {
  int64_t layers = 2, hidden = 64, inner = 48, experts = 4, top_k = 2, heads = 4;
  bool biases = false;        // of q, k, v and o
  bool head = true;           // an lm_head of its own
  std::string config = "{}";  // keys of config.json that are to be others

  void write(const std::filesystem::path& folder) const;
};

/// A SmallModel on disk, opened.
class OpenModel {
 public:
  explicit OpenModel(const SmallModel& sizes = {});

  const Reader& reader() const { return *reader_; }
  const Model& model() const { return *model_; }
  std::filesystem::path operator/(const std::string& name) const { return folder_ / name; }

  Plan plan(const std::string& recipe, const std::string& algorithm = "",
            Layout layout = Layout::kCompressedTensors) const;
  /// Quantizes to folder / name, with 8 windows of 64 tokens where `plan` needs calibration.
  Json quantize(const Plan& plan, const std::string& name, uint64_t seed = 0) const;

 private:
  TempFolder folder_;  // model/, and what runs write
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<const Model> model_;
};

}  // namespace aqhost
