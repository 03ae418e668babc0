#include "export/gguf_blocks.h"

#include <doctest/doctest.h>

#include <cmath>

#include "export/all_plugins.h"
#include "export/gguf.h"
#include "export/gguf_convert.h"
#include "export/read_gguf.h"

namespace aqhost {
namespace {

std::shared_ptr<const Format> format_of(const std::string& id,
                                        const Json& options = Json::object()) {
  return all_plugins().create_format(id, options);
}

QuantizedMatrix empty_matrix(int64_t rows, int64_t cols) {
  QuantizedMatrix matrix;
  matrix.rows = rows;
  matrix.cols = cols;
  return matrix;
}

/// A matrix with every code, and another scale for each group. Scales are exact in float16.
QuantizedMatrix varied_matrix(const Format& format, int64_t rows, int64_t cols) {
  const FormatDesc& desc = format.desc();
  QuantizedMatrix m = empty_matrix(rows, cols);
  const int count = 1 << desc.element_bits;
  for (int64_t i = 0; i < rows * cols; i++)
    m.codes.push_back(static_cast<std::byte>((i * 11 + i / cols * 3 + i / count) % count));
  for (int64_t i = 0; desc.two_level() && i < rows * desc.groups(cols); i++) {
    const bool even = i / desc.groups(desc.super_size) % 2 == 0;
    const float d = desc.sub_min < 0 && even ? -0x1p-9F : 0x1.24p-7F;
    const float dmin = desc.minima() ? 0x1.fp-8F : 0.0F;
    auto k = desc.sub_min + static_cast<int>(i * 7 % (desc.sub_max - desc.sub_min + 1));
    if (k == 0) k = desc.sub_max;
    const auto minimum = static_cast<float>(i * 5 % (desc.sub_minimum_max + 1)) * dmin;
    for (const float p : {static_cast<float>(k) * d, minimum, d, dmin}) m.group_params.push_back(p);
  }
  if (desc.two_level()) return m;
  for (int64_t i = 0; i < rows * desc.groups(cols); i++) {
    const bool power = desc.scale_kind == AQ_SCALE_E8M0;
    m.group_params.push_back(power ? std::ldexp(1.0F, static_cast<int>(i % 40) - 20)
                                   : static_cast<float>(8 + i % 8) * 0x1p-6F);
    if (desc.zero_point())
      m.group_params.push_back(static_cast<float>(desc.int_min + static_cast<int>(i % count)));
  }
  if (desc.global_scale()) m.tensor_params = {4};
  return m;
}

uint32_t byte_at(const std::byte* block, int i) { return std::to_integer<uint32_t>(block[i]); }

float half_at(const std::byte* block, int i) {
  const uint32_t bits = byte_at(block, i) | byte_at(block, i + 1) << 8;
  const int exponent = static_cast<int>(bits >> 10 & 31), fraction = static_cast<int>(bits & 1023);
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(fraction), -24)
                              : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return (bits & 0x8000U) != 0 ? -magnitude : magnitude;
}

/// k and m of group g in the 12 bytes at `start`: get_scale_min_k4() of ggml-quants.c.
std::pair<float, float> scale_and_minimum(const std::byte* block, int start, int g) {
  const auto q = [=](int i) { return byte_at(block, start + i); };
  if (g < 4) return {static_cast<float>(q(g) & 63), static_cast<float>(q(g + 4) & 63)};
  return {static_cast<float>((q(g + 4) & 15) | q(g - 4) >> 6 << 4),
          static_cast<float>(q(g + 4) >> 4 | q(g) >> 6 << 4)};
}

/// Weight j of a block of 256, as dequantize_row_q2_K() and so on have it.
float decoded_k(uint32_t type, const std::byte* block, int j) {
  const auto at = [block](int i) { return byte_at(block, i); };
  const int half = j / 128, chunk = j / 64, in = j % 32, quarter = j % 128 / 32, group = j / 16;
  const auto number = [](uint32_t code) { return static_cast<float>(code); };
  if (type == 10) {
    const float q = number(at(16 + 32 * half + in) >> 2 * quarter & 3);
    return half_at(block, 80) * number(at(group) & 15) * q -
           half_at(block, 82) * number(at(group) >> 4);
  }
  if (type == 11) {
    const uint32_t low = at(32 + 32 * half + in) >> 2 * quarter & 3;
    const bool high = (at(in) >> (4 * half + quarter) & 1) != 0;
    const uint32_t nibble = at(96 + group % 8) >> (group < 8 ? 0 : 4) & 15;
    const uint32_t top = at(96 + 8 + group % 4) >> 2 * (group / 4) & 3;
    return half_at(block, 108) * (number(nibble | top << 4) - 32) *
           (number(low) - (high ? 0.0F : 4.0F));
  }
  if (type == 12 || type == 13) {
    const auto [k, m] = scale_and_minimum(block, 4, j / 32);
    const int codes = type == 12 ? 16 : 48;
    uint32_t q = at(codes + 32 * chunk + in) >> (j % 64 < 32 ? 0 : 4) & 15;
    if (type == 13) q |= (at(16 + in) >> j / 32 & 1) << 4;
    return half_at(block, 0) * k * number(q) - half_at(block, 2) * m;
  }
  const uint32_t low = at(64 * half + in + 32 * (quarter % 2)) >> (quarter < 2 ? 0 : 4) & 15;
  const uint32_t high = at(128 + 32 * half + in) >> 2 * quarter & 3;
  return half_at(block, 208) * static_cast<float>(static_cast<int8_t>(at(192 + group))) *
         (number(low | high << 4) - 32);
}

/// Weight j of a block, written from the structures in ggml-common.h and the loops of
/// dequantize_row_*() in ggml-quants.c.
float decoded(GgufType type, const std::byte* block, int j) {
  constexpr float kE2M1[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6, 0, -0.5F, -1, -1.5F, -2, -3, -4, -6};
  constexpr float kIq4Nl[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                              1,    13,   25,  38,  53,  69,  89,  113};
  const auto nibble = [block, j](int start) {
    return byte_at(block, start + j % 16) >> (j < 16 ? 0 : 4) & 15;
  };
  const auto fifth = [block, j](int start) { return byte_at(block, start + j / 8) >> j % 8 & 1; };
  const auto number = [](uint32_t code) { return static_cast<float>(code); };
  switch (type) {
    case GgufType::kQ4_0:
      return half_at(block, 0) * (number(nibble(2)) - 8);
    case GgufType::kQ4_1:
      return half_at(block, 0) * number(nibble(4)) + half_at(block, 2);
    case GgufType::kQ5_0:
      return half_at(block, 0) * (number(nibble(6) | fifth(2) << 4) - 16);
    case GgufType::kQ5_1:
      return half_at(block, 0) * number(nibble(8) | fifth(4) << 4) + half_at(block, 2);
    case GgufType::kQ8_0:
      return half_at(block, 0) * static_cast<float>(static_cast<int8_t>(byte_at(block, 2 + j)));
    case GgufType::kIq4Nl:
      return half_at(block, 0) * kIq4Nl[nibble(2)];
    case GgufType::kMxfp4:
      return std::ldexp(kE2M1[nibble(1)], static_cast<int>(byte_at(block, 0)) - 127);
    case GgufType::kNvfp4: {
      const int group = j / 16, in_group = j % 16;
      const uint32_t scale = byte_at(block, group);
      const uint32_t pair = byte_at(block, 4 + 8 * group + in_group % 8);
      const int exponent = static_cast<int>(scale >> 3), fraction = static_cast<int>(scale & 7);
      return std::ldexp(static_cast<float>(8 + fraction), exponent - 10) *
             kE2M1[pair >> (in_group < 8 ? 0 : 4) & 15];
    }
    default:
      return decoded_k(static_cast<uint32_t>(type), block, j);
  }
}

}  // namespace

TEST_CASE("blocks hold the codes and scales of every format that GGUF has") {
  const Json half{{"scale_dtype", "float16"}};
  const auto with = [&half](int group, bool symmetric = true) {
    Json options = half;
    options["group_size"] = group;
    options["symmetric"] = symmetric;
    return options;
  };
  struct Case {
    std::shared_ptr<const Format> format;
    GgufType type;
  };
  const std::vector<Case> cases{{format_of("int4", with(32)), GgufType::kQ4_0},
                                {format_of("int4", with(64)), GgufType::kQ4_0},
                                {format_of("int4", with(-1)), GgufType::kQ4_0},
                                {format_of("int4", with(32, false)), GgufType::kQ4_1},
                                {format_of("int5", with(32)), GgufType::kQ5_0},
                                {format_of("int5", with(64, false)), GgufType::kQ5_1},
                                {format_of("int8", with(32)), GgufType::kQ8_0},
                                {format_of("int8", with(-1)), GgufType::kQ8_0},
                                {format_of("iq4_nl", half), GgufType::kIq4Nl},
                                {format_of("mxfp4"), GgufType::kMxfp4},
                                {format_of("nvfp4"), GgufType::kNvfp4},
                                {format_of("q2_k"), GgufType{10}},
                                {format_of("q3_k"), GgufType{11}},
                                {format_of("q4_k"), GgufType{12}},
                                {format_of("q5_k"), GgufType{13}},
                                {format_of("q6_k"), GgufType{14}}};
  for (const auto& [format, type] : cases) {
    const std::string label = gguf_label(*format);
    CAPTURE(label);
    constexpr int64_t kRows = 3, kCols = 768;
    REQUIRE(gguf_type(*format, kCols) == type);
    const QuantizedMatrix matrix = varied_matrix(*format, kRows, kCols);
    GgufRounding rounding;
    const std::vector<std::byte> blocks = pack_blocks(type, *format, matrix, rounding);
    const GgufTypeInfo& info = info_of(type);
    REQUIRE(static_cast<int64_t>(blocks.size()) == kRows * kCols / info.weights * info.bytes);
    CHECK(rounding.rounded_scales == 0);
    CHECK(rounding.rounded_minima == 0);
    const std::vector<float> expected = format->dequantize(matrix);
    const float whole = has_matrix_scale(type) ? matrix_scale(matrix) : 1;
    int64_t wrong = 0;
    for (std::size_t i = 0; i < expected.size(); i++) {
      const auto block = static_cast<int64_t>(i) / info.weights * info.bytes;
      const int j = static_cast<int>(static_cast<int64_t>(i) % info.weights);
      wrong += decoded(type, blocks.data() + block, j) * whole == expected[i] ? 0 : 1;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE(
    "blocks that the plugin of a third party packs are taken as they are, if it has the sizes") {
  const auto format = format_of("tq2_0");
  CHECK(info_of(gguf_type(*format, 512)).name == std::string("TQ2_0"));
  QuantizedMatrix matrix = empty_matrix(2, 512);
  for (int i = 0; i < 1024; i++) matrix.codes.push_back(static_cast<std::byte>(i * 7 % 3));
  matrix.group_params = {1.5F, 0.25F, 3, 0x1p-12F};
  const auto packed = gguf().pack({"m", format, nullptr, 2, 512}, matrix, 1);
  REQUIRE(packed.size() == 1);
  CHECK(packed[0].info.shape == std::vector<int64_t>{2, 132});
  const std::vector<float> expected = format->dequantize(matrix);
  for (int i = 0; i < 1024; i++) {
    const std::byte* block = packed[0].bytes.data() + i / 256 * 66;
    const int j = i % 256;
    const uint32_t code = byte_at(block, j / 128 * 32 + j % 32) >> (j % 128 / 32 * 2) & 3;
    REQUIRE(half_at(block, 64) * (static_cast<float>(code) - 1) ==
            expected[static_cast<std::size_t>(i)]);
  }
  const auto refusal = [](const char* claim) {
    return message_of([&] { gguf_type(*format_of("tq2_0", {{"claim", claim}}), 512); });
  };
  CHECK(contains(refusal("Q4_K"), "packs rows as blocks of Q4_K, but its first packed tensor"));
  CHECK(contains(refusal("none of ggml's"), "ggml has no type 99 of quantized weights"));
}

TEST_CASE("the bytes of a Q4_0 block, written out") {
  const auto format = format_of("int4", {{"group_size", 32}, {"scale_dtype", "float16"}});
  QuantizedMatrix matrix = empty_matrix(1, 32);
  for (int i = 0; i < 32; i++) matrix.codes.push_back(static_cast<std::byte>(i % 16));
  matrix.codes[16] = std::byte{9};
  matrix.group_params = {1.5F};
  const std::vector<PackedTensor> packed = gguf().pack({"m", format, nullptr, 1, 32}, matrix, 1);
  REQUIRE(packed.size() == 1);
  CHECK(packed[0].info.shape == std::vector<int64_t>{1, 18});
  const std::vector<int> expected{0x00, 0x3e, 0x90, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66,
                                  0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
  for (std::size_t i = 0; i < expected.size(); i++)
    CHECK(std::to_integer<int>(packed[0].bytes[i]) == expected[i]);
}

TEST_CASE("a format without a type is refused with what fits") {
  const auto refusal = [](const std::string& id, const Json& options, int64_t cols = 128) {
    return message_of([&] { gguf().tensors_of({"m", format_of(id, options), nullptr, 8, cols}); });
  };
  CHECK(
      refusal("int3", {{"group_size", 32}}) ==
      "GGUF has no type for the numbers of int3 g32; it has one for int4 (Q4_0, or Q4_1 with zero "
      "points) or mxfp4 (MXFP4)");
  CHECK(contains(refusal("int3", {{"group_size", 32}}, 256), "it has one for q3_k (Q3_K), int4"));
  CHECK(contains(refusal("int2", {{"group_size", 32}}, 512), "it has one for q2_k (Q2_K), int4"));
  CHECK(contains(refusal("int6", {{"group_size", 32}}, 256), "q6_k (Q6_K) or int8 without zero"));
  CHECK(contains(refusal("int6", {{"group_size", 32}}), "it has one for int8 without zero points"));
  CHECK(contains(refusal("q4_k", Json::object()),
                 "blocks of 256 weights do not divide a row of 128; int4 (Q4_0) in groups of 32"));
  CHECK(contains(refusal("int8", {{"group_size", 32}, {"symmetric", false}}),
                 "int8 g32 with zero points; it has one for int8 without"));
  CHECK(contains(refusal("fp8", Json::object()), "int8 without zero points"));
  CHECK(contains(refusal("nf4", {{"group_size", 32}}), "no type for the numbers of nf4 g32"));
  CHECK(contains(refusal("mxfp6", Json::object()), "int8 without zero points"));
  CHECK(contains(refusal("int4", {{"group_size", 16}}), "group_size: 32 fits"));
  CHECK(contains(refusal("int4", {{"group_size", -1}}, 80),
                 "blocks of 32 weights, which do not divide the 80 input features"));
  CHECK(contains(refusal("nvfp4", Json::object(), 96), "the blocks of 32 of mxfp4 do"));
  CHECK(refusal("int4", {{"group_size", 128}}).empty());
}

TEST_CASE("scales that float16 does not have are rounded and counted, or refused") {
  const auto format = format_of("int8", {{"group_size", 32}});
  QuantizedMatrix matrix = empty_matrix(1, 64);
  matrix.codes.resize(64);
  GgufRounding rounding;
  matrix.group_params = {0x1p-10F, 0x1.02p-22F};  // the second is 1.0078 x 4 steps of 2^-24
  pack_blocks(GgufType::kQ8_0, *format, matrix, rounding);
  CHECK(rounding.scales == 2);
  CHECK(rounding.rounded_scales == 1);
  CHECK(rounding.worst_scale == doctest::Approx(0.0078 / 1.0078).epsilon(0.01));
  CHECK(contains(rounding_text(rounding),
                 "1 of 2 scales were rounded to float16, by at most 0.78 %"));
  matrix.group_params = {0x1p-10F, 0x1p16F};
  CHECK(contains(message_of([&] { pack_blocks(GgufType::kQ8_0, *format, matrix, rounding); }),
                 "a scale is 65536, and float16"));

  const auto zeros = format_of("int4", {{"group_size", 32}, {"symmetric", false}});
  GgufRounding of_minima;
  matrix.group_params = {0x1.ffp-3F, -8 + 15, 1, -8 + 15};  // 15 x 511 has 13 bits, 15 has 4
  pack_blocks(GgufType::kQ4_1, *zeros, matrix, of_minima);
  CHECK(of_minima.minima == 2);
  CHECK(of_minima.rounded_minima == 1);
  CHECK(of_minima.worst_minimum < 0.004);
  CHECK(rounding_text({}).empty());
}

}  // namespace aqhost
