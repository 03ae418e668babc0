// int4: 4-bit integers, symmetric or with zero points; what vLLM, SGLang and transformers load
// best.

#include <aq/sdk/int_format.hpp>

namespace {

struct Int4 {
  static constexpr aq::Descriptor kDescriptor{"int4", "INT4", "1.0.0", "AlphaQuant",
                                              "4-bit integers in groups, pack-quantized"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    return std::make_unique<aq::IntFormat>(4, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Int4);
