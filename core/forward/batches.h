#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

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

/// Like for_batches over the rows of x [rows, features], on a CPU a block of them after another on
/// each thread: what is worked out in between stays in its cache, and threads need not wait for
/// each other after every operation. Few rows are left to the operations' own threads. No
/// gradients.
template <typename Body>
void for_row_blocks(const at::Tensor& x, Body body) {
  constexpr int64_t kBlockBytes = 1 << 18, kLeastRows = 512;
  const int64_t rows = x.size(0), row_bytes = std::max<int64_t>(1, x.size(1) * x.element_size());
  const int64_t block = std::clamp(kBlockBytes / row_bytes, kLeastRows, kBatchTokens);
  if (!x.is_cpu() || rows < block * at::get_num_threads())
    return for_batches(rows, kBatchTokens, body);
  at::parallel_for(0, rows, block, [&](int64_t begin, int64_t end) {
    for_batches(end - begin, block,
                [&](int64_t first, int64_t count) { body(begin + first, count); });
  });
}

}  // namespace aqhost
