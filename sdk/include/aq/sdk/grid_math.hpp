// aq/sdk/grid_math.hpp - the arithmetic of aq/quantizer.h on one weight, one scale and one group.
// The SDK, the host and the host's GPU kernels all use these functions. Therefore this header needs
// only C++17, and nothing of the C++ library but <cmath>.
#pragma once

#include <aq/quantizer.h>

#include <cmath>
#include <cstdint>

/// Marks a function that is compiled for the GPU too.
#ifdef __CUDACC__
#define AQ_BOTH __host__ __device__ __forceinline__
#else
#define AQ_BOTH inline
#endif

namespace aq {

AQ_BOTH uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
AQ_BOTH float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

/// std::min and std::max, which a GPU does not have. The arguments are not NaN.
AQ_BOTH float lesser(float a, float b) {
#ifdef __CUDA_ARCH__
  return fminf(a, b);
#else
  return b < a ? b : a;  // one instruction, whereas fminf is a call
#endif
}
AQ_BOTH float greater(float a, float b) {
#ifdef __CUDA_ARCH__
  return fmaxf(a, b);
#else
  return a < b ? b : a;
#endif
}

/// A binary floating-point type. Its numbers are m * 2^(e - mantissa_bits), it has subnormals below
/// 2^min_exponent, and its largest number is `max`.
struct SmallFloat {
  int mantissa_bits, min_exponent;
  float max;

  /// 2^exponent as a normal float.
  AQ_BOTH static float power(int exponent) {
    return float_of(static_cast<uint32_t>(exponent + 127) << 23);
  }
  AQ_BOTH float smallest() const { return power(min_exponent) * power(-mantissa_bits); }

  /// Rounds x, which is not NaN, to the nearest number; ties go to even, the result saturates, and
  /// zero keeps its sign.
  AQ_BOTH float round(float x) const {
    const float magnitude = fabsf(x);
    if (magnitude >= max) return copysignf(max, x);
    if (magnitude < power(min_exponent))
      return copysignf(rintf(magnitude / smallest()) * smallest(), x);
    // Rounds the bits at the last place that stays. A carry correctly moves into the exponent.
    const int dropped = 23 - mantissa_bits;
    uint32_t bits = bits_of(magnitude);
    bits += (1u << (dropped - 1)) - 1 + (bits >> dropped & 1u);
    return copysignf(lesser(float_of(bits >> dropped << dropped), max), x);
  }
};

/// The exponent of 2 to which an E8M0 scale x >= 0 is rounded, in [-127, 127].
AQ_BOTH int e8m0_exponent(float x, int32_t rounding, int32_t mantissa_bits) {
  if (!(x > 0)) return -127;
  int exponent = ilogbf(x);
  const float mantissa = ldexpf(x, -exponent);  // [1, 2)
  if (rounding == AQ_ROUND_UP && mantissa > 1) exponent++;
  // rounding half up at mantissa_bits carries into the exponent from 2 - 2^-(bits + 1) on
  if (rounding == AQ_ROUND_EVEN && mantissa >= 2 - ldexpf(1.0f, -mantissa_bits - 1)) exponent++;
  return exponent < -127 ? -127 : exponent > 127 ? 127 : exponent;
}

/// The types of scales that are small floats, as functions, because a GPU cannot use the host's
/// constants.
AQ_BOTH constexpr SmallFloat f16() { return {10, -14, 65504.0f}; }
AQ_BOTH constexpr SmallFloat bf16() { return {7, -126, 0x1.fep127f}; }
AQ_BOTH constexpr SmallFloat e4m3() { return {3, -6, 448.0f}; }  // OCP FP8, no infinities

/// Whether scales are multiples of a number that several groups share.
AQ_BOTH bool two_level(const aq_format_desc& desc) { return desc.fit_rule == AQ_FIT_TWO_LEVEL; }

/// Whether scales of this AQ_SCALE_* kind are stored as float32, float16 or bfloat16.
AQ_BOTH bool is_real_scale(int32_t kind) {
  return kind == AQ_SCALE_F32 || kind == AQ_SCALE_F16 || kind == AQ_SCALE_BF16;
}

/// round_scale() of aq/quantizer.h. x must not be 0; it is negative only if the format's scales
/// have signs.
AQ_BOTH float round_scale(const aq_format_desc& desc, float x) {
  const float magnitude = fabsf(x);
  switch (desc.scale_kind) {
    case AQ_SCALE_F16:
      return copysignf(greater(f16().round(magnitude), f16().smallest()), x);
    case AQ_SCALE_BF16:
      return copysignf(greater(bf16().round(magnitude), bf16().smallest()), x);
    case AQ_SCALE_E4M3:
      return greater(e4m3().round(x), e4m3().smallest());
    case AQ_SCALE_E8M0:
      return ldexpf(1.0f, e8m0_exponent(x, desc.scale_round, desc.scale_mantissa_bits));
    default:
      return copysignf(lesser(greater(magnitude, 0x1p-149f), 0x1.fffffep127f), x);
  }
}

/// The minimum and maximum of a group, extended to include 0.
struct Extent {
  float min = 0, max = 0;

  Extent() = default;
  AQ_BOTH Extent(const float* weights, int64_t n) {
    for (int64_t i = 0; i < n; i++) add(weights[i]);
  }
  AQ_BOTH void add(float weight) {
    min = lesser(min, weight);
    max = greater(max, weight);
  }
  AQ_BOTH float absmax() const { return greater(-min, max); }
};

/// Scale (and zero point) of a group. params_for() computes them for one search factor f.
struct GroupParams {
  float scale = 1, zero = 0;
};
AQ_BOTH GroupParams params_for(const aq_format_desc& desc, const Extent& extent, float global,
                               float f) {
  GroupParams params;
  if (desc.fit_rule == AQ_FIT_MINMAX) {
    if (extent.min == 0 && extent.max == 0) return params;
    const auto steps = static_cast<float>(desc.int_max - desc.int_min);
    params.scale = round_scale(desc, f * ((extent.max - extent.min) * global / steps));
    const auto least = static_cast<float>(desc.int_min), most = static_cast<float>(desc.int_max);
    const float zero = rintf(least - f * extent.min / (params.scale / global));
    params.zero = lesser(greater(zero, least), most);
  } else if (extent.absmax() > 0) {
    params.scale = round_scale(desc, f * (extent.absmax() * global / desc.scale_divisor));
    if ((desc.flags & AQ_FORMAT_SIGNED_SCALE) != 0 && extent.max > -extent.min)
      params.scale = -params.scale;
  }
  return params;
}

/// A weight that was rounded: its code, and the code's value before it is multiplied by the scale.
struct Rounded {
  float value;
  uint32_t code;
};

/// Rounds t, a weight divided by its scale, to an integer from `least` to `most`, which with the
/// zero point are far below 2^22. There is no branch, so that loops vectorize.
AQ_BOTH Rounded round_to_integer(float t, float zero, float least, float most) {
  // Adding and subtracting this constant rounds numbers below 2^22 to the nearest integer, ties to
  // even. The bounds are integers, so clamping may come before rounding; they are the first
  // arguments, so that each comparison is one instruction.
  constexpr float kRounding = 0x1.8p23f;
  const float clamped = lesser(most - zero, greater(least - zero, t));
  const float value = (clamped + kRounding) - kRounding;
  return {value, static_cast<uint32_t>(static_cast<int32_t>(value + zero - least))};
}
AQ_BOTH float integer_value(uint32_t code, float zero, float least) {
  return static_cast<float>(static_cast<int32_t>(code)) + least - zero;
}

/// Tables hold n rising values, of equal ones only the first, but -0 before +0. bounds[i] is the
/// smallest t that is rounded to a value after the i-th. No bound can tell -0 from +0: if the table
/// has both, `negative_zero` is 1, and this is how many values to go back from the bounds' answer.
AQ_BOTH uint32_t zeros_back(float t, uint32_t negative_zero) {
  return bits_of(t) == 0x80000000u ? negative_zero : 0;
}
/// The index of the value to which t is rounded.
AQ_BOTH uint32_t table_index(const float* bounds, uint32_t n, uint32_t negative_zero, float t) {
  uint32_t low = 0, high = n - 1;  // bounds [0, low) are <= t, those from `high` on are > t
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (t >= bounds[middle])
      low = middle + 1;
    else
      high = middle;
  }
  return low - zeros_back(t, negative_zero);
}

/// The contribution of one weight to the error of its group.
AQ_BOTH double weighted_error(float weight, float stored, double importance) {
  const double d = weight - stored;
  return importance * (d * d);
}

}  // namespace aq
