#include "run/time_left.h"

#include <algorithm>
#include <cstddef>

namespace aqhost {

void TimeLeft::begin(int32_t unit, double now) {
  if (current_) add(work_[static_cast<std::size_t>(current_->first)], now - current_->second);
  current_ = {unit, now};
}

void TimeLeft::add(const UnitWork& work, double seconds) {
  const bool first = kinds_.empty();
  auto kind =
      std::find_if(kinds_.begin(), kinds_.end(), [&](const Kind& k) { return k.work == work; });
  if (kind == kinds_.end()) kind = kinds_.insert(kind, {work, 0, 0, first});
  if (kind->units > 0 && kind->only_first) *kind = {work, 0, 0, false};
  kind->seconds += seconds;
  kind->units++;
}

double TimeLeft::predict(const UnitWork& work) const {
  double all_weights = 0, all_seconds = 0;
  for (const Kind& kind : kinds_) {
    if (kind.work == work) return kind.seconds / static_cast<double>(kind.units);
    all_weights += kind.work.weights * static_cast<double>(kind.units);
    all_seconds += kind.seconds;
  }
  return all_weights > 0 ? all_seconds / all_weights * work.weights : 0;
}

std::optional<double> TimeLeft::seconds(double now) const {
  if (!current_ || kinds_.empty()) return {};
  const auto unit = static_cast<std::size_t>(current_->first);
  double left = std::max(0.0, predict(work_[unit]) - (now - current_->second));
  for (std::size_t u = unit + 1; u + 1 < work_.size(); u++) left += predict(work_[u]);
  return left;
}

}  // namespace aqhost
