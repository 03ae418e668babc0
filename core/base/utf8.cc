#include "base/utf8.h"

namespace aqhost {
namespace {

/// What follows from the first byte of a character: how many bytes follow it, and the range of the
/// second byte. The range is empty if no character begins with this byte.
struct Lead {
  std::size_t following = 1;
  unsigned char minimum = 0x80, maximum = 0xbf;
};

Lead lead_of(unsigned char byte) {
  if (byte >= 0xc2 && byte <= 0xdf) return {1};
  if (byte == 0xe0) return {2, 0xa0, 0xbf};
  if (byte == 0xed) return {2, 0x80, 0x9f};
  if (byte >= 0xe1 && byte <= 0xef) return {2};
  if (byte == 0xf0) return {3, 0x90, 0xbf};
  if (byte == 0xf4) return {3, 0x80, 0x8f};
  if (byte >= 0xf1 && byte <= 0xf3) return {3};
  return {1, 1, 0};
}

}  // namespace

std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  std::size_t at = 0;
  while (at < text.size()) {
    if (byte(at) < 0x80) {
      at++;
      continue;
    }
    const Lead lead = lead_of(byte(at));
    if (text.size() - at <= lead.following) return at;
    if (byte(at + 1) < lead.minimum || byte(at + 1) > lead.maximum) return at;
    for (std::size_t i = 2; i <= lead.following; i++)
      if ((byte(at + i) & 0xc0) != 0x80) return at;
    at += lead.following + 1;
  }
  return at;
}

std::string as_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::size_t good = utf8_length(text);
    out += text.substr(0, good);
    text.remove_prefix(good);
    if (text.empty()) break;
    out += "\uFFFD";
    text.remove_prefix(1);
  }
  return out;
}

}  // namespace aqhost
