// aq/sdk/table_format.hpp - formats whose codes are indices into a table: small floats, quantiles.
#pragma once

#include <aq/sdk/format.hpp>
#include <aq/sdk/pack.hpp>
#include <cstring>

namespace aq {

/// A format of at most 8 bits that is given by the values of its codes; its storage follows from
/// its description. Each module is stored in these tensors, as in compressed-tensors 0.20:
///   weight_packed        u8 [rows, ceil(cols * bits / 8)]  below 8 bits: little-endian bit stream
///   weight               f8 [rows, cols]                   8 bits: the codes themselves
///   weight_scale         [rows, groups], or [1] if the whole matrix shares one scale; the type is
///                        E8M0 (u8, exponent + 127), E4M3, bf16, fp16 or f32
///   weight_global_scale  f32 [1]                           with AQ_FORMAT_GLOBAL_SCALE
///   weight_shape         i64 [2]                           if `stores_shape_`
/// A subclass fills desc_ (group size, scale, search) and search_, then calls finish().
class TableFormat : public DescribedFormat {
 public:
  std::vector<Packed> packed(int64_t rows, int64_t cols) const override {
    if (!stores_shape_ && desc_.group_size > 0 && cols % desc_.group_size != 0)
      throw Error("groups of " + std::to_string(desc_.group_size) + " do not divide a row of " +
                      std::to_string(cols),
                  AQ_UNSUPPORTED);
    std::vector<Packed> tensors;
    if (desc_.element_bits == 8)
      tensors.push_back({"weight", code_type_, kU8, {rows, cols}});
    else
      tensors.push_back(
          {"weight_packed", "U8", kU8, {rows, packed_words(cols, desc_.element_bits, 8)}});
    const ScaleType type = scale_type();
    if (desc_.group_size == 0)
      tensors.push_back({"weight_scale", type.name, type.dtype, {1}});
    else
      tensors.push_back({"weight_scale", type.name, type.dtype, {rows, groups(cols)}});
    if (has_global()) tensors.push_back({"weight_global_scale", "F32", kF32, {1}});
    if (stores_shape_) tensors.push_back({"weight_shape", "I64", kI64, {2}});
    return tensors;
  }

  void pack(const aq_pack_args& args) const override {
    const int64_t n = stored_scales(args);
    const int64_t words = packed_words(args.cols, desc_.element_bits, 8);
    const auto* codes = view<const uint8_t>(args.codes, "codes", {args.rows, args.cols});
    const auto* scales =
        view<const float>(args.group_params, "group_params", {args.rows, groups(args.cols), 1});
    auto* packed = static_cast<uint8_t*>(data_of(args.packed[0]));
    for (int64_t r = 0; r < args.rows; r++)
      pack_words(codes + r * args.cols, args.cols, 1, desc_.element_bits, packed + r * words, 1);
    write_scales(scales, n, data_of(args.packed[1]));
    if (has_global())
      std::memcpy(data_of(args.packed[2]), data_of(args.tensor_params), sizeof(float));
    if (!stores_shape_) return;
    const int64_t shape[2] = {args.rows, args.cols};
    std::memcpy(data_of(args.packed[desc_.n_packed - 1]), shape, sizeof shape);
  }

  void unpack(const aq_pack_args& args) const override {
    const int64_t n = stored_scales(args);
    const int64_t words = packed_words(args.cols, desc_.element_bits, 8);
    auto* codes = view<uint8_t>(args.codes, "codes", {args.rows, args.cols});
    auto* scales =
        view<float>(args.group_params, "group_params", {args.rows, groups(args.cols), 1});
    const auto* packed = static_cast<const uint8_t*>(data_of(args.packed[0]));
    for (int64_t r = 0; r < args.rows; r++)
      unpack_words(packed + r * words, 1, desc_.element_bits, codes + r * args.cols, args.cols, 1);
    for (int64_t i = 0; i < args.rows * args.cols; i++)
      if (is_special(codes[i])) throw Error("a code is NaN or infinite: the file is damaged");
    read_scales(data_of(args.packed[1]), n, scales);
    if (desc_.group_size == 0) std::fill(scales, scales + args.rows, scales[0]);
    if (has_global())
      std::memcpy(data_of(args.tensor_params), data_of(args.packed[2]), sizeof(float));
  }

 protected:
  TableFormat(int bits, std::vector<float> values) {
    values_ = std::move(values);
    desc_.element_kind = AQ_ELEM_TABLE;
    desc_.element_bits = bits;
    desc_.fit_rule = AQ_FIT_ABSMAX;
    desc_.group_params = 1;
  }

  /// Completes the description. `config` is the config group; see aq_quantizer::config_json.
  void finish(nlohmann::json config) {
    desc_.tensor_params = has_global() ? 1 : 0;
    desc_.n_packed = 2 + (has_global() ? 1 : 0) + (stores_shape_ ? 1 : 0);
    seal();
    config_ = config.dump();
  }

  /// The object "weights" of a config group, as every float format has it.
  nlohmann::json weights(const char* extent, const nlohmann::json& scale_type,
                         const nlohmann::json& dynamic) const {
    return {
        {"num_bits", desc_.element_bits},
        {"type", "float"},
        {"symmetric", true},
        {"strategy", extent},
        {"group_size", desc_.group_size > 0 ? nlohmann::json(desc_.group_size) : nlohmann::json()},
        {"dynamic", dynamic},
        {"actorder", nullptr},
        {"scale_dtype", scale_type},
        {"zp_dtype", nullptr}};
  }

  bool stores_shape_ = false;
  const char* code_type_ = "F8_E4M3";  // type of 8-bit codes

 private:
  struct ScaleType {
    const char* name;
    DLDataType dtype;
  };
  ScaleType scale_type() const {
    switch (desc_.scale_kind) {
      case AQ_SCALE_E8M0:
        return {"U8", kU8};
      case AQ_SCALE_E4M3:
        return {"F8_E4M3", kU8};
      case AQ_SCALE_BF16:
        return {"BF16", kBFloat};
      case AQ_SCALE_F16:
        return {"F16", kHalf};
      default:
        return {"F32", kF32};
    }
  }

  void write_scales(const float* scales, int64_t n, void* out) const {
    auto* bytes = static_cast<uint8_t*>(out);
    auto* halves = static_cast<uint16_t*>(out);
    for (int64_t i = 0; i < n; i++) switch (desc_.scale_kind) {
        case AQ_SCALE_E8M0:
          bytes[i] = static_cast<uint8_t>(std::ilogb(scales[i]) + 127);
          break;
        case AQ_SCALE_E4M3:
          bytes[i] = e4m3_bits(scales[i]);
          break;
        case AQ_SCALE_BF16:
          halves[i] = bf16_bits(scales[i]);
          break;
        case AQ_SCALE_F16:
          halves[i] = f16_bits(scales[i]);
          break;
        default:
          static_cast<float*>(out)[i] = scales[i];
      }
  }

  void read_scales(const void* in, int64_t n, float* scales) const {
    const auto* bytes = static_cast<const uint8_t*>(in);
    const auto* halves = static_cast<const uint16_t*>(in);
    for (int64_t i = 0; i < n; i++) switch (desc_.scale_kind) {
        case AQ_SCALE_E8M0:  // 255 is NaN
          scales[i] = bytes[i] == 255 ? NAN : std::ldexp(1.0f, bytes[i] - 127);
          break;
        case AQ_SCALE_E4M3:
          scales[i] = from_e4m3(bytes[i]);
          break;
        case AQ_SCALE_BF16:
          scales[i] = from_bf16(halves[i]);
          break;
        case AQ_SCALE_F16:
          scales[i] = from_f16(halves[i]);
          break;
        default:
          scales[i] = static_cast<const float*>(in)[i];
      }
  }

  /// Whether a code is one of several with the largest value, but not the first; see
  /// float_values().
  bool is_special(uint8_t code) const {
    const std::size_t magnitude = code & ((1u << (desc_.element_bits - 1)) - 1);
    return desc_.element_bits == 8 && magnitude > 0 && values_[magnitude] == values_[magnitude - 1];
  }
  int64_t stored_scales(const aq_pack_args& args) const {
    return desc_.group_size == 0 ? 1 : args.rows * groups(args.cols);
  }
  bool has_global() const { return (desc_.flags & AQ_FORMAT_GLOBAL_SCALE) != 0; }
};

/// A microscaling format (OCP MX v1.0): floats in blocks of 32 along a row; a block shares a power
/// of 2 as its scale. Options: group_size (32), and scale_rule for the exponent
/// e = floor(log2 absmax) - emax:
///   floor  e, as OCP defines it
///   even   absmax is first rounded to the element's precision, as compressed-tensors does
///   ceil   the smallest power of 2 with which no weight saturates
///   mse    that of e, e - 1 and e + 1 with the minimum squared error (the default for weights;
///          the default for activations is `even`)
class MxFormat : public TableFormat {
 public:
  /// `even_bits` is the number of mantissa bits to which rule `even` rounds. `config` is the config
  /// group; the constructor adds the common keys of "weights" to the keys that are there already.
  MxFormat(int bits, const SmallFloat& type, int even_bits, const char* code_type,
           nlohmann::json config, Options& options)
      : TableFormat(bits, float_values(type, bits)) {
    const bool dynamic = options.dynamic();
    const std::string rule =
        options.choice("scale_rule", dynamic ? "even" : "mse", {"mse", "floor", "even", "ceil"});
    group_sizes_ = {32};
    desc_.group_size = options.group_size(32, group_sizes_);
    // ceil: the smallest power of 2 for which absmax / 2^e is at most `max`
    desc_.scale_divisor = rule == "ceil" ? type.max : std::ldexp(1.0f, std::ilogb(type.max));
    desc_.scale_kind = AQ_SCALE_E8M0;
    desc_.scale_round = rule == "ceil"   ? AQ_ROUND_UP
                        : rule == "even" ? AQ_ROUND_EVEN
                                         : AQ_ROUND_DOWN;
    desc_.scale_mantissa_bits = even_bits;
    if (rule == "mse") search_ = {1, 0.5f, 2};
    code_type_ = code_type;
    config["weights"].update(weights("group", "torch.uint8", dynamic));
    config["weights"]["zp_dtype"] = "torch.uint8";
    finish(std::move(config));
  }
};

/// A table with a real-valued scale for each group, row or matrix: absmax / the largest value.
/// Options: group_size, scale_rule (mse or absmax), scale_dtype (bfloat16, float16, float32).
class ScaledFormat : public TableFormat {
 public:
  /// The first of `group_sizes` is the default. The constructor fills in "weights" of `config`.
  ScaledFormat(int bits, std::vector<float> values, std::vector<int32_t> group_sizes,
               const char* scale_dtype, const char* code_type, nlohmann::json config,
               Options& options)
      : TableFormat(bits, std::move(values)) {
    group_sizes_ = std::move(group_sizes);
    desc_.group_size = options.group_size(group_sizes_.front(), group_sizes_);
    desc_.scale_divisor = *std::max_element(values_.begin(), values_.end());
    const bool dynamic = options.dynamic();
    const std::string type = options.choice("scale_dtype", dynamic ? "float32" : scale_dtype,
                                            {"bfloat16", "float16", "float32"});
    desc_.scale_kind = type == "bfloat16"  ? AQ_SCALE_BF16
                       : type == "float16" ? AQ_SCALE_F16
                                           : AQ_SCALE_F32;
    const char* rule = dynamic ? "absmax" : "mse";
    if (options.choice("scale_rule", rule, {"mse", "absmax"}) == "mse") search_ = shrink_factors();
    code_type_ = code_type;
    stores_shape_ = bits < 8;
    nlohmann::json scale_type;  // null for activations: readers choose their own type
    if (!dynamic) scale_type = "torch." + type;
    config["weights"].update(weights(strategy(dynamic), scale_type, dynamic));
    finish(std::move(config));
  }
};

}  // namespace aq
