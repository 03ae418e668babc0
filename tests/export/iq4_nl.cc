// A format with the 16 values of llama.cpp's type IQ4_NL (kvalues_iq4nl in ggml-common.h), half as
// large, for the tests of GGUF. It is no format for use: no value is 0, and a group of zeros has
// the scale 1.

#include <aq/sdk/table_format.hpp>
#include <array>

namespace {

constexpr std::array kValues{-63.5f, -52.0f, -41.5f, -32.5f, -24.5f, -17.5f, -11.0f, -5.0f,
                             0.5f,   6.5f,   12.5f,  19.0f,  26.5f,  34.5f,  44.5f,  56.5f};

struct Iq4Nl {
  static constexpr aq::Descriptor kDescriptor{"iq4_nl", "IQ4_NL", "1.0.0", "AlphaQuant",
                                              "the 16 values of llama.cpp's IQ4_NL in groups"};

  static aq::FormatSpec create(aq::Options& options) {
    return aq::scaled_format(
        {.values = {kValues.begin(), kValues.end()}, .group_sizes = {32, 64, 128, 256}},
        {{"format", "iq4-nl-pack-quantized"}, {"quant_method", "alphaquant"}}, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Iq4Nl);
