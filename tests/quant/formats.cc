#include "quant/formats.h"

#include <algorithm>
#include <aq/sdk/int_format.hpp>
#include <cmath>

namespace aqhost {
namespace {

std::unique_ptr<const Format> open(std::unique_ptr<const aq::Quantizer> format) {
  auto* object = new aq::detail::QuantizerObject(std::move(format));  // destroyed through its table
  return std::make_unique<const Format>(&object->table, "test", "test.so", Json::object());
}

/// A spec whose groups and storage are those of a test: nothing is ever packed.
aq::FormatSpec test_spec(int32_t group_size) {
  aq::FormatSpec spec;
  spec.group_size = {group_size, {group_size}};
  spec.packed = {aq::packed_codes("weight_packed", "U8")};
  spec.config = {{"format", "test"}};
  return spec;
}

aq::FormatSpec fp4_spec(const std::string& scales, int32_t group_size) {
  aq::FormatSpec spec = test_spec(group_size);
  for (const float sign : {1.0f, -1.0f})
    for (const float v : {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f})
      spec.values.push_back(std::copysign(v, sign));
  if (scales == "mx") {
    spec.scale = {.kind = AQ_SCALE_E8M0, .round = AQ_ROUND_EVEN, .mantissa_bits = 1, .divisor = 4};
    spec.search = {1.0f, 2.0f, 0.5f};
  } else if (scales == "f32") {
    spec.scale.kind = AQ_SCALE_F32;
    spec.search = aq::shrink_factors();
  } else {
    spec.scale = {.kind = AQ_SCALE_E4M3, .global_max = 448 * 6};
  }
  return spec;
}

aq::FormatSpec two_level_spec(int bits) {
  aq::FormatSpec spec = test_spec(16);
  spec.scale.kind = AQ_SCALE_F16;
  spec.integers = bits == 3 ? aq::IntRange{-4, 3} : aq::IntRange{0, (1 << bits) - 1};
  spec.two_level = {.super_size = 64, .range = {1, 63}, .minimum_max = 63};
  if (bits == 3) spec.two_level = {.super_size = 64, .range = {-32, 31}};
  spec.search = {1.1f, 1.0f, 0.9f, 0.8f, 0.7f, 0.6f};
  return spec;
}

aq::FormatSpec pair_spec() {
  aq::FormatSpec spec = test_spec(16);
  spec.scale.kind = AQ_SCALE_F32;
  spec.custom = {.fit = true, .codes = true, .bits = 8, .vector_dim = 2};
  return spec;
}

class PairFormat : public aq::Quantizer {
 public:
  PairFormat() : Quantizer(pair_spec()) {}
  void fit(const aq_fit_args& args) const override {
    const int64_t rows = args.weight->shape[0], n = args.weight->shape[1];
    const auto* w = aq::view<const float>(args.weight, "weight", {-1, -1});
    auto* scale = aq::view<float>(args.params, "params", {rows, 1});
    for (int64_t r = 0; r < rows; r++) {
      float most = 1e-6f;
      for (int64_t i = 0; i < n; i++) most = std::max(most, std::fabs(w[r * n + i]));
      scale[r] = most / 7.5f;
    }
  }
  void quantize(const aq_code_args& args) const override {
    const int64_t rows = args.weight->shape[0], n = args.weight->shape[1];
    const auto* w = aq::view<const float>(args.weight, "weight", {-1, -1});
    const auto* scale = aq::view<const float>(args.group_params, "params", {rows, 1});
    auto* codes = aq::optional_view<uint8_t>(args.codes, "codes", {rows, n / 2});
    auto* values = aq::optional_view<float>(args.values, "values", {rows, n});
    for (int64_t i = 0; i < rows * n; i++) {
      const float step = scale[i / n];
      const float q = std::clamp(std::nearbyint(w[i] / step), -8.0f, 7.0f);
      const auto nibble = static_cast<uint8_t>(static_cast<int>(q) + 8);
      if (values != nullptr) values[i] = q * step;
      if (codes == nullptr) continue;
      codes[i / 2] = static_cast<uint8_t>(i % 2 == 0 ? nibble : codes[i / 2] | nibble << 4);
    }
  }
};

std::unique_ptr<const Format> open_int(int bits, const Json& json, bool by_callbacks) {
  aq::Options options(json);
  aq::FormatSpec spec = aq::int_format(bits, options);
  options.done();
  spec.custom.codes = by_callbacks;
  return open(aq::detail::made(std::move(spec)));
}

}  // namespace

std::unique_ptr<const Format> int_format(int bits, const Json& options) {
  return open_int(bits, options, false);
}

std::unique_ptr<const Format> int_format_by_callbacks(int bits, const Json& options) {
  return open_int(bits, options, true);
}

std::unique_ptr<const Format> fp4_format(const std::string& scales, int32_t group_size) {
  return open(aq::detail::made(fp4_spec(scales, group_size)));
}

std::unique_ptr<const Format> two_level_format(int bits) {
  return open(aq::detail::made(two_level_spec(bits)));
}

std::unique_ptr<const Format> pair_format() { return open(std::make_unique<PairFormat>()); }

}  // namespace aqhost
