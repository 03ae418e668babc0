// aq/sdk/table_format.hpp - formats whose codes are indices into a table: small floats, quantiles.
// Each module is stored in these tensors, as in compressed-tensors 0.20:
//   weight_packed        u8 [rows, ceil(cols * bits / 8)]  below 8 bits: little-endian bit stream
//   weight               f8 [rows, cols]                   8 bits: the codes themselves
//   weight_scale         [rows, groups], or [1] if the whole matrix shares one scale; the type is
//                        E8M0 (u8, exponent + 127), E4M3, bf16, fp16 or f32
//   weight_global_scale  f32 [1]                           nvfp4
//   weight_shape         i64 [2]                           scaled_format() below 8 bits
#pragma once

#include <aq/sdk/format.hpp>

namespace aq {
namespace detail {

/// The codes of a small float. `type` is that of 8-bit codes. Codes of 8 bits for NaN or infinity
/// are refused: those with the largest value, but for the first of them; see float_values().
inline PackedTensor packed_floats(std::size_t values, const char* type) {
  if (values < 256) return packed_codes("weight_packed", "U8");
  PackedTensor tensor = packed_codes("weight", type);
  tensor.unpack = [read = tensor.unpack](const void* from, const UnpackTarget& to) {
    read(from, to);
    for (int64_t i = 0; i < to.rows * to.cols; i++) {
      const int magnitude = to.codes[i] & 0x7f;
      if (magnitude > 0 && to.desc.values[magnitude] == to.desc.values[magnitude - 1])
        throw Error("a code is NaN or infinite: the file is damaged");
    }
  };
  return tensor;
}

}  // namespace detail

/// What MX formats differ in.
struct MxElement {
  SmallFloat type;
  int bits;
  int even_bits;                 // mantissa bits to which the rule `even` rounds
  const char* code_type = "U8";  // type of 8-bit codes
};

/// A microscaling format (OCP MX v1.0): floats in blocks of 32 along a row; a block shares a power
/// of 2 as its scale. `config` is FormatSpec::config. Options: group_size (32), and scale_rule for
/// the exponent e = floor(log2 absmax) - emax:
///   floor  e, as OCP defines it
///   even   absmax is first rounded to the element's precision, as compressed-tensors does
///   ceil   the smallest power of 2 with which no weight saturates
///   mse    that of e, e - 1 and e + 1 with the minimum squared error (the default for weights;
///          the default for activations is `even`)
inline FormatSpec mx_format(const MxElement& element, nlohmann::json config, Options& options) {
  FormatSpec spec;
  spec.dynamic = options.dynamic();
  const std::string rule =
      options.choice("scale_rule", spec.dynamic ? "even" : "mse", {"mse", "floor", "even", "ceil"});
  spec.values = float_values(element.type, element.bits);
  spec.scale.kind = AQ_SCALE_E8M0;
  spec.scale.round = rule == "ceil" ? AQ_ROUND_UP : rule == "even" ? AQ_ROUND_EVEN : AQ_ROUND_DOWN;
  spec.scale.mantissa_bits = element.even_bits;
  // ceil: the smallest power of 2 for which absmax / 2^e is at most `max`
  const float max = element.type.max;
  spec.scale.divisor = rule == "ceil" ? max : std::ldexp(1.0f, std::ilogb(max));
  if (rule == "mse") spec.search = {1, 0.5f, 2};
  spec.group_size = options.group_size(32, {32});
  spec.packed = {detail::packed_floats(spec.values.size(), element.code_type), packed_scales()};
  spec.config = std::move(config);
  spec.config["weights"]["zp_dtype"] = "torch.uint8";
  spec.whole_groups = true;
  return spec;
}

/// What tables with real-valued scales differ in.
struct ScaledTable {
  std::vector<float> values;
  std::vector<int32_t> group_sizes;      // the first one is the default
  const char* scale_dtype = "bfloat16";  // the default of the option, except for activations
  const char* code_type = "U8";          // type of 8-bit codes
};

/// A table with a real-valued scale for each group, row or matrix: absmax / the largest value.
/// `config` is FormatSpec::config. Options: group_size, scale_rule (mse or absmax), scale_dtype
/// (bfloat16, float16, float32).
inline FormatSpec scaled_format(ScaledTable table, nlohmann::json config, Options& options) {
  FormatSpec spec;
  const int32_t size = table.group_sizes.front();
  spec.group_size = options.group_size(size, std::move(table.group_sizes));
  spec.dynamic = options.dynamic();
  const std::string type =
      options.choice("scale_dtype", spec.dynamic ? "float32" : table.scale_dtype,
                     {"bfloat16", "float16", "float32"});
  spec.scale.kind = type == "bfloat16"  ? AQ_SCALE_BF16
                    : type == "float16" ? AQ_SCALE_F16
                                        : AQ_SCALE_F32;
  // Of 256 values, neighbours differ so little everywhere that nothing is gained above factor 1.
  spec.search = scale_rule(options, spec.dynamic,
                           table.values.size() < 256 ? float_factors() : shrink_factors());
  spec.values = std::move(table.values);
  spec.packed = {detail::packed_floats(spec.values.size(), table.code_type), packed_scales()};
  if (spec.values.size() < 256) spec.packed.push_back(packed_shape());
  spec.config = std::move(config);
  return spec;
}

}  // namespace aq
