// aq/sdk/int_format.hpp - integer formats, stored as "pack-quantized" of compressed-tensors.
#pragma once

#include <aq/sdk/format.hpp>
#include <aq/sdk/pack.hpp>
#include <cstring>

namespace aq {

/// Integers of b = 2 to 8 bits in [-2^(b-1), 2^(b-1) - 1] with bf16 (or fp16) scales, either
/// symmetric or with an integer zero point per group. Each module is stored in these tensors
/// (compressed-tensors 0.20, "pack-quantized"):
///   weight_packed      i32 [rows, ceil(cols * b / 32)]    code = q + 2^(b-1)
///   weight_scale       bf16 [rows, groups]
///   weight_zero_point  i32 [ceil(rows * b / 32), groups]  if asymmetric; packed along rows
///   weight_shape       i64 [2]
/// If activations are rounded too, b is 8 and the tensors are ("int-quantized"):
///   weight             i8 [rows, cols]                    q
///   weight_scale       bf16 [rows, 1], or [1] if the whole matrix shares one scale
/// Options: group_size, symmetric, scale_rule (mse or absmax), scale_dtype.
class IntFormat : public DescribedFormat {
 public:
  IntFormat(int bits, Options& options)
      : bits_(bits),
        dynamic_(options.dynamic()),
        plain_(bits == 8 && !options.activations().empty()) {
    if (plain_)
      group_sizes_ = {-1, 0};
    else
      group_sizes_ = {16, 32, 64, 128, 256, -1};
    symmetric_ = dynamic_ || plain_ || options.flag("symmetric", true);
    half_ = options.choice("scale_dtype", "bfloat16", {"bfloat16", "float16"}) == "float16";
    const char* rule = dynamic_ ? "absmax" : "mse";
    if (options.choice("scale_rule", rule, {"mse", "absmax"}) == "mse") search_ = shrink_factors();
    desc_.group_size = options.group_size(dynamic_ || plain_ ? -1 : 128, group_sizes_);
    desc_.element_kind = AQ_ELEM_INT;
    desc_.element_bits = bits;
    desc_.int_min = -(1 << (bits - 1));
    desc_.int_max = (1 << (bits - 1)) - 1;
    desc_.fit_rule = symmetric_ ? AQ_FIT_ABSMAX : AQ_FIT_MINMAX;
    desc_.scale_divisor = static_cast<float>(desc_.int_max - desc_.int_min) / 2;
    desc_.scale_kind = dynamic_ ? AQ_SCALE_F32 : half_ ? AQ_SCALE_F16 : AQ_SCALE_BF16;
    desc_.group_params = symmetric_ ? 1 : 2;
    desc_.flags = symmetric_ ? 0 : AQ_FORMAT_ZERO_POINT;
    desc_.n_packed = plain_ ? 2 : symmetric_ ? 3 : 4;
    seal();
    config_ = describe_config().dump();
  }

  std::vector<Packed> packed(int64_t rows, int64_t cols) const override {
    const DLDataType scale = half_ ? kHalf : kBFloat;
    if (plain_) {
      std::vector<Packed> two{{"weight", "I8", kI8, {rows, cols}},
                              {"weight_scale", half_ ? "F16" : "BF16", scale, {rows, 1}}};
      if (desc_.group_size == 0) two[1].shape = {1};
      return two;
    }
    std::vector<Packed> tensors{
        {"weight_packed", "I32", kI32, {rows, packed_words(cols, bits_)}},
        {"weight_scale", half_ ? "F16" : "BF16", scale, {rows, groups(cols)}},
        {"weight_shape", "I64", kI64, {2}}};
    if (!symmetric_)
      tensors.push_back(
          {"weight_zero_point", "I32", kI32, {packed_words(rows, bits_), groups(cols)}});
    return tensors;
  }

  void pack(const aq_pack_args& args) const override {
    const int64_t words = packed_words(args.cols, bits_), n = groups(args.cols);
    const auto* codes = view<const uint8_t>(args.codes, "codes", {args.rows, args.cols});
    const auto* params =
        view<const float>(args.group_params, "group_params", {args.rows, n, desc_.group_params});
    auto* packed = static_cast<uint32_t*>(data_of(args.packed[0]));
    auto* scales = static_cast<uint16_t*>(data_of(args.packed[1]));
    for (int64_t i = 0; i < (desc_.group_size == 0 ? 1 : args.rows * n); i++) {
      const float scale = params[i * desc_.group_params];
      scales[i] = half_ ? f16_bits(scale) : bf16_bits(scale);
    }
    if (plain_) return flip_signs(codes, args.rows * args.cols, data_of(args.packed[0]));
    for (int64_t r = 0; r < args.rows; r++)
      pack_words(codes + r * args.cols, args.cols, 1, bits_, packed + r * words, 1);
    const int64_t shape[2] = {args.rows, args.cols};
    std::memcpy(data_of(args.packed[2]), shape, sizeof shape);
    if (symmetric_) return;
    std::vector<uint8_t> zeros(static_cast<std::size_t>(args.rows * n));
    for (std::size_t i = 0; i < zeros.size(); i++)
      zeros[i] = static_cast<uint8_t>(static_cast<int32_t>(params[2 * i + 1]) - desc_.int_min);
    auto* words_out = static_cast<uint32_t*>(data_of(args.packed[3]));
    for (int64_t g = 0; g < n; g++)
      pack_words(zeros.data() + g, args.rows, n, bits_, words_out + g, n);
  }

  void unpack(const aq_pack_args& args) const override {
    const int64_t words = packed_words(args.cols, bits_), n = groups(args.cols);
    auto* codes = view<uint8_t>(args.codes, "codes", {args.rows, args.cols});
    auto* params =
        view<float>(args.group_params, "group_params", {args.rows, n, desc_.group_params});
    const auto* packed = static_cast<const uint32_t*>(data_of(args.packed[0]));
    const auto* scales = static_cast<const uint16_t*>(data_of(args.packed[1]));
    for (int64_t i = 0; i < args.rows * n; i++) {
      const uint16_t scale = scales[desc_.group_size == 0 ? 0 : i];
      params[i * desc_.group_params] = half_ ? from_f16(scale) : from_bf16(scale);
    }
    if (plain_) return flip_signs(packed, args.rows * args.cols, codes);
    for (int64_t r = 0; r < args.rows; r++)
      unpack_words(packed + r * words, 1, bits_, codes + r * args.cols, args.cols, 1);
    if (symmetric_) return;
    std::vector<uint8_t> zeros(static_cast<std::size_t>(args.rows * n));
    const auto* words_in = static_cast<const uint32_t*>(data_of(args.packed[3]));
    for (int64_t g = 0; g < n; g++)
      unpack_words(words_in + g, n, bits_, zeros.data() + g, args.rows, n);
    for (std::size_t i = 0; i < zeros.size(); i++)
      params[2 * i + 1] = static_cast<float>(int32_t{zeros[i]} + desc_.int_min);
  }

 private:
  /// Turns codes q + 128 into bytes q, and back.
  static void flip_signs(const void* from, int64_t n, void* to) {
    for (int64_t i = 0; i < n; i++)
      static_cast<uint8_t*>(to)[i] = static_cast<const uint8_t*>(from)[i] ^ 0x80u;
  }

  nlohmann::json describe_config() const {
    const bool grouped = desc_.group_size > 0;
    nlohmann::json scale_type;  // null for activations: readers choose their own type
    if (!dynamic_) scale_type = half_ ? "torch.float16" : "torch.bfloat16";
    return {{"format", plain_ ? "int-quantized" : "pack-quantized"},
            {"weights",
             {{"num_bits", bits_},
              {"type", "int"},
              {"symmetric", symmetric_},
              {"strategy", strategy(dynamic_)},
              {"group_size", grouped ? nlohmann::json(desc_.group_size) : nlohmann::json()},
              {"dynamic", dynamic_},
              {"actorder", nullptr},
              {"scale_dtype", scale_type},
              {"zp_dtype", symmetric_ ? nlohmann::json() : nlohmann::json("torch.int8")}}}};
  }

  int bits_;
  bool dynamic_, plain_, symmetric_, half_;
};

}  // namespace aq
