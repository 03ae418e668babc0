#include <doctest/doctest.h>
#include <fmt/format.h>

#include <aq/sdk/pack.hpp>
#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "variants.h"

namespace aqhost {
namespace {

std::vector<std::span<const std::byte>> spans_of(const std::vector<PackedTensor>& tensors) {
  std::vector<std::span<const std::byte>> spans;
  for (const PackedTensor& t : tensors) spans.emplace_back(t.bytes);
  return spans;
}

/// Parameters with every k and m, for `groups` groups.
std::vector<float> lattice_params(const FormatDesc& d, int64_t groups) {
  std::vector<float> params;
  for (int64_t i = 0; i < groups; i++) {
    const bool even = i / d.groups(d.super_size) % 2 == 0;
    const float unit = d.sub_min < 0 && even ? -0x1p-9f : 0x1.24p-7f;
    const float dmin = d.minima() ? 0x1.fp-8f : 0.0f;
    auto k = d.sub_min + static_cast<int>(i * 7 % (d.sub_max - d.sub_min + 1));
    if (k == 0) k = d.sub_max;
    const auto m = static_cast<float>(i * 5 % (d.sub_minimum_max + 1));
    for (const float p : {static_cast<float>(k) * unit, m * dmin, unit, dmin}) params.push_back(p);
  }
  return params;
}

/// Codes that a format writes: those of float formats that stand for NaN are left out.
QuantizedMatrix counting_matrix(const Format& format, int64_t rows, int64_t cols) {
  const FormatDesc& d = format.desc();
  QuantizedMatrix m;
  m.rows = rows;
  m.cols = cols;
  uint32_t state = 1;
  for (int64_t i = 0; i < rows * cols; i++) {
    state = state * 1664525u + 1013904223u;
    auto code = (state >> 8) % (1u << d.element_bits);
    if (d.element_bits == 8 && !d.table().empty() && (code & 0x7f) >= 0x7b) code -= 5;
    m.codes.push_back(static_cast<std::byte>(code));
  }
  if (d.two_level()) {
    m.group_params = lattice_params(d, rows * d.groups(cols));
    return m;
  }
  const int64_t stored = d.group_size == 0 ? 1 : rows * d.groups(cols);
  for (int64_t i = 0; i < rows * d.groups(cols); i++) {
    m.group_params.push_back(std::ldexp(1.0f, static_cast<int>(i % stored % 13) - 6));
    if (d.zero_point())
      m.group_params.push_back(
          static_cast<float>(d.int_min + static_cast<int>(i) % (1 << d.element_bits)));
  }
  m.tensor_params.assign(d.tensor_params, 1234.5f);
  return m;
}

/// 32 integers -2^(b-1), +1, ... cycling, packed: words in hexadecimal.
std::string packed_cycle(int bits) {
  std::vector<uint8_t> codes(32);
  for (std::size_t i = 0; i < codes.size(); i++) codes[i] = static_cast<uint8_t>(i % (1u << bits));
  std::vector<uint32_t> words(static_cast<std::size_t>(aq::packed_words(32, bits)));
  aq::pack_words(codes.data(), 32, 1, bits, words.data(), 1);
  std::string text;
  for (const uint32_t word : words) text += (text.empty() ? "" : " ") + fmt::format("{:08x}", word);
  return text;
}

/// A matrix whose bytes are the same everywhere: multiples of 1/64, larger to the right, one row of
/// zeros.
std::vector<float> small_matrix() {
  std::vector<float> weights;
  for (int i = 0; i < 128; i++)
    weights.push_back(static_cast<float>((i * 37 + 11) % 129 - 64) *
                      (i % 64 < 32 ? 0x1p-6f : 0x1p-4f));
  weights.resize(192, 0.0f);
  return weights;
}

std::string golden_lines(const Format& format) {
  std::vector<float> weights = small_matrix();
  const bool two_level = format.desc().two_level();  // then there is one row, of a super-group
  if (two_level) weights.resize(256, 0.3f);
  const int64_t rows = two_level ? 1 : 3, cols = two_level ? 256 : 64;
  const int64_t groups = format.desc().groups(cols);
  const int64_t width = format.desc().width(cols), n_params = format.desc().group_params;
  QuantizedMatrix m;
  m.rows = rows;
  m.cols = cols;
  m.codes.resize(weights.size());
  m.group_params.resize(static_cast<std::size_t>(rows * groups * n_params));
  m.tensor_params = format.fit_tensor(weights, rows, cols, {});
  if (two_level) format.fit(weights, rows, cols, {}, {}, m.group_params);
  for (int64_t g = 0; g < groups; g++) {
    std::vector<float> part, params(static_cast<std::size_t>(rows * n_params));
    for (int64_t r = 0; r < rows; r++)
      part.insert(part.end(), weights.begin() + r * cols + g * width,
                  weights.begin() + r * cols + std::min(cols, (g + 1) * width));
    const int64_t n = static_cast<int64_t>(part.size()) / rows;
    std::vector<std::byte> codes(part.size());
    if (two_level)
      std::copy_n(m.group_params.begin() + g * n_params, n_params, params.begin());
    else
      format.fit(part, rows, n, {}, m.tensor_params, params);
    format.quantize(part, rows, n, params, m.tensor_params, codes, {});
    for (int64_t r = 0; r < rows; r++) {
      std::copy_n(codes.begin() + r * n, n, m.codes.begin() + r * cols + g * width);
      std::copy_n(params.begin() + r * n_params, n_params,
                  m.group_params.begin() + (r * groups + g) * n_params);
    }
  }
  std::string text;
  for (const PackedTensor& t : format.pack(m)) {
    text += fmt::format("{} {} ", label(format), t.info.name);
    for (const std::byte b : t.bytes) text += fmt::format("{:02x}", std::to_integer<int>(b));
    text += "\n";
  }
  return text;
}

}  // namespace

TEST_CASE("packed integers are what compressed-tensors packs") {
  CHECK(packed_cycle(2) == "e4e4e4e4 e4e4e4e4");
  CHECK(packed_cycle(3) == "88fac688 c688fac6 fac688fa");
  CHECK(packed_cycle(4) == "76543210 fedcba98 76543210 fedcba98");
  CHECK(packed_cycle(6) == "440c2040 a2481c61 3ce34c2c 544d2450 a6585d65 7de75c6d");
  CHECK(packed_cycle(8).starts_with("03020100"));
}

TEST_CASE("every format: unpacking gives back what was packed, also at odd sizes") {
  for (const auto& format : variants()) {
    CAPTURE(label(*format));
    const FormatDesc& d = format->desc();
    const bool any_size = format->config()["format"].get<std::string>().find("mx") != 0 &&
                          format->id() != "nvfp4" && !d.two_level();
    for (const int64_t rows : {1, 3, 9})
      for (const int64_t cols : {1, 7, 33, 64, 129}) {
        const int64_t width = any_size ? cols : cols * d.fit_width(cols);
        const QuantizedMatrix m = counting_matrix(*format, rows, width);
        const QuantizedMatrix back = format->unpack(rows, width, spans_of(format->pack(m)));
        REQUIRE(back.codes == m.codes);
        REQUIRE(back.group_params == m.group_params);
        REQUIRE(back.tensor_params == m.tensor_params);
      }
  }
}

TEST_CASE("a format that stores no shape refuses rows that its groups do not fill") {
  for (const auto& format : variants())
    if (format->id() == "mxfp4" || format->id() == "nvfp4" || format->desc().two_level())
      CHECK_THROWS_AS(format->packed(4, 40), Error);
}

TEST_CASE("NaN and infinity in a file are refused: as a code, as a scale") {
  for (const auto& format : variants()) {
    if (!format->id().ends_with("fp8") && !format->id().starts_with("mx")) continue;
    CAPTURE(label(*format));
    const auto damaged = [&](std::size_t tensor, std::byte value) {
      std::vector<PackedTensor> packed = format->pack(counting_matrix(*format, 2, 64));
      packed[tensor].bytes.back() = value;
      if (packed[tensor].bytes.size() > 1)
        packed[tensor].bytes[packed[tensor].bytes.size() - 2] = value;
      return packed;
    };
    if (format->desc().element_bits == 8)
      CHECK_THROWS_AS(format->unpack(2, 64, spans_of(damaged(0, std::byte{0x7f}))), Error);
    CHECK_THROWS_AS(format->unpack(2, 64, spans_of(damaged(1, std::byte{0xff}))), Error);
  }
}

TEST_CASE("the bytes of a small matrix in every format stay what they were") {
  std::string text;
  for (const auto& format : variants()) text += golden_lines(*format);
  const std::string path = AQ_TESTS_DIR "/golden/formats.txt";
  if (std::getenv("AQ_WRITE_GOLDEN") != nullptr) write_file(path, text);
  CHECK(text == read_file(path));
}

}  // namespace aqhost
