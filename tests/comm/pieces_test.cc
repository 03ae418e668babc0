#include "run/pieces.h"

#include <map>

#include "torch_doctest.h"

namespace aqhost {

TEST_CASE("steps of tensors: every element is in one piece, and no owner has more than the limit") {
  const std::vector<at::Tensor> tensors{at::zeros({3}, at::kFloat), at::zeros({100}, at::kFloat),
                                        at::zeros({0}, at::kFloat), at::zeros({5}, at::kDouble),
                                        at::zeros({7}, at::kByte),  at::zeros({2, 9}, at::kFloat)};
  const std::vector<int> owners{0, 1, 1, 0, 0, 1};
  std::vector<int64_t> next(tensors.size(), 0);
  const auto steps = steps_of(tensors, owners, 3, 64);
  for (const std::vector<Piece>& step : steps) {
    CHECK(!step.empty());
    std::map<int, int64_t> bytes;
    for (const Piece& piece : step) {
      CHECK(piece.owner == owners[piece.tensor]);
      CHECK(piece.begin == next[piece.tensor]);
      CHECK(piece.count > 0);
      next[piece.tensor] += piece.count;
      const auto width = static_cast<int64_t>(tensors[piece.tensor].element_size());
      bytes[piece.owner] = (bytes[piece.owner] + 7) / 8 * 8 + piece.count * width;
    }
    for (const auto& [owner, sum] : bytes) CHECK(sum <= 64);
  }
  for (std::size_t i = 0; i < tensors.size(); i++) CHECK(next[i] == tensors[i].numel());
  CHECK(steps.size() == 8);  // owner 1 has 472 bytes, 64 in a step
}

TEST_CASE("steps of tensors: the owners' tensors go side by side, not one owner after another") {
  const std::vector<at::Tensor> tensors(6, at::zeros({16}, at::kFloat));
  const auto steps = steps_of(tensors, {0, 0, 0, 1, 1, 1}, 2, 64);
  REQUIRE(steps.size() == 3);
  for (const std::vector<Piece>& step : steps) {
    REQUIRE(step.size() == 2);
    CHECK(step[0].owner != step[1].owner);
  }
}

}  // namespace aqhost
