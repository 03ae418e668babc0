#include "calibration_options.h"

#include "base/error.h"

namespace aqhost {

void add_calibration_options(OptionTable& table, CalibrationChoice& choice, const char* calib) {
  table.list("calib", "FILE", choice.files, calib);
  table.integer("nsamples", "N", choice.options.nsamples, 1, 1 << 24,
                "Calibrate on N windows in total.");
  table.integer("seqlen", "N", choice.options.seqlen, 2, 1 << 24, "Make windows of N tokens each.");
  table.integer("random-percent", "N", choice.options.random_percent, 0, 99,
                "Fill N percent of the windows with random tokens instead of text, so that the "
                "result is also good on text of other kinds.");
  table.flag("balance-experts", choice.options.balance_experts,
             "Consider four times as many windows of text, and choose those that use the experts "
             "most evenly.");
  table.integer("seed", "N", choice.seed, 0, int64_t{1} << 62,
                "Use N as the seed of all random choices.");
}

std::optional<CalibrationOptions> calibration_of(const CalibrationChoice& choice) {
  if (choice.files.empty()) {
    if (choice.options.balance_experts)
      throw UsageError("--balance-experts needs --calib, what to choose from");
    return {};
  }
  CalibrationOptions result = choice.options;
  for (const std::string& value : choice.files) result.files.push_back(parse_corpus_file(value));
  result.seed = static_cast<uint64_t>(choice.seed);
  return result;
}

}  // namespace aqhost
