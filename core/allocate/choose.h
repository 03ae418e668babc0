#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace aqhost {

/// One way to store a part.
struct Choice {
  int64_t bits = 0;  // what it takes of the budget; not negative
  double loss = 0;   // what it costs; finite
};

/// Chooses one of the choices of each part, such that the sum of bits is at most `budget` and the
/// sum of losses is the least possible (the multiple-choice knapsack problem). Returns the index of
/// each part's choice; of several best answers, one of those with the fewest bits. Every part must
/// have a choice. Throws an Error if even the smallest choices exceed the budget.
///
/// The result is exact: dynamic programming over the pairs (bits, loss) that no other pair of the
/// same parts beats in both. Pairs are left out if Lagrange's bound says that they cannot lead to a
/// better answer than the best one on Lagrange's path. The time and the memory grow with the number
/// of pairs that are left, of which each takes 8 bytes: millions for hundreds of parts with eight
/// choices.
std::vector<std::size_t> choose(const std::vector<std::vector<Choice>>& parts, int64_t budget);

}  // namespace aqhost
