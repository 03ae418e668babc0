// mxfp6: 6-bit floats in OCP MX blocks: E2M3, which compressed-tensors knows, or E3M2, which only
// aqhost reads.

#include <aq/sdk/table_format.hpp>

namespace {

struct Mxfp6 {
  static constexpr aq::Descriptor kDescriptor{
      "mxfp6", "MXFP6", "1.0.0", "AlphaQuant",
      "E2M3 (or E3M2) in blocks of 32 with a power of 2 (OCP MX v1.0)"};

  static aq::FormatSpec create(aq::Options& options) {
    nlohmann::json config{{"format", "mxfp6-pack-quantized"}};
    if (options.choice("element", "e2m3", {"e2m3", "e3m2"}) == "e2m3")
      return aq::mx_format({.type = aq::kE2M3, .bits = 6, .even_bits = 3}, config, options);
    config["quant_method"] = "alphaquant";
    config["weights"]["element"] = "e3m2";
    return aq::mx_format({.type = aq::kE3M2, .bits = 6, .even_bits = 2}, config, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Mxfp6);
