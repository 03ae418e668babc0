// fp8: 8-bit floats (OCP FP8): E4M3, which engines load, or E5M2, which only aqhost reads.

#include <aq/sdk/table_format.hpp>

namespace {

struct Fp8 {
  static constexpr aq::Descriptor kDescriptor{"fp8", "FP8", "1.0.0", "AlphaQuant",
                                              "E4M3 or E5M2 with a scale for each row or matrix"};

  static aq::FormatSpec create(aq::Options& options) {
    const bool wide = options.choice("element", "e4m3", {"e4m3", "e5m2"}) == "e5m2";
    const bool alone = options.activations().empty();
    nlohmann::json config{{"format", alone ? "naive-quantized" : "float-quantized"}};
    if (wide) {
      config["quant_method"] = "alphaquant";
      config["weights"]["element"] = "e5m2";
    }
    return aq::scaled_format({.values = aq::float_values(wide ? aq::kE5M2 : aq::kE4M3, 8),
                              .group_sizes = {-1, 0},
                              .scale_dtype = "float32",
                              .code_type = wide ? "F8_E5M2" : "F8_E4M3"},
                             config, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Fp8);
