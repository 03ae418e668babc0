#include "tensor/tensor.h"

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "temp_folder.h"
#include "tensor/memory_source.h"
#include "tensor/tensor_in_file.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

const at::Tensor kMatrix = at::arange(24, at::kFloat).view({6, 4});
const at::Tensor kStack = at::arange(48, at::kFloat).view({2, 6, 4});
const at::Tensor kVector = at::arange(5, at::kFloat);

MemorySource source() { return MemorySource({{"m", kMatrix}, {"s", kStack}, {"v", kVector}}); }

TEST_CASE("read_tensor gives whole matrices and vectors") {
  CHECK(at::equal(read_tensor(source(), {"m"}, {6, 4}), kMatrix));
  CHECK(at::equal(read_tensor(source(), {"v"}, {5}), kVector));
}

TEST_CASE("read_tensor gives one entry of stacked experts") {
  CHECK(at::equal(read_tensor(source(), {"s", 1}, {6, 4}), kStack[1]));
  CHECK(at::equal(read_tensor(source(), {"s", 1, 2, 1, 3}, {3, 4}), kStack[1].slice(0, 2, 5)));
}

TEST_CASE("read_tensor gives rows from row_begin on, each row_step-th of them") {
  CHECK(at::equal(read_tensor(source(), {"m", -1, 3, 1, 3}, {3, 4}), kMatrix.slice(0, 3, 6)));
  CHECK(at::equal(read_tensor(source(), {"m", -1, 0, 2, 3}, {3, 4}), kMatrix.slice(0, 0, 6, 2)));
  CHECK(at::equal(read_tensor(source(), {"m", -1, 1, 2, 3}, {3, 4}), kMatrix.slice(0, 1, 6, 2)));
}

TEST_CASE("read_tensor transposes first, then takes rows") {
  CHECK(at::equal(read_tensor(source(), {"m", -1, 0, 1, 0, true}, {4, 6}), kMatrix.t()));
  CHECK(at::equal(read_tensor(source(), {"s", 1, 1, 2, 2, true}, {2, 6}),
                  kStack[1].t().slice(0, 1, 4, 2)));
}

TEST_CASE("read_tensor gives contiguous tensors of their own") {
  const at::Tensor rows = read_tensor(source(), {"m", -1, 0, 1, 0, true}, {4, 6});
  CHECK(rows.is_contiguous());
  CHECK(rows.storage().nbytes() == 24 * sizeof(float));
  const at::Tensor every_second = read_tensor(source(), {"m", -1, 0, 2, 3}, {3, 4});
  CHECK(every_second.is_contiguous());
  CHECK(every_second.storage().nbytes() == 12 * sizeof(float));
}

TEST_CASE("read_tensor refuses what does not fit, with the tensor's name and both shapes") {
  const MemorySource s(
      {{"m", kMatrix}, {"s", kStack}, {"v", kVector}, {"n", at::scalar_tensor(7)}});
  CHECK(read_tensor(s, {"n"}, {}).item<float>() == 7);
  CHECK_THROWS_WITH_AS(read_tensor(s, {"m"}, {6, 5}),
                       "memory: tensor m is [6, 4], expected to hold [6, 5]", Error);
  CHECK_THROWS_WITH_AS(read_tensor(s, {"none"}, {6}), "memory: there is no tensor none", Error);
  const int64_t huge = int64_t{1} << 62;
  const std::vector<std::pair<TensorRef, std::vector<int64_t>>> misfits{
      {{"m"}, {7, 4}},                          // more rows than there are
      {{"m"}, {5, 4}},                          // fewer, though all are meant
      {{"v"}, {4}},                             //
      {{"m"}, {}},                              // a matrix is no number
      {{"n"}, {1}},                             // nor the other way round
      {{"n", 0}, {}},                           //
      {{"n", -1, 0, 1, 0, true}, {1}},          //
      {{"m"}, {24}},                            // a matrix is no vector
      {{"v"}, {1, 5}},                          // nor the other way round
      {{"s"}, {6, 4}},                          // experts without an index
      {{"s", 2}, {6, 4}},                       // an expert too many
      {{"m", 0}, {6, 4}},                       // an index without experts
      {{"m", -1, 1}, {6, 4}},                   // past the end
      {{"m", -1, 2, 2, 3}, {3, 4}},             // past the end, in steps
      {{"m", -1, 0, 1, 0, true}, {6, 4}},       // as it was before it was transposed
      {{"m", -1, huge, 1, 1}, {1, 4}},          // sums and products that would overflow
      {{"m", -1, 0, huge, 3}, {3, 4}},          //
      {{"m", -1, huge, huge, 6, true}, {6, 6}}  //
  };
  for (const auto& [ref, shape] : misfits) CHECK_THROWS_AS(read_tensor(s, ref, shape), Error);
}

/// A bfloat16 vector "b" that is lent as it is stored, and counts who asks for float32.
struct StoredBfloat16 : MemorySource {
  explicit StoredBfloat16(const at::Tensor& b)
      : MemorySource({{"b", b.to(at::kFloat)}}),
        values(b),
        info{"b", DType::kBF16, b.sizes().vec()} {}

  const TensorInfo* find(std::string_view name) const override {
    return name == "b" ? &info : nullptr;
  }
  void read_f32(std::string_view name, int64_t begin, std::span<float> out) const override {
    converted++;
    MemorySource::read_f32(name, begin, out);
    for (const float v : out)
      if (!std::isfinite(v)) fail("b: a value is not finite");
  }
  bool read_stored(std::string_view, int64_t begin, std::span<std::byte> out) const override {
    std::memcpy(out.data(), static_cast<const std::byte*>(values.data_ptr()) + begin, out.size());
    return true;
  }

  at::Tensor values;
  TensorInfo info;
  mutable int converted = 0;
};

TEST_CASE("bfloat16 that is wanted as it is stored is not converted, and checked all the same") {
  const at::Tensor matrix = at::randn({8, 16}).to(at::kBFloat16);
  const StoredBfloat16 lent(matrix);
  CHECK(at::equal(read_tensor(lent, {"b"}, {8, 16}, at::kBFloat16), matrix));
  CHECK(at::equal(read_tensor(lent, {"b", -1, 3, 1, 3}, {3, 16}, at::kBFloat16),
                  matrix.slice(0, 3, 6)));
  CHECK(at::equal(read_tensor(lent, {"b", -1, 0, 1, 0, true}, {16, 8}, at::kBFloat16), matrix.t()));
  at::Tensor stack = at::zeros({2, 8, 16}, at::kBFloat16);
  read_tensor_into(lent, {"b"}, stack[1]);
  CHECK((at::equal(stack[1], matrix) && stack[0].eq(0).all().item<bool>()));
  CHECK(lent.converted == 0);
  CHECK(at::equal(read_tensor(lent, {"b"}, {8, 16}), matrix.to(at::kFloat)));
  CHECK(lent.converted == 1);
  for (const double wrong : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    at::Tensor bad = matrix.clone();
    bad[7][15] = wrong;
    CHECK_THROWS_WITH_AS(read_tensor(StoredBfloat16(bad), {"b"}, {8, 16}, at::kBFloat16),
                         doctest::Contains("not finite"), Error);
  }
}

TEST_CASE("span_of lends a tensor's own elements") {
  at::Tensor t = at::zeros({2, 3});
  span_of<float>(t)[4] = 7;
  CHECK(t[1][1].item<float>() == 7);
  CHECK(span_of<float>(t).size() == 6);
}

TEST_CASE("a tensor in a file can be computed with, and its file has no name") {
  const TempFolder folder;
  at::Tensor t = tensor_in_file(folder.path() / "states", {3, 4});
  CHECK(list_folder(folder.path()).empty());
  CHECK(t.equal(at::zeros({3, 4})));
  const at::Tensor view = t.flatten(0, 1);
  t.narrow(0, 1, 2).add_(1);
  t.reset();
  CHECK(view.equal(at::cat({at::zeros(4), at::ones(8)})));
  CHECK_THROWS_WITH_AS(tensor_in_file(folder.path() / "none/states", {3}),
                       doctest::Contains("none/states: No such file"), Error);
  CHECK_THROWS_WITH_AS(tensor_in_file(folder.path() / "states", {int64_t{1} << 56}),
                       doctest::Contains("cannot be held in a file"), Error);
  CHECK(list_folder(folder.path()).empty());
}

}  // namespace
}  // namespace aqhost
