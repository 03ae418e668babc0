// nvfp4: NVIDIA's FP4: E2M1 in groups of 16 whose E4M3 scales share a float32 one.

#include <aq/sdk/table_format.hpp>

namespace {

class Format : public aq::TableFormat {
 public:
  explicit Format(aq::Options& options) : TableFormat(4, aq::float_values(aq::kE2M1, 4)) {
    group_sizes_ = {16};
    desc_.group_size = options.group_size(16, group_sizes_);
    desc_.flags = AQ_FORMAT_GLOBAL_SCALE;
    desc_.global_max = aq::kE4M3.max * aq::kE2M1.max;
    desc_.scale_kind = AQ_SCALE_E4M3;
    desc_.scale_divisor = aq::kE2M1.max;
    const bool dynamic = options.dynamic();
    if (options.choice("scale_rule", dynamic ? "absmax" : "mse", {"mse", "absmax"}) == "mse")
      search_ = aq::shrink_factors();
    const nlohmann::json kind = dynamic ? nlohmann::json("local") : nlohmann::json(false);
    finish({{"format", "nvfp4-pack-quantized"},
            {"weights", weights("tensor_group", "torch.float8_e4m3fn", kind)}});
  }
};

struct Nvfp4 {
  static constexpr aq::Descriptor kDescriptor{
      "nvfp4", "NVFP4", "1.0.0", "AlphaQuant",
      "E2M1 in groups of 16, scales in E4M3 under one global scale"};

  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    return std::make_unique<Format>(options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Nvfp4);
