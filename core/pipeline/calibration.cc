#include "pipeline/calibration.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/error.h"
#include "calibrate/windows.h"

namespace aqhost {
namespace {

/// As many windows of each file as `turns` names it, in that order.
at::Tensor take_turns(const std::vector<at::Tensor>& windows, const std::vector<int64_t>& counts,
                      const std::vector<std::size_t>& turns, uint64_t seed) {
  std::vector<at::Tensor> chosen, rows;
  for (std::size_t i = 0; i < windows.size(); i++)
    chosen.push_back(sample_windows(windows[i], counts[i], seed));
  std::vector<int64_t> next(windows.size(), 0);
  for (const std::size_t i : turns) rows.push_back(chosen[i][next[i]++]);
  return at::stack(rows);
}

}  // namespace

Calibration read_calibration(const Reader& original, const Model& model,
                             const CalibrationOptions& options) {
  const int64_t longest = model.desc().max_positions;
  if (longest > 0 && options.seqlen > longest)
    fail("--seqlen {} is longer than the {} positions the model was made for", options.seqlen,
         longest);
  CorpusReader reader(original.directory(), model.desc().vocab_size);
  std::vector<at::Tensor> windows;
  std::vector<int64_t> available;
  std::vector<double> weights;
  double all = 0;
  for (const CorpusFile& file : options.files) {
    windows.push_back(reader.windows(file.path, options.seqlen));
    available.push_back(windows.back().size(0));
    weights.push_back(file.weight);
    all += file.weight;
  }
  const auto turns = share_windows(available, weights, options.nsamples);
  Json files = Json::array();
  std::vector<int64_t> counts;
  for (std::size_t i = 0; i < options.files.size(); i++) {
    counts.push_back(std::count(turns.begin(), turns.end(), i));
    const double asked = static_cast<double>(options.nsamples) * weights[i] / all;
    const std::string name = options.files[i].path.string();
    if (static_cast<double>(available[i]) < std::floor(asked))
      spdlog::warn("{}: {} windows of {} tokens, {:.0f} were asked for", name, available[i],
                   options.seqlen, asked);
    files.push_back({{"file", options.files[i].path.filename().string()},
                     {"weight", weights[i]},
                     {"windows", counts[i]},
                     {"available", available[i]}});
  }
  return {take_turns(windows, counts, turns, options.seed),
          {{"files", files},
           {"windows", turns.size()},
           {"seqlen", options.seqlen},
           {"seed", options.seed}}};
}

}  // namespace aqhost
