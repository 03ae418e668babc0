#include "tokenizer/unicode.h"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <cstring>
#include <limits>

namespace aqhost {
namespace {

/// ICU's macros need a signed 32-bit index, so they get a window of at most 4 bytes.
constexpr size_t kWindow = 4;

}  // namespace

bool is_ascii(std::string_view text) {
  size_t i = 0;
  for (uint64_t word; i + sizeof word <= text.size(); i += sizeof word) {
    std::memcpy(&word, text.data() + i, sizeof word);
    if (word & 0x8080808080808080u) return false;
  }
  for (; i < text.size(); i++) {
    if (text[i] & 0x80) return false;
  }
  return true;
}

CodePoint next_code_point(std::string_view text, size_t& at) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data()) + at;
  const auto size = static_cast<int32_t>(std::min(text.size() - at, kWindow));
  int32_t used = 0;
  UChar32 c;
  U8_NEXT(bytes, used, size, c);
  at += static_cast<size_t>(used);
  return c;
}

CodePoint previous_code_point(std::string_view text, size_t& at) {
  const size_t window = std::min(at, kWindow);
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data()) + (at - window);
  auto left = static_cast<int32_t>(window);
  UChar32 c;
  U8_PREV(bytes, 0, left, c);
  at -= window - static_cast<size_t>(left);
  return c;
}

void append_utf8(std::string& text, CodePoint c) {
  char bytes[U8_MAX_LENGTH];
  int32_t size = 0;
  U8_APPEND_UNSAFE(bytes, size, c);
  text.append(bytes, static_cast<size_t>(size));
}

bool is_space(CodePoint c) { return u_hasBinaryProperty(c, UCHAR_WHITE_SPACE); }

}  // namespace aqhost
