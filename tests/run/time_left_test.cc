#include "run/time_left.h"

#include "torch_doctest.h"

namespace aqhost {
namespace {

/// Of units that are all quantized in the same way, with this number of weights each.
TimeLeft time_left(const std::vector<double>& weights) {
  std::vector<UnitWork> work;
  for (const double w : weights) work.push_back({w, "gptq"});
  return TimeLeft(work);
}

TEST_CASE("nothing is predicted before a unit is finished") {
  TimeLeft left = time_left({10, 10});
  CHECK(!left.seconds(0));
  left.begin(0, 0);
  CHECK(!left.seconds(5));
}

TEST_CASE("a layer takes as long as those of its kind have taken, without the first") {
  TimeLeft left = time_left({10, 10, 10, 10, 7});
  left.begin(0, 0);
  left.begin(1, 20);  // the first took 20 s
  CHECK(*left.seconds(20) == 60);
  CHECK(*left.seconds(25) == 55);
  left.begin(2, 32);  // the second 12 s
  CHECK(*left.seconds(32) == 24);
  left.begin(3, 42);  // the third 10 s
  CHECK(*left.seconds(42) == 11);
  CHECK(*left.seconds(60) == 0);  // it takes longer than predicted
}

TEST_CASE("a unit of a new kind takes time in proportion to its weights") {
  TimeLeft left = time_left({5, 20, 20, 4, 9});
  left.begin(0, 0);
  left.begin(1, 10);
  CHECK(*left.seconds(10) == 2 * (20 + 20 + 4));
  left.begin(2, 40);  // a layer of this kind took 30 s
  CHECK(*left.seconds(40) == doctest::Approx(30 + 4 * 40.0 / 25));
}

TEST_CASE("layers with as many weights that are quantized in another way are another kind") {
  const UnitWork plain{10, "gptq"}, refined{10, "gptq, refine 200"};
  TimeLeft left({refined, refined, plain, plain, plain, refined, {}});
  left.begin(0, 0);
  left.begin(1, 50);
  left.begin(2, 90);
  CHECK(*left.seconds(90) == 3 * 40 + 40);  // nothing is known of the others yet
  left.begin(3, 95);
  CHECK(*left.seconds(95) == 2 * 5 + 40);
}

TEST_CASE("a run that goes on after finished units predicts from its own") {
  TimeLeft left = time_left({10, 10, 10, 10, 7});
  left.begin(2, 100);
  CHECK(!left.seconds(101));
  left.begin(3, 107);
  CHECK(*left.seconds(107) == 7);
}

}  // namespace
}  // namespace aqhost
