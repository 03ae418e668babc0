// fp4: 4-bit floats (0 .5 1 1.5 2 3 4 6) under a real-valued scale; only we read it.

#include <aq/sdk/table_format.hpp>

namespace {

struct Fp4 {
  static constexpr aq::Descriptor kDescriptor{"fp4", "FP4", "1.0.0", "AlphaQuant",
                                              "E2M1 in groups with a real-valued scale"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    const nlohmann::json config{{"format", "fp4-pack-quantized"}, {"quant_method", "alphaquant"}};
    return std::make_unique<aq::ScaledFormat>(4, aq::float_values(aq::kE2M1, 4),
                                              std::vector{32, 16, 64, 128, -1}, "bfloat16", nullptr,
                                              config, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Fp4);
