// nf4: NormalFloat, the quantiles of N(0,1) in 16 values (QLoRA, arXiv:2305.14314, appendix E);
// only we read it.

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

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    options.choice("element", "nf4", {"nf4"});  // as the config group below says it
    const nlohmann::json config{{"format", "nf4-pack-quantized"},
                                {"quant_method", "alphaquant"},
                                {"weights", {{"element", "nf4"}}}};
    return std::make_unique<aq::ScaledFormat>(4, std::vector<float>(kValues.begin(), kValues.end()),
                                              std::vector{64, 16, 32, 128, 256}, "bfloat16",
                                              nullptr, config, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Nf4);
