#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace aqhost {

/// What a unit of a run is going to be: its number of quantized weights, and in words how they are
/// quantized, as far as that decides how long it takes.
struct UnitWork {
  double weights = 0;
  std::string how;

  bool operator==(const UnitWork&) const = default;
};

/// Predicts from the finished units of a run how long the others will take. A unit of the same work
/// as a finished one takes as long as that did, because it is a layer of the same kind; others take
/// time in proportion to their weights. The first unit counts only until another
/// of its kind is finished, because it also waits for what is done once (the first read of the
/// weights, the first use of each kernel). The last unit, which is outside the layers, is not
/// counted until it begins: for its weights it takes far less time than a layer, because nothing is
/// run and lm_head needs one Hessian alone. Times are seconds on any clock.
class TimeLeft {
 public:
  /// The work of each unit.
  explicit TimeLeft(std::vector<UnitWork> work) : work_(std::move(work)) {}

  /// `unit` begins, and the one that began before it is finished.
  void begin(int32_t unit, double now);
  /// The seconds until the last unit is finished; none before a unit is finished.
  std::optional<double> seconds(double now) const;

 private:
  /// The units of one kind that are finished.
  struct Kind {
    UnitWork work;       // of one unit
    double seconds = 0;  // of all together
    int64_t units = 0;
    bool only_first = false;  // the first unit of the run is the only one
  };
  void add(const UnitWork& work, double seconds);
  double predict(const UnitWork& work) const;

  const std::vector<UnitWork> work_;
  std::vector<Kind> kinds_;
  std::optional<std::pair<int32_t, double>> current_;  // the unit that has begun, and when
};

}  // namespace aqhost
