#pragma once

#include <cmath>
#include <cstdint>

// The arithmetic of a described format (aq/quantizer.h) for one element and one group, in plain
// float32 and float64. It is compiled for the GPU, and also for the CPU, where a test compares it
// with aq/sdk/grid.hpp bit for bit.
#ifdef __CUDACC__
#define AQ_BOTH __host__ __device__ __forceinline__
#else
#define AQ_BOTH inline
#endif

namespace aqhost::cuda {

/// The description of a format, passed to a kernel by value. The enumerations are those of
/// aq/quantizer.h, whose numbers never change.
struct Grid {
  static constexpr int kMostSearch = 64, kMostValues = 256;

  int32_t integer;  // 0: a table
  int32_t minmax;   // fit rule; 0: absmax
  int32_t scale_kind, scale_round, scale_mantissa_bits;
  int32_t group_params, n_search, n_values;
  uint32_t negative_zero;  // 1: the table has -0 before +0
  float least, most, divisor;
  float search[kMostSearch];
  float bounds[kMostValues];  // t gets the value whose index is the number of bounds <= t
  float values[kMostValues];  // rising
  uint8_t codes[kMostValues];
  float by_code[kMostValues];  // values of a table, in the order of its codes
};

struct Rounded {
  float value;  // before it is multiplied by the scale
  uint32_t code;
};

struct Params {
  float scale = 1, zero = 0;
};

AQ_BOTH Rounded round_to_grid(const Grid& grid, float t, float zero) {
  if (grid.integer) {
    const float q = fminf(fmaxf(rintf(t) + zero, grid.least), grid.most);
    return {q - zero, static_cast<uint32_t>(q - grid.least)};
  }
  int low = 0, high = grid.n_values - 1;  // bounds [0, low) are <= t, those from `high` on are > t
  while (low < high) {
    const int middle = (low + high) / 2;
    if (t >= grid.bounds[middle])
      low = middle + 1;
    else
      high = middle;
  }
  if (t == 0 && copysignf(1.0f, t) < 0) low -= static_cast<int>(grid.negative_zero);
  return {grid.values[low], grid.codes[low]};
}

/// The value of a code before it is multiplied by the scale.
AQ_BOTH float value_of(const Grid& grid, uint32_t code, float zero) {
  return grid.integer ? static_cast<float>(code) + grid.least - zero : grid.by_code[code];
}

/// Rounds x > 0 to a float with `mantissa` bits whose smallest normal number is 2^least. The result
/// is at most `most`, and never 0.
AQ_BOTH float round_float(float x, int mantissa, int least, float most) {
  const float smallest = ldexpf(1.0f, least - mantissa);
  if (x >= most) return most;
  int exponent = least;
  if (x > 0) {
    exponent = ilogbf(x);
    if (exponent < least) exponent = least;
  }
  const float quantum = ldexpf(1.0f, exponent - mantissa);
  return fmaxf(fminf(rintf(x / quantum) * quantum, most), smallest);
}

AQ_BOTH int power_of_two(float x, int rounding, int mantissa_bits) {
  int exponent = ilogbf(x);
  const float mantissa = ldexpf(x, -exponent);
  if (rounding == 2 && mantissa > 1) exponent++;                                      // AQ_ROUND_UP
  if (rounding == 3 && mantissa >= 2 - ldexpf(1.0f, -mantissa_bits - 1)) exponent++;  // _EVEN
  return exponent < -127 ? -127 : exponent > 127 ? 127 : exponent;
}

AQ_BOTH float round_scale(const Grid& grid, float x) {
  switch (grid.scale_kind) {
    case 2:  // AQ_SCALE_F16
      return round_float(x, 10, -14, 65504.0f);
    case 3:  // AQ_SCALE_BF16
      return round_float(x, 7, -126, 0x1.fep127f);
    case 4:  // AQ_SCALE_E4M3
      return round_float(x, 3, -6, 448.0f);
    case 5:  // AQ_SCALE_E8M0
      return ldexpf(1.0f, power_of_two(x, grid.scale_round, grid.scale_mantissa_bits));
    default:
      return fminf(fmaxf(x, 0x1p-149f), 0x1.fffffep127f);
  }
}

/// The scale and zero of a group with values from `least` <= 0 to `most` >= 0, for one search
/// factor.
AQ_BOTH Params params_for(const Grid& grid, float least, float most, float global, float factor) {
  Params params;
  if (grid.minmax) {
    if (least == 0 && most == 0) return params;
    const float steps = grid.most - grid.least;
    params.scale = round_scale(grid, factor * ((most - least) * global / steps));
    const float zero = rintf(grid.least - factor * least / (params.scale / global));
    params.zero = fminf(fmaxf(zero, grid.least), grid.most);
    return params;
  }
  const float largest = fmaxf(-least, most);
  if (largest > 0) params.scale = round_scale(grid, factor * (largest * global / grid.divisor));
  return params;
}

/// The contribution of one weight to the error of its group.
AQ_BOTH double error_of(const Grid& grid, float weight, float step, float zero, double importance) {
  const float stored = round_to_grid(grid, weight / step, zero).value * step;
  const double d = weight - stored;
  return importance * (d * d);
}

}  // namespace aqhost::cuda
