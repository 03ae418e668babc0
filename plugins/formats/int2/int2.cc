// int2: 2-bit integers, symmetric or with zero points.

#include <aq/sdk/int_format.hpp>

namespace {

struct Int2 {
  static constexpr aq::Descriptor kDescriptor{"int2", "INT2", "1.0.0", "AlphaQuant",
                                              "2-bit integers in groups, pack-quantized"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    return std::make_unique<aq::IntFormat>(2, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Int2);
