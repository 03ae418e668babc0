#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>

namespace aqhost {

/// 2^x for x <= 0, computed by the series of the given degree. The relative error is below 1e-4 for
/// degree 4 (a bfloat16 has 4e-3) and below 2e-7 for degree 6. Gives 2^-126 for x < -126, and NaN
/// for NaN. Vectorizes.
template <std::size_t kDegree>
float power_of_two(float x) {
  constexpr float kSeries[] = {1.0F,          0.69314718F,   0.24022651F,  5.5504109e-2F,
                               9.6181291e-3F, 1.3333558e-3F, 1.5403530e-4F};
  static_assert(kDegree < std::size(kSeries));
  constexpr float kWhole = 3 << 22;  // adding it rounds a number to an integer
  x = x < -126.0F ? -126.0F : x;     // this is one instruction, and NaN stays NaN
  const float shifted = x + kWhole, rest = x - (shifted - kWhole);  // |rest| <= 1/2
  float y = kSeries[kDegree];
  for (std::size_t i = kDegree; i-- > 0;) y = y * rest + kSeries[i];
  return y * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127) << 23);
}

}  // namespace aqhost
