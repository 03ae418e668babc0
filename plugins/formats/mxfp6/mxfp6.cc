// mxfp6: 6-bit floats in OCP MX blocks: E2M3, which compressed-tensors knows, or E3M2, which only
// we read.

#include <aq/sdk/table_format.hpp>

namespace {

struct Mxfp6 {
  static constexpr aq::Descriptor kDescriptor{
      "mxfp6", "MXFP6", "1.0.0", "AlphaQuant",
      "E2M3 (or E3M2) in blocks of 32 with a power of 2 (OCP MX v1.0)"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    nlohmann::json config{{"format", "mxfp6-pack-quantized"}};
    if (options.choice("element", "e2m3", {"e2m3", "e3m2"}) == "e2m3")
      return std::make_unique<aq::MxFormat>(6, aq::kE2M3, 3, nullptr, config, options);
    config["quant_method"] = "alphaquant";
    config["weights"]["element"] = "e3m2";
    return std::make_unique<aq::MxFormat>(6, aq::kE3M2, 2, nullptr, config, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Mxfp6);
