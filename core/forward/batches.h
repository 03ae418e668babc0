#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>

#include "base/interrupt.h"

namespace aqhost {

/// Tokens that go through a layer at once.
inline constexpr int64_t kBatchTokens = 8192;

/// Calls body(begin, count) over [0, total) in steps; Interrupted is thrown between them.
template <typename Body>
void for_batches(int64_t total, int64_t step, Body body) {
  for (int64_t begin = 0; begin < total; begin += step) {
    check_interrupt();
    body(begin, std::min(step, total - begin));
  }
}

/// Likewise over windows [n, tokens, ...], as many at once as have kBatchTokens tokens, at least 1.
template <typename Body>
void for_window_batches(const at::Tensor& windows, Body body) {
  for_batches(windows.size(0), std::max<int64_t>(1, kBatchTokens / windows.size(1)), body);
}

}  // namespace aqhost
