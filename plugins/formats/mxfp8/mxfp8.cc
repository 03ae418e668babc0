// mxfp8: 8-bit floats in OCP MX blocks: E4M3, which engines load, or E5M2, which only aqhost reads.

#include <aq/sdk/table_format.hpp>

namespace {

struct Mxfp8 {
  static constexpr aq::Descriptor kDescriptor{
      "mxfp8", "MXFP8", "1.0.0", "AlphaQuant",
      "E4M3 (or E5M2) in blocks of 32 with a power of 2 (OCP MX v1.0)"};

  static aq::FormatSpec create(aq::Options& options) {
    nlohmann::json config{{"format", "mxfp8-quantized"}};
    if (options.choice("element", "e4m3", {"e4m3", "e5m2"}) == "e4m3")
      return aq::mx_format({.type = aq::kE4M3, .bits = 8, .even_bits = 1, .code_type = "F8_E4M3"},
                           config, options);
    config["quant_method"] = "alphaquant";
    config["weights"]["element"] = "e5m2";
    return aq::mx_format({.type = aq::kE5M2, .bits = 8, .even_bits = 2, .code_type = "F8_E5M2"},
                         config, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Mxfp8);
