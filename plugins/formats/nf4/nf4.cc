// nf4: NormalFloat, 16 quantiles of N(0, 1) (QLoRA, arXiv:2305.14314, appendix E). Only aqhost
// reads this format.

#include <aq/sdk/table_format.hpp>
#include <array>

namespace {

constexpr std::array kValues{-1.0f,
                             -0.6961928009986877f,
                             -0.5250730514526367f,
                             -0.39491748809814453f,
                             -0.28444138169288635f,
                             -0.18477343022823334f,
                             -0.09105003625154495f,
                             0.0f,
                             0.07958029955625534f,
                             0.16093020141124725f,
                             0.24611230194568634f,
                             0.33791524171829224f,
                             0.44070982933044434f,
                             0.5626170039176941f,
                             0.7229568362236023f,
                             1.0f};

struct Nf4 {
  static constexpr aq::Descriptor kDescriptor{"nf4", "NF4", "1.0.0", "AlphaQuant",
                                              "the 16 quantiles of QLoRA in groups"};

  static aq::FormatSpec create(aq::Options& options) {
    options.choice("element", "nf4", {"nf4"});  // as the config below has it
    return aq::scaled_format(
        {.values = {kValues.begin(), kValues.end()}, .group_sizes = {64, 16, 32, 128, 256}},
        {{"format", "nf4-pack-quantized"},
         {"quant_method", "alphaquant"},
         {"weights", {{"element", "nf4"}}}},
        options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Nf4);
