#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace aqhost {

/// The number of bytes, from the beginning of `text`, that are complete characters in well-formed
/// UTF-8 (Unicode, table 3-7): without surrogates and without encodings that are longer than
/// necessary.
std::size_t utf8_length(std::string_view text);

inline bool is_utf8(std::string_view text) { return utf8_length(text) == text.size(); }

/// `text` as well-formed UTF-8: U+FFFD is in the place of each byte that is not part of a
/// character.
std::string as_utf8(std::string_view text);

}  // namespace aqhost
