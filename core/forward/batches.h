#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#include "base/interrupt.h"

namespace aqhost {

/// The number of tokens that go through a layer at once.
inline constexpr int64_t kBatchTokens = 8192;

/// The number of rows of `row_bytes` bytes that are processed at once on a device. A GPU takes more
/// of short rows, because starting an operation takes as long as computing a few thousand of them.
inline int64_t token_rows_at_once(int64_t row_bytes, at::Device device) {
  constexpr int64_t kGpuBytes = int64_t{1} << 27;
  return device.is_cpu() ? kBatchTokens : std::max(kBatchTokens, kGpuBytes / row_bytes);
}

/// Calls body(begin, count) for consecutive parts of [0, total) with at most `step` elements.
/// Interrupted is thrown between them.
template <typename Body>
void for_batches(int64_t total, int64_t step, Body body) {
  for (int64_t begin = 0; begin < total; begin += step) {
    check_interrupt();
    body(begin, std::min(step, total - begin));
  }
}

/// The same for windows [n, tokens, ...]: each part has as many windows as fit into kBatchTokens
/// tokens, at least 1.
template <typename Body>
void for_window_batches(const at::Tensor& windows, Body body) {
  for_batches(windows.size(0), std::max<int64_t>(1, kBatchTokens / windows.size(1)), body);
}

/// Like for_batches, for the rows of x [rows, features]. On a CPU, each thread takes one block of
/// rows after another, so that intermediate results stay in its cache and the threads need not wait
/// for each other after every operation. If there are too few rows for this, the operations use
/// their own threads. Without gradients.
template <typename Body>
void for_row_blocks(const at::Tensor& x, Body body) {
  constexpr int64_t kBlockBytes = 1 << 18, kMinRows = 512;
  const int64_t rows = x.size(0), row_bytes = std::max<int64_t>(1, x.size(1) * x.element_size());
  const int64_t block = std::clamp(kBlockBytes / row_bytes, kMinRows, kBatchTokens);
  if (!x.is_cpu() || rows < block * at::get_num_threads())
    return for_batches(rows, token_rows_at_once(row_bytes, x.device()), body);
  at::parallel_for(0, rows, block, [&](int64_t begin, int64_t end) {
    for_batches(end - begin, block,
                [&](int64_t first, int64_t count) { body(begin + first, count); });
  });
}

}  // namespace aqhost
