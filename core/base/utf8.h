#pragma once

#include <cstddef>
#include <string_view>

namespace aqhost {

/// How many bytes of `text`, from its begin, are whole characters of well-formed UTF-8 (Unicode,
/// table 3-7): neither surrogates nor encodings longer than need be.
std::size_t utf8_length(std::string_view text);

inline bool is_utf8(std::string_view text) { return utf8_length(text) == text.size(); }

}  // namespace aqhost
