// fp6: 6-bit floats, E2M3 or E3M2, with a real-valued scale. Only aqhost reads this format.

#include <aq/sdk/table_format.hpp>

namespace {

struct Fp6 {
  static constexpr aq::Descriptor kDescriptor{"fp6", "FP6", "1.0.0", "AlphaQuant",
                                              "E2M3 or E3M2 in groups with a real-valued scale"};

  static aq::FormatSpec create(aq::Options& options) {
    const std::string element = options.choice("element", "e2m3", {"e2m3", "e3m2"});
    return aq::scaled_format(
        {.values = aq::float_values(element == "e2m3" ? aq::kE2M3 : aq::kE3M2, 6),
         .group_sizes = {64, 32, 128, -1}},
        {{"format", "fp6-pack-quantized"},
         {"quant_method", "alphaquant"},
         {"weights", {{"element", element}}}},
        options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Fp6);
