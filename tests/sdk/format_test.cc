// DescribedFormat and the table in front of it.
#include <doctest/doctest.h>

#include <aq/sdk/format.hpp>
#include <cmath>

#include "given.h"

namespace {

/// Integers of `bits` bits, a float32 scale for each row, packed as they are.
class Ints : public aq::DescribedFormat {
 public:
  explicit Ints(int bits, std::size_t dimensions = 2) : dimensions_(dimensions) {
    group_sizes_ = {-1};
    desc_.group_size = -1;
    desc_.element_kind = AQ_ELEM_INT;
    desc_.element_bits = bits;
    desc_.int_min = -(1 << (bits - 1));
    desc_.int_max = (1 << (bits - 1)) - 1;
    desc_.fit_rule = AQ_FIT_ABSMAX;
    desc_.scale_divisor = static_cast<float>(desc_.int_max);
    desc_.scale_kind = AQ_SCALE_F32;
    desc_.group_params = 1;
    desc_.n_packed = 1;
    seal();
    config_ = R"({"format": "ints", "weights": {}})";
  }
  std::vector<aq::Packed> packed(int64_t rows, int64_t) const override {
    std::vector<int64_t> shape(dimensions_, 1);
    shape[0] = rows;
    return {{"weight", "I16", {kDLInt, 16, 1}, shape}};
  }
  void pack(const aq_pack_args&) const override {}
  void unpack(const aq_pack_args&) const override {}

 private:
  std::size_t dimensions_;
};

DLTensor tensor(void* data, DLDataType type, std::vector<int64_t>& shape) {
  return {data, {kDLCPU, 0}, static_cast<int32_t>(shape.size()), type, shape.data(), nullptr, 0};
}

/// The largest error of quantizing to codes of type Code and back, in steps of the grid.
template <typename Code>
float round_trip(int bits) {
  const Ints format(bits);
  std::vector<float> weights;
  for (int i = 0; i < 64; i++) weights.push_back(std::sin(static_cast<float>(i)));
  std::vector<float> params(2), values(64), again(64);
  std::vector<Code> codes(64);
  std::vector<int64_t> matrix{2, 32}, scales{2, 1};
  const DLDataType code_type{kDLUInt, 8 * sizeof(Code), 1};
  DLTensor w = tensor(weights.data(), aq::kF32, matrix),
           p = tensor(params.data(), aq::kF32, scales), c = tensor(codes.data(), code_type, matrix),
           v = tensor(values.data(), aq::kF32, matrix), a = tensor(again.data(), aq::kF32, matrix);
  format.fit({sizeof(aq_fit_args), 0, &w, nullptr, nullptr, &p});
  format.quantize({sizeof(aq_code_args), 0, &w, &p, nullptr, &c, &v});
  format.dequantize({sizeof(aq_code_args), 0, nullptr, &p, nullptr, &c, &a});
  float most = 0;
  for (std::size_t i = 0; i < 64; i++) {
    CHECK(values[i] == again[i]);
    most = std::max(most, std::fabs(weights[i] - values[i]) / params[i / 32]);
  }
  return most;
}

}  // namespace

TEST_CASE("described codes of up to 8 bits are bytes, wider ones two bytes") {
  for (const int bits : {2, 4, 8}) CHECK(round_trip<uint8_t>(bits) <= 0.51f);
  for (const int bits : {9, 12, 16}) CHECK(round_trip<uint16_t>(bits) <= 0.51f);
  CHECK(error_of([] { round_trip<uint8_t>(12); }) ==
        "codes has not the element type that was expected");
  CHECK(error_of([] { round_trip<uint16_t>(8); }) ==
        "codes has not the element type that was expected");
}

TEST_CASE("a packed tensor of more dimensions than the ABI has room for is refused") {
  for (const std::size_t dimensions : {1, 4, 5, 40}) {
    aq::detail::QuantizerObject object(std::make_unique<Ints>(4, dimensions));
    aq_packed_tensor out{};
    out.struct_size = sizeof out;
    aq_error error{};
    const aq_status status = object.table.get_packed(&object.table, 2, 3, 0, &out, &error);
    CHECK((status == AQ_OK) == (dimensions <= 4));
    if (status == AQ_OK) CHECK(out.ndim == static_cast<int32_t>(dimensions));
  }
}
