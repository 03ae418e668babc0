// fp4: 4-bit floats (0 .5 1 1.5 2 3 4 6) with a real-valued scale. Only aqhost reads this format.

#include <aq/sdk/table_format.hpp>

namespace {

struct Fp4 {
  static constexpr aq::Descriptor kDescriptor{"fp4", "FP4", "1.0.0", "AlphaQuant",
                                              "E2M1 in groups with a real-valued scale"};

  static aq::FormatSpec create(aq::Options& options) {
    return aq::scaled_format(
        {.values = aq::float_values(aq::kE2M1, 4), .group_sizes = {32, 16, 64, 128, -1}},
        {{"format", "fp4-pack-quantized"}, {"quant_method", "alphaquant"}}, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Fp4);
