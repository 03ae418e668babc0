#include "forward/routing.h"

#include "torch_doctest.h"

namespace aqhost {
namespace {

TEST_CASE("tokens_by_expert keeps each token with the weight of its own slot") {
  // token 1 uses one slot, token 2 uses none, and token 3 has token 0's expert in another slot
  const at::Tensor ids = at::tensor({2, 0, -1, 2, -1, -1, 0, 2}, at::kInt).view({4, 2});
  const at::Tensor weights =
      at::tensor({0.9, 0.1, 0.0, 0.8, 0.0, 0.0, 0.6, 0.4}, at::kFloat).view({4, 2});
  const auto experts = tokens_by_expert({{}, ids, weights}, 4);
  REQUIRE(experts.size() == 4);
  CHECK(at::equal(experts[0].rows, at::tensor({0, 3}, at::kLong)));
  CHECK(at::equal(experts[0].weights, at::tensor({0.1, 0.6}, at::kFloat)));
  CHECK(experts[1].rows.sizes() == at::IntArrayRef{0});
  CHECK(experts[1].weights.sizes() == at::IntArrayRef{0});
  CHECK(at::equal(experts[2].rows, at::tensor({0, 1, 3}, at::kLong)));
  CHECK(at::equal(experts[2].weights, at::tensor({0.9, 0.8, 0.4}, at::kFloat)));
  CHECK(experts[3].rows.numel() == 0);
}

TEST_CASE("tokens_by_expert agrees with a search for each expert") {
  at::manual_seed(1);
  const at::Tensor ids = at::rand({500, 16}).argsort(int64_t{1}).slice(1, 0, 4).to(at::kInt);
  ids.masked_fill_(at::rand({500, 4}) < 0.1, -1);
  const at::Tensor weights = at::rand({500, 4});
  const auto experts = tokens_by_expert({{}, ids, weights}, 16);
  for (int64_t e = 0; e < 16; e++) {
    const at::Tensor places = (ids == e).nonzero();  // (token, slot), by token
    const auto& [rows, found] = experts[static_cast<std::size_t>(e)];
    CHECK(at::equal(rows, places.select(1, 0)));
    CHECK(at::equal(found, weights.index({places.select(1, 0), places.select(1, 1)})));
  }
}

}  // namespace
}  // namespace aqhost
