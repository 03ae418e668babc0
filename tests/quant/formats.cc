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

class CallbackFormat : public aq::IntFormat {
 public:
  using IntFormat::IntFormat;
  aq_format_desc describe() const override {
    aq_format_desc desc = desc_;
    desc.element_kind = AQ_ELEM_CUSTOM;
    return desc;
  }
};

/// Packs a code a byte and its scales as they are.
class BytesFormat : public aq::DescribedFormat {
 public:
  BytesFormat() {
    desc_.n_packed = 1;
    config_ = R"({"format": "test", "weights": {}})";
  }
  std::vector<aq::Packed> packed(int64_t rows, int64_t cols) const override {
    return {{"weight_packed", "U8", aq::kU8, {rows, cols}}};
  }
  void pack(const aq_pack_args&) const override { throw aq::Error("not in these tests"); }
  void unpack(const aq_pack_args&) const override { throw aq::Error("not in these tests"); }
};

class Fp4Format : public BytesFormat {
 public:
  Fp4Format(const std::string& scales, int32_t group_size) {
    const bool mx = scales == "mx";
    for (const float sign : {1.0f, -1.0f})
      for (const float v : {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f})
        values_.push_back(std::copysign(v, sign));
    group_sizes_ = {group_size};
    desc_.element_kind = AQ_ELEM_TABLE;
    desc_.element_bits = 4;
    desc_.fit_rule = AQ_FIT_ABSMAX;
    desc_.group_size = group_size;
    desc_.group_params = 1;
    desc_.scale_divisor = mx ? 4.0f : 6.0f;
    desc_.scale_kind = mx ? AQ_SCALE_E8M0 : AQ_SCALE_E4M3;
    desc_.scale_round = mx ? AQ_ROUND_EVEN : AQ_ROUND_NEAREST;
    desc_.scale_mantissa_bits = 1;
    if (mx) {
      search_ = {1.0f, 2.0f, 0.5f};
    } else if (scales == "f32") {
      desc_.scale_kind = AQ_SCALE_F32;
      search_ = aq::shrink_factors();
    } else {
      desc_.flags = AQ_FORMAT_GLOBAL_SCALE;
      desc_.tensor_params = 1;
      desc_.global_max = 448 * 6;
    }
    seal();
  }
};

class PairFormat : public BytesFormat {
 public:
  PairFormat() {
    desc_.element_kind = AQ_ELEM_CUSTOM;
    desc_.fit_rule = AQ_FIT_CUSTOM;
    desc_.element_bits = 8;
    desc_.vector_dim = 2;
    desc_.group_params = 1;
    group_sizes_ = {desc_.group_size = 16};
    desc_.group_sizes = group_sizes_.data();
    desc_.n_group_sizes = 1;
  }
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

template <typename Class>
std::unique_ptr<const Format> open_int(int bits, const Json& json) {
  aq::Options options(json);
  auto format = std::make_unique<Class>(bits, options);
  options.done();
  return open(std::move(format));
}

}  // namespace

std::unique_ptr<const Format> int_format(int bits, const Json& options) {
  return open_int<aq::IntFormat>(bits, options);
}

std::unique_ptr<const Format> int_format_by_callbacks(int bits, const Json& options) {
  return open_int<CallbackFormat>(bits, options);
}

std::unique_ptr<const Format> fp4_format(const std::string& scales, int32_t group_size) {
  return open(std::make_unique<Fp4Format>(scales, group_size));
}

std::unique_ptr<const Format> pair_format() { return open(std::make_unique<PairFormat>()); }

}  // namespace aqhost
