// aq/sdk/int_format.hpp - integer formats, stored as "pack-quantized" of compressed-tensors.
#pragma once

#include <aq/sdk/format.hpp>

namespace aq {
namespace detail {

/// Zero points of `bits` bits, as integers - min, packed along the rows of each group.
inline PackedTensor packed_zero_points(const char* suffix) {
  return {
      suffix,
      [](const MatrixShape& m) {
        return TensorLayout{"I32", {packed_words(m.rows, m.desc.element_bits), m.groups_per_row()}};
      },
      [](const PackSource& from, void* to) {
        const int64_t n = from.groups_per_row();
        std::vector<uint8_t> zeros(static_cast<std::size_t>(from.rows * n));
        for (std::size_t i = 0; i < zeros.size(); i++)
          zeros[i] = static_cast<uint8_t>(static_cast<int32_t>(from.params[2 * i + 1]) -
                                          from.desc.int_min);
        for (int64_t g = 0; g < n; g++)
          pack_words(zeros.data() + g, from.rows, n, from.desc.element_bits,
                     static_cast<uint32_t*>(to) + g, n);
      },
      [](const void* from, const UnpackTarget& to) {
        const int64_t n = to.groups_per_row();
        std::vector<uint8_t> zeros(static_cast<std::size_t>(to.rows * n));
        for (int64_t g = 0; g < n; g++)
          unpack_words(static_cast<const uint32_t*>(from) + g, n, to.desc.element_bits,
                       zeros.data() + g, to.rows, n);
        for (std::size_t i = 0; i < zeros.size(); i++)
          to.params[2 * i + 1] = static_cast<float>(int32_t{zeros[i]} + to.desc.int_min);
      }};
}

/// Turns codes q + 128 into bytes q, and back.
inline void flip_signs(const uint8_t* from, int64_t n, uint8_t* to) {
  for (int64_t i = 0; i < n; i++) to[i] = from[i] ^ 0x80u;
}

}  // namespace detail

/// Integers of b = 2 to 8 bits in [-2^(b-1), 2^(b-1) - 1] with bf16 (or fp16) scales, either
/// symmetric or with an integer zero point per group. Scales that a search finds for symmetric ones
/// may be negative (the rule mse). Each module is stored in these tensors
/// (compressed-tensors 0.20, "pack-quantized"):
///   weight_packed      i32 [rows, ceil(cols * b / 32)]    code = q + 2^(b-1)
///   weight_scale       bf16 [rows, groups]
///   weight_shape       i64 [2]
///   weight_zero_point  i32 [ceil(rows * b / 32), groups]  if asymmetric; packed along rows
/// If activations are rounded too, b is 8 and the tensors are ("int-quantized"):
///   weight             i8 [rows, cols]                    q
///   weight_scale       bf16 [rows, 1], or [1] if the whole matrix shares one scale
/// Options: group_size, symmetric, scale_rule (mse or absmax), scale_dtype.
inline FormatSpec int_format(int bits, Options& options) {
  const bool dynamic = options.dynamic();
  const bool plain = bits == 8 && !options.activations().empty();
  const bool symmetric = dynamic || plain || options.flag("symmetric", true);
  const bool half = options.choice("scale_dtype", "bfloat16", {"bfloat16", "float16"}) == "float16";
  FormatSpec spec;
  spec.integers = {-(1 << (bits - 1)), (1 << (bits - 1)) - 1};
  spec.scale.kind = dynamic ? AQ_SCALE_F32 : half ? AQ_SCALE_F16 : AQ_SCALE_BF16;
  spec.search = scale_rule(options, dynamic);
  spec.scale.zero_point = !symmetric;
  spec.scale.has_sign = symmetric && !plain && !dynamic && !spec.search.empty();
  std::vector<int32_t> sizes{16, 32, 64, 128, 256, -1};
  if (plain) sizes = {-1, 0};
  spec.group_size = options.group_size(dynamic || plain ? -1 : 128, std::move(sizes));
  if (plain) {
    const auto width = [](int64_t n) { return n; };
    spec.packed = {packed_rows("weight", "I8", {width, detail::flip_signs, detail::flip_signs}),
                   packed_scales()};
  } else {
    spec.packed = {packed_codes("weight_packed", "I32"), packed_scales(), packed_shape()};
    if (!symmetric) spec.packed.push_back(detail::packed_zero_points("weight_zero_point"));
  }
  spec.config = {{"format", plain ? "int-quantized" : "pack-quantized"}};
  spec.dynamic = dynamic;
  return spec;
}

}  // namespace aq
