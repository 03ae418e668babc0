// int8: 8-bit integers, symmetric or with zero points.

#include <aq/sdk/int_format.hpp>

namespace {

struct Int8 {
  static constexpr aq::Descriptor kDescriptor{"int8", "INT8", "1.0.0", "AlphaQuant",
                                              "8-bit integers in groups, pack-quantized"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    return std::make_unique<aq::IntFormat>(8, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Int8);
