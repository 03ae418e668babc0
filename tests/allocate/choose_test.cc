#include "allocate/choose.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "base/error.h"

namespace aqhost {
namespace {

using Parts = std::vector<std::vector<Choice>>;

Choice total(const Parts& parts, const std::vector<std::size_t>& answer) {
  Choice sum;
  for (std::size_t u = 0; u < parts.size(); u++) {
    sum.bits += parts[u][answer[u]].bits;
    sum.loss += parts[u][answer[u]].loss;
  }
  return sum;
}

/// The least loss within the budget, by trying every answer.
double brute_force(const Parts& parts, int64_t budget, std::size_t part = 0, Choice sum = {}) {
  if (sum.bits > budget) return std::numeric_limits<double>::infinity();
  if (part == parts.size()) return sum.loss;
  double best = std::numeric_limits<double>::infinity();
  for (const Choice& c : parts[part])
    best = std::min(best,
                    brute_force(parts, budget, part + 1, {sum.bits + c.bits, sum.loss + c.loss}));
  return best;
}

/// Parts with 1 to 4 choices, of sizes that are alike or not, with losses that need not fall with
/// the bits.
Parts random_parts(std::mt19937& random, std::size_t count, bool alike) {
  Parts parts(count);
  for (auto& choices : parts) {
    const auto size = static_cast<int64_t>(alike ? 64 : 1 + random() % 100);
    const double scale = std::exp(static_cast<double>(random() % 1000) / 150);
    const std::size_t number = 1 + random() % 4;
    for (std::size_t c = 0; c < number; c++)
      choices.push_back({size * static_cast<int64_t>(2 + c),
                         scale * std::pow(4.0, -static_cast<double>(c)) *
                             (0.5 + static_cast<double>(random() % 1000) / 300)});
  }
  return parts;
}

TEST_CASE("the choice is the best one of all within the budget") {
  std::mt19937 random(1);
  for (int trial = 0; trial < 300; trial++) {
    const Parts parts = random_parts(random, 1 + random() % 8, trial % 2 == 0);
    int64_t least = 0, most = 0;
    for (const auto& choices : parts) {
      least += choices.front().bits;
      most += choices.back().bits;
    }
    const int64_t budget = least + static_cast<int64_t>(random()) % (most - least + 10);
    const Choice found = total(parts, choose(parts, budget));
    CHECK(found.bits <= budget);
    CHECK(found.loss == doctest::Approx(brute_force(parts, budget)).epsilon(1e-9));
  }
}

TEST_CASE("a budget that fits exactly is used") {
  // Lagrange's path goes from (4, 0) to (10, 10) and misses the second part's middle choice
  const Parts parts{{{10, 0}, {4, 10}}, {{10, 0}, {7, 5.5}, {4, 10}}};
  CHECK(total(parts, choose(parts, 17)).loss == doctest::Approx(5.5));
  CHECK(total(parts, choose(parts, 16)).loss == doctest::Approx(10));
  CHECK(total(parts, choose(parts, 8)).loss == doctest::Approx(20));
  CHECK(total(parts, choose(parts, 1000)).loss == doctest::Approx(0));
}

TEST_CASE("hundreds of parts of different sizes are chosen in a moment") {
  std::mt19937 random(2);
  const Parts parts = random_parts(random, 600, false);
  int64_t most = 0;
  for (const auto& choices : parts) most += choices.back().bits;
  const Choice found = total(parts, choose(parts, most * 3 / 4));
  CHECK(found.bits <= most * 3 / 4);
  CHECK(found.bits > most * 3 / 4 - 100);
}

TEST_CASE("of equal losses, the one with fewer bits is chosen") {
  const Parts parts{{{10, 1}, {4, 1}, {7, 1}}};
  CHECK(choose(parts, 100) == std::vector<std::size_t>{1});
}

TEST_CASE("a budget that is too small is refused") {
  CHECK_THROWS_WITH_AS(choose({{{10, 1}}, {{20, 1}}}, 29),
                       "a budget of 29 bits is less than the 30 of the smallest choices", Error);
}

}  // namespace
}  // namespace aqhost
