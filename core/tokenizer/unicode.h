#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace aqhost {

using CodePoint = int32_t;

/// Returns the code point that starts at `at`, and moves `at` past it. `text` must be well-formed.
CodePoint next_code_point(std::string_view text, size_t& at);
/// Returns the code point that ends at `at`, and moves `at` to its start.
CodePoint previous_code_point(std::string_view text, size_t& at);
void append_utf8(std::string& text, CodePoint c);

/// Rust's char::is_whitespace: the White_Space property.
bool is_space(CodePoint c);

/// Whether all bytes are below 0x80.
bool is_ascii(std::string_view text);

}  // namespace aqhost
