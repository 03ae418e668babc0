// nvfp4: NVIDIA's FP4: E2M1 in groups of 16, whose E4M3 scales share one float32 scale per matrix.

#include <aq/sdk/table_format.hpp>

namespace {

struct Nvfp4 {
  static constexpr aq::Descriptor kDescriptor{
      "nvfp4", "NVFP4", "1.0.0", "AlphaQuant",
      "E2M1 in groups of 16, scales in E4M3 under one global scale"};

  static aq::FormatSpec create(aq::Options& options) {
    aq::FormatSpec spec;
    spec.values = aq::float_values(aq::kE2M1, 4);
    spec.group_size = options.group_size(16, {16});
    spec.dynamic = options.dynamic();
    spec.scale = {.kind = AQ_SCALE_E4M3, .global_max = aq::kE4M3.max * aq::kE2M1.max};
    spec.search = aq::scale_rule(options, spec.dynamic, aq::float_factors());
    spec.packed = {aq::packed_codes("weight_packed", "U8"), aq::packed_scales(),
                   aq::packed_tensor_params("weight_global_scale", {1})};
    spec.config = {{"format", "nvfp4-pack-quantized"}};
    spec.whole_groups = true;
    return spec;
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Nvfp4);
