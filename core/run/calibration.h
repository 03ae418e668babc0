#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "base/observer.h"
#include "calibrate/corpus.h"
#include "checkpoint/source.h"
#include "plugin/model.h"
#include "report/report.h"

namespace aqhost {

struct CalibrationOptions {
  std::vector<CorpusFile> files;  // at least one
  int64_t nsamples = 128;         // the number of windows
  int64_t seqlen = 512;           // the number of tokens per window
  uint64_t seed = 0;
  int64_t random_percent = 50;  // below 100: how many of the windows are random_windows(), not text
  bool balance_experts = false;  // choose_balanced() from a pool of four times as many windows
};

/// The windows on which a run is calibrated, and how they were chosen.
struct Calibration {
  at::Tensor windows;  // [n, seqlen] i64
  CalibrationReport report;
};

/// Calls reader.read(), and tells the observer about windows that contain several documents and
/// about chats.
FileWindows read_windows(CorpusReader& reader, const std::filesystem::path& file, int64_t length,
                         RunObserver& observer);

/// Reads the files, and chooses windows from each by `seed`: as many as its weight says. Windows of
/// different files take turns, also with random ones. The observer is warned if a file has fewer
/// windows than its share; if all files together have too few, there are also fewer random windows.
/// `run` is the type and the device in which the original model runs to balance experts. Throws an
/// Error as CorpusReader does, and if seqlen is longer than the model was made for.
Calibration read_calibration(const Source& original, const Model& model,
                             const CalibrationOptions& options, const at::TensorOptions& run,
                             RunObserver& observer);

}  // namespace aqhost
