#include "base/utf8.h"

#include <doctest/doctest.h>

#include <string>

#include "base/json.h"

namespace aqhost {
namespace {

/// Whether nlohmann's own check accepts the text.
bool json_takes(const std::string& text) {
  try {
    (void)Json(text).dump();
  } catch (const Json::exception&) {
    return false;
  }
  return true;
}

TEST_CASE("UTF-8: exactly the sequences of Unicode's table of well-formed bytes are accepted") {
  for (const char* text :
       {"", "plain", "caf\xc3\xa9", "\xe2\x82\xac", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "a\xf0\x9f\x98\x80z"})
    CHECK(is_utf8(text));
  CHECK(is_utf8(std::string("\0a", 2)));
  CHECK(utf8_length("ab\xff") == 2);
  CHECK(utf8_length("\x80") == 0);
  CHECK(utf8_length("\xc3\xa9\xc3") == 2);       // cut off
  CHECK(utf8_length("abc\xc0\x80") == 3);        // an overlong encoding
  CHECK(utf8_length("\xe0\x80\x80") == 0);       // an overlong encoding
  CHECK(utf8_length("\xed\xa0\x80") == 0);       // a surrogate
  CHECK(utf8_length("a\xf4\x90\x80\x80") == 1);  // above U+10FFFF
  CHECK(utf8_length("\xf0\x9f\x98") == 0);       // cut off
  CHECK(utf8_length("\xf0\x9f\x98 \x80") == 0);
}

TEST_CASE("UTF-8: each byte that is not part of a character is replaced") {
  CHECK(as_utf8("") == "");
  CHECK(as_utf8("caf\xc3\xa9") == "caf\xc3\xa9");
  CHECK(as_utf8("caf\xe9.txt") == "caf\uFFFD.txt");
  CHECK(as_utf8("\xff\xc3\xa9\xc3") == "\uFFFD\xc3\xa9\uFFFD");
  CHECK(as_utf8("\xf0\x9f\x98") == "\uFFFD\uFFFD\uFFFD");
}

TEST_CASE(
    "UTF-8: all pairs of bytes, before and after others, are judged as nlohmann judges them") {
  for (const std::string after : {"", "\x80", "\xbf\x80", "a\x80"})
    for (int first = 0x7f; first < 256; first++)
      for (int second = 0; second < 256; second++) {
        std::string text = "x";
        text += static_cast<char>(first);
        text += static_cast<char>(second);
        text += after;
        if (is_utf8(text) != json_takes(text)) FAIL("bytes " << first << ' ' << second);
      }
}

}  // namespace
}  // namespace aqhost
