// Two formats in one library: 8 and 32 evenly spaced values, with a float32 scale for each row.
#include <aq/sdk/format.hpp>

namespace {

aq::FormatSpec steps(int bits, const char* name, aq::Options& options) {
  aq::FormatSpec spec;
  const int half = 1 << (bits - 1);
  for (int i = -half; i < half; i++)
    spec.values.push_back((static_cast<float>(i) + 0.5f) / static_cast<float>(half));
  spec.scale = {.kind = AQ_SCALE_F32, .divisor = 1};
  spec.search = aq::shrink_factors();
  spec.group_size = options.group_size(-1, {-1});
  spec.packed = {aq::packed_codes("weight_packed", "I32"), aq::packed_scales(), aq::packed_shape()};
  spec.config = {{"format", name}, {"quant_method", "steps"}};
  return spec;
}

struct Steps3 {
  static constexpr aq::Descriptor kDescriptor{"steps3", "Steps", "1.0.0", "an example", "8 steps"};
  static aq::FormatSpec create(aq::Options& options) { return steps(3, "steps3", options); }
};

struct Steps5 {
  static constexpr aq::Descriptor kDescriptor{"steps5", "Steps", "1.0.0", "an example", "32 steps"};
  static aq::FormatSpec create(aq::Options& options) { return steps(5, "steps5", options); }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Steps3, Steps5);
