#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "option_table.h"
#include "run/calibration.h"

namespace aqhost {

/// What a command is calibrated on, as it stands on the command line.
struct CalibrationChoice {
  std::vector<std::string> files;
  CalibrationOptions options;  // all but the files and the seed
  int64_t seed = 0;
};

/// Adds --calib, whose help is `calib`, --nsamples, --seqlen, --random-percent, --balance-experts
/// and --seed.
void add_calibration_options(OptionTable& table, CalibrationChoice& choice, const char* calib);

/// The options; none if there are no files. Throws a UsageError if --balance-experts has no files
/// to choose from, or if a weight is wrong.
std::optional<CalibrationOptions> calibration_of(const CalibrationChoice& choice);

}  // namespace aqhost
