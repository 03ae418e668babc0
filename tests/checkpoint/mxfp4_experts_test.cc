#include <algorithm>
#include <array>
#include <cmath>

#include "stored_parts.h"

namespace aqhost {
namespace {
using doctest::Contains;

constexpr int64_t kExperts = 2, kRows = 70, kGroups = 3, kCols = 32 * kGroups;

/// A stack of experts whose codes and exponents all differ from their neighbours, and a bias.
StoredParts stack() {
  StoredParts parts;
  parts.config = {{"quantization_config", {{"quant_method", "mxfp4"}}}};
  std::string blocks, scales;
  for (int64_t i = 0; i < kExperts * kRows * kGroups; i++) {
    scales += static_cast<char>(100 + i * 7 % 50);
    for (int64_t j = 0; j < 16; j++) blocks += static_cast<char>(i * 31 + j * 17);
  }
  parts.add("e.up_blocks", DType::kU8, {kExperts, kRows, kGroups, 16}, blocks);
  parts.add("e.up_scales", DType::kU8, {kExperts, kRows, kGroups}, scales);
  parts.add_f32("e.up_bias", {1}, {3});
  return parts;
}

/// The dense tensor [experts, columns, rows], element by element.
std::vector<float> expected(const StoredParts& parts) {
  constexpr std::array kMagnitudes{0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  std::vector<float> values;
  for (int64_t e = 0; e < kExperts; e++)
    for (int64_t c = 0; c < kCols; c++)
      for (int64_t r = 0; r < kRows; r++) {
        const auto at = static_cast<std::size_t>((e * kRows + r) * kCols + c);
        const auto byte = static_cast<uint8_t>(parts.tensors.at("e.up_blocks").second[at / 2]);
        const auto exponent = static_cast<uint8_t>(parts.tensors.at("e.up_scales").second[at / 32]);
        const int code = at % 2 == 0 ? byte % 16 : byte / 16;
        const float magnitude = kMagnitudes[static_cast<std::size_t>(code % 8)];
        values.push_back(std::ldexp(code < 8 ? magnitude : -magnitude, exponent - 127));
      }
  return values;
}

}  // namespace

TEST_CASE("mxfp4 experts: every part of the transposed tensor is read, each element in its place") {
  const StoredParts parts = stack();
  const auto source = open_parts(parts);
  const std::vector<float> all = expected(parts);
  const auto size = static_cast<int64_t>(all.size());
  for (const auto& [begin, end] :
       std::vector<std::pair<int64_t, int64_t>>{{0, size},
                                                {0, 0},
                                                {size, size},
                                                {kCols * kRows, size},
                                                {0, 1},
                                                {69, 71},
                                                {31 * kRows + 5, 32 * kRows + 5},
                                                {kCols * kRows - 3, kCols * kRows + 2 * kRows},
                                                {size - 1, size},
                                                {1, size - 1}}) {
    CAPTURE(begin);
    CAPTURE(end);
    std::vector<float> out(static_cast<std::size_t>(end - begin));
    source->read_f32("e.up", begin, out);
    CHECK(std::equal(out.begin(), out.end(), all.begin() + begin));
  }
}

TEST_CASE("mxfp4 experts: a stack is seen as one dense tensor, as gpt-oss multiplies by it") {
  const auto source = open_parts(stack());
  REQUIRE(source->tensors().size() == 2);
  REQUIRE(source->find("e.up") != nullptr);
  CHECK(source->find("e.up")->dtype == DType::kBF16);
  CHECK(source->find("e.up")->shape == std::vector<int64_t>{kExperts, kCols, kRows});
  CHECK(source->find("e.up_bias") != nullptr);
  CHECK(source->stored_bytes("e.up") == 17 * kExperts * kRows * kGroups);
  CHECK(!source->read_stored("e.up", 0, {}));
  CHECK(!source->read_stored("e.up_blocks", 0, {}));
}

TEST_CASE("mxfp4 experts: the least and greatest scales, and a NaN") {
  StoredParts parts;
  parts.config = {{"quantization_config", {{"quant_method", "mxfp4"}}}};
  const auto read = [&](char scale) {
    parts.add("w_blocks", DType::kU8, {1, 1, 1, 16}, std::string(16, '\x91'));  // 0.5, -0.5
    parts.add("w_scales", DType::kU8, {1, 1, 1}, {scale});
    std::vector<float> out(32);
    open_parts(parts)->read_f32("w", 0, out);
    return std::pair(out[0], out[31]);
  };
  CHECK(read('\x00') == std::pair(0x1p-128f, -0x1p-128f));
  CHECK(read('\xfe') == std::pair(0x1p126f, -0x1p126f));
  CHECK_THROWS_WITH_AS(
      read('\xff'),
      Contains("tensor w: element 0, which is stored in w_blocks and w_scales, is nan"), Error);
}

TEST_CASE("mxfp4 experts: tensors that are missing or do not fit together are refused") {
  const auto refused = [](const auto& change) {
    StoredParts parts = stack();
    change(parts);
    return refusal(parts);
  };
  CHECK(refused([](StoredParts&) {}) == "accepted");
  CHECK(refused([](StoredParts& p) { p.tensors.erase("e.up_scales"); }) ==
        Contains("model.safetensors: tensor e.up_blocks is there, but e.up_scales is missing"));
  CHECK(refused([](StoredParts& p) { p.tensors.erase("e.up_blocks"); }) ==
        Contains("model.safetensors: tensor e.up_scales is there, but e.up_blocks is missing"));
  for (const char* part : {"e.up_blocks", "e.up_scales"})
    CHECK(refused([&](StoredParts& p) { p.tensors.at(part).first.dtype = DType::kI8; }) ==
          Contains((part + " is I8, expected U8"s).c_str()));
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{2, 70, 48}, {2, 70, 6, 8}, {1, 2, 70, 3, 16}})
    CHECK(refused([&](StoredParts& p) { p.tensors.at("e.up_blocks").first.shape = shape; }) ==
          Contains("expected [experts, rows, columns / 32, 16]"));
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{2, 3, 70}, {2, 210}, {420}})
    CHECK(refused([&](StoredParts& p) { p.tensors.at("e.up_scales").first.shape = shape; }) ==
          Contains("expected [2, 70, 3]: a scale for each block of e.up_blocks"));
  CHECK(refused([](StoredParts& p) {
          p.add("e.up_blocks", DType::kU8, {0, 0, int64_t{1} << 60, 16}, "");
        }) == Contains("expected [experts, rows, columns / 32, 16]"));
  CHECK(refused([](StoredParts& p) { p.add_f32("e.up", {1}, {1}); }) ==
        Contains("tensor e.up is stored twice, dense and quantized as e.up_blocks and "
                 "e.up_scales; delete one of them"));
}

}  // namespace aqhost
