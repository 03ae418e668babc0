#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "allocate/candidate_walk.h"
#include "allocate/candidates.h"
#include "allocate/measured_steps.h"
#include "allocate/parts.h"
#include "allocate/scores.h"
#include "plugin/registry.h"
#include "run/calibration.h"
#include "run/resume.h"

namespace aqhost {

struct ScoreMeasurementOptions {
  std::string score;  // "loss", "error" or "kl"
  CalibrationOptions calibration;
  std::vector<Candidate> candidates;  // those of MeasureSetup
  std::vector<AllocatedGroup> parts;
  std::filesystem::path target;  // the file that the result is going to be written to
  Resume resume = Resume::kAuto;
  std::vector<PluginInfo> plugins;  // all that are loaded
};

/// Measures the scores of modules on calibration text. Each finished layer is kept in a work folder
/// (see MeasuredSteps), so that a measurement that ends early goes on behind it with the same
/// result. What is measured does not depend on the budget, so another one may go on.
class ScoreMeasurement {
 public:
  /// Reads the text, and opens the work folder. What `setup` refers to is borrowed. Throws an Error
  /// if that has the work of a measurement with other options, or if the ranks were started
  /// differently.
  ScoreMeasurement(const MeasureSetup& setup, const ScoreMeasurementOptions& options);

  /// Measures. Throws RunInterrupted after a signal if steps are finished, or else Interrupted. An
  /// Error says which steps are kept.
  Scores run();
  /// Removes the work folder. To be called when the result is written.
  void remove_work() { steps_.remove(); }

 private:
  /// The windows of tokens that a measurement is made on.
  struct Windows {
    at::Tensor calibration;  // [n, tokens] i64: to solve modules
    at::Tensor text;         // [m, tokens] i64 of text alone: for gradients or divergences
  };
  static Windows read_windows(const MeasureSetup& setup, const ScoreMeasurementOptions& options);
  static Json manifest(const MeasureSetup& setup, const ScoreMeasurementOptions& options,
                       const Windows& windows);
  Scores measure();

  const MeasureSetup setup_;
  const std::string score_;
  const uint64_t seed_;
  const std::vector<AllocatedGroup> parts_;
  const Windows windows_;
  MeasuredSteps steps_;
};

}  // namespace aqhost
