// int6: 6-bit integers, symmetric or with zero points.

#include <aq/sdk/int_format.hpp>

namespace {

struct Int6 {
  static constexpr aq::Descriptor kDescriptor{"int6", "INT6", "1.0.0", "AlphaQuant",
                                              "6-bit integers in groups, pack-quantized"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    return std::make_unique<aq::IntFormat>(6, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Int6);
