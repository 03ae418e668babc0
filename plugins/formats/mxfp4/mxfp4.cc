// mxfp4: 4-bit floats (0 .5 1 1.5 2 3 4 6) in OCP MX blocks; what engines load for experts.

#include <aq/sdk/table_format.hpp>

namespace {

struct Mxfp4 {
  static constexpr aq::Descriptor kDescriptor{
      "mxfp4", "MXFP4", "1.0.0", "AlphaQuant",
      "E2M1 in blocks of 32 with a power of 2 (OCP MX v1.0)"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    return std::make_unique<aq::MxFormat>(
        4, aq::kE2M1, 1, nullptr, nlohmann::json{{"format", "mxfp4-pack-quantized"}}, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Mxfp4);
