// FormatSpec, the Quantizer that is made of it, and the table in front of that.
#include <doctest/doctest.h>

#include <aq/sdk/format.hpp>
#include <cmath>
#include <functional>

#include "given.h"

namespace {

constexpr DLDataType kF32{kDLFloat, 32, 1};

/// Integers of `bits` bits with a float32 scale for each row. They are stored in one tensor with
/// this number of dimensions.
aq::FormatSpec ints(int bits, std::size_t dimensions = 2) {
  const auto layout = [=](const aq::MatrixShape& m) {
    std::vector<int64_t> shape(dimensions, 1);
    shape[0] = m.rows;
    return aq::TensorLayout{"I16", shape};
  };
  return {.integers = {-(1 << (bits - 1)), (1 << (bits - 1)) - 1},
          .scale = {.kind = AQ_SCALE_F32},
          .group_size = {-1, {-1}},
          .packed = {{"weight", layout, [](const aq::PackSource&, void*) {},
                      [](const void*, const aq::UnpackTarget&) {}}},
          .config = {{"format", "ints"}}};
}

DLTensor tensor(void* data, DLDataType type, std::vector<int64_t>& shape) {
  return {data, {kDLCPU, 0}, static_cast<int32_t>(shape.size()), type, shape.data(), nullptr, 0};
}

/// The largest error of quantizing to codes of type Code and back, in steps of the grid.
template <typename Code>
float round_trip(int bits) {
  const aq::Quantizer format(ints(bits));
  std::vector<float> weights;
  for (int i = 0; i < 64; i++) weights.push_back(std::sin(static_cast<float>(i)));
  std::vector<float> params(2), values(64), again(64);
  std::vector<Code> codes(64);
  std::vector<int64_t> matrix{2, 32}, scales{2, 1};
  const DLDataType code_type{kDLUInt, 8 * sizeof(Code), 1};
  DLTensor w = tensor(weights.data(), kF32, matrix), p = tensor(params.data(), kF32, scales),
           c = tensor(codes.data(), code_type, matrix), v = tensor(values.data(), kF32, matrix),
           a = tensor(again.data(), kF32, matrix);
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
    aq::detail::QuantizerObject object(aq::detail::made(ints(4, dimensions)));
    aq_packed_tensor out{};
    out.struct_size = sizeof out;
    aq_error error{};
    const aq_status status = object.table.get_packed(&object.table, 2, 3, 0, &out, &error);
    CHECK((status == AQ_OK) == (dimensions <= 4));
    if (status == AQ_OK) CHECK(out.ndim == static_cast<int32_t>(dimensions));
  }
}

TEST_CASE("a spec in which something is missing or contradicts itself is refused") {
  struct Fault {
    std::function<void(aq::FormatSpec&)> make;
    const char* message;
  };
  const Fault faults[] = {
      {[](aq::FormatSpec& s) { s.integers = {}; }, "neither values nor integers are given"},
      {[](aq::FormatSpec& s) { s.custom.codes = true, s.integers = {}; },
       "neither values nor integers are given"},
      {[](aq::FormatSpec& s) {
         s.values = {0, 1};
       },
       "both values and integers are given"},
      {[](aq::FormatSpec& s) { s.values = {1}, s.integers = {}; }, "expected 2 to 65536 values"},
      {[](aq::FormatSpec& s) { s.integers.max = 1 << 16; }, "the integers have more than 16 bits"},
      {[](aq::FormatSpec& s) { s.scale = {}; }, "the kind of scale is missing"},
      {[](aq::FormatSpec& s) {
         s.values = {0, 1}, s.integers = {}, s.scale.zero_point = true;
       },
       "only integers have zero points"},
      {[](aq::FormatSpec& s) { s.scale.has_sign = s.scale.zero_point = true; },
       "scales with a sign are of float32, float16 or bfloat16 and without zero points"},
      {[](aq::FormatSpec& s) { s.two_level.super_size = 100; },
       "two-level scales need integers, and groups that divide super-groups, and exclude zero "
       "points "
       "and a global scale"},
      {[](aq::FormatSpec& s) { s.group_size = {}; },
       "the group size is not one of those that the format accepts"},
      {[](aq::FormatSpec& s) { s.packed.clear(); }, "the packed tensors are missing"},
      {[](aq::FormatSpec& s) { s.packed[0].unpack = nullptr; },
       "a packed tensor lacks its suffix or a function"},
      {[](aq::FormatSpec& s) { s.config = nullptr; },
       "config has no \"format\" by which readers know the format"},
  };
  for (const Fault& fault : faults) {
    aq::FormatSpec spec = ints(4);
    fault.make(spec);
    CHECK(error_of([&] { aq::Quantizer format(spec); }) ==
          std::string("FormatSpec: ") + fault.message);
  }
}

TEST_CASE("what a spec need not say follows from it") {
  const aq::Quantizer plain(ints(4));
  CHECK(plain.describe().element_bits == 4);
  CHECK(plain.describe().scale_divisor == 7.5f);
  CHECK(plain.describe().group_params == 1);
  CHECK(plain.describe().n_packed == 1);
  aq::FormatSpec spec = ints(4);
  spec.integers = {};
  spec.values = {-1, 0, 3};
  spec.packed = {aq::packed_codes("weight_packed", "U8"), aq::packed_scales(), aq::packed_shape()};
  spec.scale.global_max = 2;
  spec.config["weights"] = {{"type", "trit"}, {"own", 1}};
  const aq::Quantizer table(std::move(spec));
  const aq_format_desc desc = table.describe();
  CHECK(desc.element_bits == 2);
  CHECK(std::vector(desc.values, desc.values + 4) == std::vector<float>{-1, 0, 3, 3});
  CHECK(desc.scale_divisor == 3);
  CHECK(desc.tensor_params == 1);
  CHECK(desc.flags == AQ_FORMAT_GLOBAL_SCALE);
  CHECK(desc.n_packed == 3);
  const auto weights = nlohmann::json::parse(table.config_json())["weights"];
  CHECK(weights["num_bits"] == 2);
  CHECK(weights["strategy"] == "channel");
  CHECK(weights["type"] == "trit");  // what the spec says itself has precedence
  CHECK(weights["own"] == 1);
}

TEST_CASE("codes of more than 8 bits are not packed as a stream of bits") {
  aq::FormatSpec spec = ints(9);
  spec.packed = {aq::packed_codes("weight_packed", "I32")};
  const aq::Quantizer format(std::move(spec));
  CHECK(error_of([&] { format.packed(0, 2, 3); }) ==
        "codes of more than 8 bits need functions of their own to be packed");
}
