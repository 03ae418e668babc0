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
#include "torch_doctest.h"

namespace aqhost {

/// A recipe that rounds everything to nearest.
inline const std::string kRtn = "{default: {group_size: 16, algorithm: rtn}}";

/// Windows [count, length] i64 of token ids below 2048.
at::Tensor some_windows(int64_t count, int64_t length);

/// The text as doctest shows it.
inline doctest::String shown(const std::string& text) { return text.c_str(); }

/// The plugins of this build.
const Registry& registry();

/// An OLMoE with random bfloat16 weights that is small enough for quick runs, with a tokenizer.
struct SmallModel {
  int64_t layers = 2, hidden = 64, inner = 48, experts = 4, top_k = 2, heads = 4;
  bool biases = false;        // of q, k, v and o
  bool head = true;           // whether it has an lm_head
  std::string config = "{}";  // keys that replace those of config.json

  void write(const std::filesystem::path& folder) const;
};

/// A SmallModel that was written to the disk and opened.
class OpenModel {
 public:
  explicit OpenModel(const SmallModel& sizes = {});

  const Reader& reader() const { return *reader_; }
  const Model& model() const { return *model_; }
  std::filesystem::path operator/(const std::string& name) const { return folder_ / name; }

  Plan plan(const std::string& recipe, const std::string& algorithm = "",
            const Container& container = compressed_tensors()) const;
  /// Quantizes to folder / name, with 8 windows of 64 tokens if `plan` needs calibration. Returns
  /// the report.
  Json quantize(const Plan& plan, const std::string& name, uint64_t seed = 0) const;

 private:
  TempFolder folder_;  // contains model/ and the exports
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<const Model> model_;
};

}  // namespace aqhost
