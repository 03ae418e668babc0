#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "base/observer.h"
#include "calibrate/corpus.h"
#include "checkpoint/reader.h"
#include "plugin/model.h"
#include "run/report.h"

namespace aqhost {

struct CalibrationOptions {
  std::vector<CorpusFile> files;  // at least one
  int64_t nsamples = 128;         // windows in all
  int64_t seqlen = 512;           // tokens of each
  uint64_t seed = 0;
  int64_t random_percent = 50;   // of the windows, below 100: random_windows() in place of text
  bool balance_experts = false;  // choose_balanced() from a pool of four times as many
};

/// What a run is calibrated on.
struct Calibration {
  at::Tensor windows;  // [n, seqlen] i64
  CalibrationReport report;
};

/// reader.read(), telling the observer of windows that hold several documents, and of chats.
FileWindows read_windows(CorpusReader& reader, const std::filesystem::path& file, int64_t length,
                         RunObserver& observer);

/// Reads the files and chooses windows from each by `seed`, as many as its weight says; windows of
/// different files, and random ones, take turns. Warns where there are fewer than were asked for,
/// of one file or of all; random ones are then fewer, too. `run` is the type and the device in
/// which the original runs to balance experts. Error as CorpusReader, and where seqlen is more than
/// the model was made for.
Calibration read_calibration(const Reader& original, const Model& model,
                             const CalibrationOptions& options, const at::TensorOptions& run,
                             RunObserver& observer);

}  // namespace aqhost
