#include "allocate/measurement.h"

#include <algorithm>

#include "allocate/divergences.h"
#include "allocate/losses.h"
#include "allocate/sensitivity.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "base/sha256.h"
#include "run/run_difference.h"
#include "run/run_identity.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

constexpr int64_t kGradientWindows = 16;

/// The number of windows of text alone that a score needs.
int64_t text_windows(const MeasureSetup& setup, const ScoreMeasurementOptions& options) {
  if (options.score == "loss") return kGradientWindows;
  if (options.score == "error") return 0;
  return divergence_windows(setup, options.parts, options.calibration.nsamples);
}

int32_t steps_of(const std::string& score, const Model& model) {
  const int32_t of_losses = model.desc().n_layers + 1;
  return score == "loss" ? sensitivity_steps(model) + of_losses : of_losses;
}

}  // namespace

ScoreMeasurement::ScoreMeasurement(const MeasureSetup& setup,
                                   const ScoreMeasurementOptions& options)
    : setup_(setup),
      score_(options.score),
      seed_(options.calibration.seed),
      parts_(options.parts),
      windows_(read_windows(setup, options)),
      steps_(options.target, manifest(setup, options, windows_), options.resume, setup.comm,
             setup.observer) {}

ScoreMeasurement::Windows ScoreMeasurement::read_windows(const MeasureSetup& setup,
                                                         const ScoreMeasurementOptions& options) {
  const auto read = [&](const CalibrationOptions& calibration, RunObserver& observer) {
    return read_calibration(setup.source, setup.model, calibration, setup.options, observer)
        .windows;
  };
  Windows windows;
  windows.calibration = read(options.calibration, setup.observer);
  const int64_t most = text_windows(setup, options);
  if (most == 0) return windows;
  CalibrationOptions text = options.calibration;
  text.nsamples = std::min(text.nsamples, most);
  text.random_percent = 0;
  text.balance_experts = false;
  RunObserver silent;  // the text is read a second time
  windows.text = read(text, silent);
  return windows;
}

/// What identifies a measurement in its work folder.
Json ScoreMeasurement::manifest(const MeasureSetup& setup, const ScoreMeasurementOptions& options,
                                const Windows& windows) {
  const uint64_t seed = options.calibration.seed;
  const auto identity_of = [&](const Plan& plan) {
    return run_identity(setup.source, setup.model, plan, options.plugins, 0, windows.calibration,
                        setup.options.dtype().toScalarType(), setup.options.device(), seed);
  };
  Json json = identity_of(setup.plan);
  for (std::size_t c = 0; c < setup.candidates.size(); c++) {
    const Json candidate = identity_of(setup.candidates[c]);
    if (candidate.contains("plugins")) json["plugins"].update(candidate["plugins"]);
    json["candidates"][options.candidates[c].text] =
        sha256_of_text(to_text(Json{c, candidate["plan"]}));  // the order counts
  }
  for (const char* of_exports : {"container", "max_shard_bytes", "plan"}) json.erase(of_exports);
  json["score"] = options.score;
  json["calibration"]["seed"] = seed;
  if (windows.text.defined()) {
    const at::Tensor ids = windows.text.contiguous();
    json["text_ids"] = sha256_of(std::as_bytes(span_of<int64_t>(ids)));
  }
  if (options.score == "kl") {
    Json parts = Json::array();
    for (const AllocatedGroup& part : options.parts) parts.push_back(part.modules);
    json["parts"] = sha256_of_text(to_text(parts));
  }
  if (setup.comm.size() > 1) json["ranks"] = setup.comm.size();
  json[kSteps] = steps_of(options.score, setup.model);
  return run_manifest(std::move(json), options.calibration);
}

Scores ScoreMeasurement::measure() {
  if (score_ == "kl")
    return measure_divergences(setup_, parts_, windows_.calibration, windows_.text, steps_);
  if (score_ == "error")
    return error_scores(measure_losses(setup_, windows_.calibration, steps_, 0),
                        windows_.calibration.numel());
  const std::vector<double> sensitivity =
      output_sensitivity(setup_.source, setup_.model, windows_.text, setup_.options.device(), seed_,
                         setup_.comm, steps_, setup_.observer);
  return loss_scores(
      measure_losses(setup_, windows_.calibration, steps_, sensitivity_steps(setup_.model)),
      sensitivity, setup_.plan);
}

Scores ScoreMeasurement::run() {
  const auto keep = [this] { return steps_.kept(); };
  try {
    return measure();
  } catch (const Interrupted&) {
    end_early(setup_.comm, keep);
  } catch (const Error&) {
    end_early(setup_.comm, keep);
  }
}

}  // namespace aqhost
