// int3: 3-bit integers, symmetric or with zero points.

#include <aq/sdk/int_format.hpp>

namespace {

struct Int3 {
  static constexpr aq::Descriptor kDescriptor{"int3", "INT3", "1.0.0", "AlphaQuant",
                                              "3-bit integers in groups, pack-quantized"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    return std::make_unique<aq::IntFormat>(3, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Int3);
