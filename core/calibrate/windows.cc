#include "calibrate/windows.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {

std::vector<int32_t> read_tokens(const Tokenizer& tokenizer, const std::filesystem::path& text) {
  const std::string content = read_file(text);
  if (content.empty()) fail("{}: the text is empty", text.string());
  try {
    return tokenizer.encode(content, false);
  } catch (const Error& e) {
    fail("{}: {}", text.string(), e.what());
  }
}

at::Tensor cut_windows(const std::vector<int32_t>& ids, int64_t length) {
  const int64_t count = static_cast<int64_t>(ids.size()) / length;
  if (count == 0)
    fail("the text has {} tokens, a window has {}: give more text or a smaller window", ids.size(),
         length);
  at::Tensor windows = at::empty({count, length}, at::kLong);
  std::copy_n(ids.begin(), count * length, windows.data_ptr<int64_t>());
  return windows;
}

at::Tensor sample_windows(const at::Tensor& windows, int64_t count, uint64_t seed) {
  const int64_t available = windows.size(0);
  if (count >= available) return windows;
  std::vector<int64_t> order(static_cast<std::size_t>(available));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::mt19937_64 random(seed);
  // Fisher-Yates by hand: std::shuffle differs between standard libraries
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); i++)
    std::swap(order[i], order[i + random() % (order.size() - i)]);
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return windows.index_select(0, at::tensor(order, at::kLong));
}

}  // namespace aqhost
