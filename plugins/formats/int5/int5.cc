// int5: 5-bit integers, symmetric or with zero points.

#include <aq/sdk/int_format.hpp>

namespace {

struct Int5 {
  static constexpr aq::Descriptor kDescriptor{"int5", "INT5", "1.0.0", "AlphaQuant",
                                              "5-bit integers in groups, pack-quantized"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    return std::make_unique<aq::IntFormat>(5, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Int5);
