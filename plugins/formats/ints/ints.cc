// int2 to int8: integers, symmetric or with zero points. AQ_BITS is the width as text, such as "4".

#include <aq/sdk/int_format.hpp>

namespace {

struct Int {
  static constexpr aq::Descriptor kDescriptor{"int" AQ_BITS, "INT" AQ_BITS, "1.0.0", "AlphaQuant",
                                              AQ_BITS "-bit integers in groups, pack-quantized"};

  static aq::FormatSpec create(aq::Options& options) {
    return aq::int_format(AQ_BITS[0] - '0', options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Int);
