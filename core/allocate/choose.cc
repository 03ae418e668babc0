#include "allocate/choose.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace aqhost {
namespace {

using Parts = std::vector<std::vector<Choice>>;
using Answer = std::vector<std::size_t>;

Choice total(const Parts& parts, const Answer& answer) {
  Choice sum;
  for (std::size_t u = 0; u < parts.size(); u++) {
    sum.bits += parts[u][answer[u]].bits;
    sum.loss += parts[u][answer[u]].loss;
  }
  return sum;
}

/// The index of the choice with the least loss + price x bits; of equal ones, the one with fewer
/// bits.
std::size_t best_at(const std::vector<Choice>& choices, double price) {
  const auto key = [&](const Choice& c) { return c.loss + price * static_cast<double>(c.bits); };
  std::size_t best = 0;
  for (std::size_t i = 1; i < choices.size(); i++)
    if (key(choices[i]) < key(choices[best]) ||
        (key(choices[i]) == key(choices[best]) && choices[i].bits < choices[best].bits))
      best = i;
  return best;
}

Answer answer_at(const Parts& parts, double price) {
  Answer answer;
  for (const auto& choices : parts) answer.push_back(best_at(choices, price));
  return answer;
}

Answer smallest(const Parts& parts) {
  Answer answer;
  for (const auto& choices : parts)
    answer.push_back(static_cast<std::size_t>(
        std::min_element(choices.begin(), choices.end(),
                         [](const Choice& a, const Choice& b) {
                           return a.bits < b.bits || (a.bits == b.bits && a.loss < b.loss);
                         }) -
        choices.begin()));
  return answer;
}

/// The lowest price of a bit at which the best choices keep the budget, to the precision of a
/// double.
double price_of_budget(const Parts& parts, int64_t budget) {
  const auto fits = [&](double price) {
    return total(parts, answer_at(parts, price)).bits <= budget;
  };
  if (fits(0)) return 0;
  // at this price, no gain in loss is worth a bit
  double least = std::numeric_limits<double>::max(), most = -least;
  for (const auto& choices : parts)
    for (const Choice& c : choices) {
      least = std::min(least, c.loss);
      most = std::max(most, c.loss);
    }
  double high = 2 * (most - least) + std::numeric_limits<double>::min(), low = 0;
  for (int step = 0; step < 200; step++) {
    const double middle = low + (high - low) / 2;
    if (middle <= low || middle >= high) break;
    (fits(middle) ? high : low) = middle;
  }
  return high;
}

/// Uses what is left of the budget for the changes that gain most.
void fill_up(const Parts& parts, int64_t budget, Answer& answer) {
  for (;;) {
    const int64_t left = budget - total(parts, answer).bits;
    double gain = 0;
    std::size_t part = 0, choice = 0;
    for (std::size_t u = 0; u < parts.size(); u++)
      for (std::size_t c = 0; c < parts[u].size(); c++) {
        const Choice &now = parts[u][answer[u]], &next = parts[u][c];
        if (next.bits - now.bits > left || now.loss - next.loss <= gain) continue;
        gain = now.loss - next.loss;
        part = u;
        choice = c;
      }
    if (gain <= 0) return;
    answer[part] = choice;
  }
}

/// The state without the last part, and the choice of that part.
struct Origin {
  uint32_t before, choice;
};

/// A way to store the first parts.
struct State {
  int64_t bits;
  double loss;
  Origin origin;
};

/// Removes the states that another one beats in bits and loss. The rest rises in bits.
void keep_best(std::vector<State>& states) {
  std::sort(states.begin(), states.end(), [](const State& a, const State& b) {
    return a.bits < b.bits || (a.bits == b.bits && a.loss < b.loss);
  });
  double least = std::numeric_limits<double>::infinity();
  std::erase_if(states, [&](const State& s) {
    if (s.loss >= least) return true;
    least = s.loss;
    return false;
  });
}

/// The best answer, given one that keeps the budget.
Answer improve(const Parts& parts, int64_t budget, double price, const Answer& known) {
  // for the parts from u on: the least loss + price x bits, and the fewest bits
  std::vector<double> rest(parts.size() + 1, 0);
  std::vector<int64_t> fewest(parts.size() + 1, 0);
  const Answer cheap = smallest(parts);
  for (std::size_t u = parts.size(); u-- > 0;) {
    const Choice& c = parts[u][best_at(parts[u], price)];
    rest[u] = rest[u + 1] + c.loss + price * static_cast<double>(c.bits);
    fewest[u] = fewest[u + 1] + parts[u][cheap[u]].bits;
  }
  const double best = total(parts, known).loss;
  // sums in another order may differ in their last digits
  const double limit =
      best + 1e-9 * (std::abs(best) + std::abs(rest[0]) + price * static_cast<double>(budget));
  std::vector<State> states{{0, 0, {0, 0}}};
  std::vector<std::vector<Origin>> origins;  // of the states of each stage
  for (std::size_t u = 0; u < parts.size(); u++) {
    std::vector<State> next;
    for (std::size_t s = 0; s < states.size(); s++)
      for (std::size_t c = 0; c < parts[u].size(); c++) {
        const State state{states[s].bits + parts[u][c].bits,
                          states[s].loss + parts[u][c].loss,
                          {static_cast<uint32_t>(s), static_cast<uint32_t>(c)}};
        const int64_t left = budget - state.bits;
        const double bound = state.loss + rest[u + 1] - price * static_cast<double>(left);
        if (left >= fewest[u + 1] && bound <= limit) next.push_back(state);
      }
    keep_best(next);
    std::vector<Origin>& of_stage = origins.emplace_back();
    of_stage.reserve(next.size());
    for (const State& state : next) of_stage.push_back(state.origin);
    states = std::move(next);
  }
  if (states.empty()) return known;
  Answer answer(parts.size());
  std::size_t at = states.size() - 1;  // the most bits, and so the least loss
  for (std::size_t u = parts.size(); u-- > 0;) {
    answer[u] = origins[u][at].choice;
    at = origins[u][at].before;
  }
  return answer;
}

}  // namespace

std::vector<std::size_t> choose(const Parts& parts, int64_t budget) {
  const Answer least = smallest(parts);
  if (total(parts, least).bits > budget)
    fail("a budget of {} bits is less than the {} of the smallest choices", budget,
         total(parts, least).bits);
  const double price = price_of_budget(parts, budget);
  Answer known = answer_at(parts, price);
  if (total(parts, known).bits > budget) known = least;
  fill_up(parts, budget, known);
  return improve(parts, budget, price, known);
}

}  // namespace aqhost
