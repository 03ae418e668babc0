// template_name: weights are -1, 0 or 1 times a scale. Five of them fit into a byte: 3^5 = 243.
#include <aq/sdk/format.hpp>

namespace {

struct TemplateName {
  static constexpr aq::Descriptor kDescriptor{"template_name", "TemplateName", "0.1.0", "you",
                                              "-1, 0 and 1, five in a byte"};

  static aq::FormatSpec create(aq::Options& options) {
    return {.values = {-1, 0, 1},  // by code
            .scale = {.kind = AQ_SCALE_F16},
            .search = aq::shrink_factors(),
            .group_size = options.group_size(64, {32, 64, 128}),
            .packed = {aq::packed_rows("weight_packed", "U8", {size, pack, unpack}),
                       aq::packed_scales(), aq::packed_shape()},
            .config = {{"format", "template_name-packed"}, {"quant_method", "template_name"}}};
  }

 private:
  static int64_t size(int64_t n) { return (n + 4) / 5; }  // bytes of a row of n codes

  static void pack(const uint8_t* codes, int64_t n, uint8_t* bytes) {
    std::fill_n(bytes, size(n), uint8_t{0});
    for (int64_t i = n - 1; i >= 0; i--)  // the first code is the lowest digit
      bytes[i / 5] = static_cast<uint8_t>(3 * bytes[i / 5] + codes[i]);
  }

  static void unpack(const uint8_t* bytes, int64_t n, uint8_t* codes) {
    constexpr int kPowers[]{1, 3, 9, 27, 81};
    for (int64_t i = 0; i < n; i++)
      codes[i] = static_cast<uint8_t>(bytes[i / 5] / kPowers[i % 5] % 3);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(TemplateName);
