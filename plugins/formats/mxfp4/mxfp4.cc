// mxfp4: 4-bit floats (0 .5 1 1.5 2 3 4 6) in OCP MX blocks. Engines load experts in this format.

#include <aq/sdk/table_format.hpp>

namespace {

struct Mxfp4 {
  static constexpr aq::Descriptor kDescriptor{
      "mxfp4", "MXFP4", "1.0.0", "AlphaQuant",
      "E2M1 in blocks of 32 with a power of 2 (OCP MX v1.0)"};

  static aq::FormatSpec create(aq::Options& options) {
    return aq::mx_format({.type = aq::kE2M1, .bits = 4, .even_bits = 1},
                         {{"format", "mxfp4-pack-quantized"}}, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Mxfp4);
