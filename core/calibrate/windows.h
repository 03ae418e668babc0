#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace aqhost {

/// The ids of a UTF-8 text file, without special tokens. Error if it is empty.
std::vector<int32_t> read_tokens(const Tokenizer& tokenizer, const std::filesystem::path& text);

/// `ids` cut into consecutive windows [n, length] i64, the rest dropped. Error if there is not one.
at::Tensor cut_windows(const std::vector<int32_t>& ids, int64_t length);

/// `count` of the rows of `windows`, chosen by `seed` and in their order; all if there are no more.
at::Tensor sample_windows(const at::Tensor& windows, int64_t count, uint64_t seed);

}  // namespace aqhost
