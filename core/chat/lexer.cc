#include "chat/lexer.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace aqhost::jinja {
namespace {

constexpr std::string_view kSpace = " \t\n\r\f\v";

bool is_space(char c) { return kSpace.find(c) != kSpace.npos; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

void append_utf8(uint32_t code, std::string& text) {
  if (code < 0x80) {
    text += static_cast<char>(code);
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  text += static_cast<char>((0xFF00U >> (more + 1) & 0xFFU) | code >> 6 * more);
  for (int i = more - 1; i >= 0; i--) text += static_cast<char>(0x80U | (code >> 6 * i & 0x3FU));
}

/// The source with every line end as \n, without the last one, as Jinja takes it.
std::string normalized(const std::string& source) {
  std::string text;
  for (std::size_t i = 0; i < source.size(); i++) {
    const bool crlf = source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n';
    if (!crlf) text += source[i] == '\r' ? '\n' : source[i];
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(const std::string& source) : source_(normalized(source)), text_(source_) {}

  std::vector<Token> run() {
    while (at_ < text_.size()) {
      const std::size_t tag = find_tag(at_);
      take_text(tag);
      if (tag == text_.size()) break;
      take_tag(text_[tag + 1]);
    }
    push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::size_t find_tag(std::size_t from) const {
    for (std::size_t i = text_.find('{', from); i != text_.npos; i = text_.find('{', i + 1))
      if (i + 1 < text_.size() &&
          (text_[i + 1] == '{' || text_[i + 1] == '%' || text_[i + 1] == '#'))
        return i;
    return text_.size();
  }

  /// The text up to the tag at `end`, without what the tag strips of it.
  void take_text(std::size_t end) {
    std::string_view text = text_.substr(at_, end - at_);
    const char sign = end + 2 < text_.size() ? text_[end + 2] : '\0';
    if (end < text_.size() && sign == '-') {
      while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    } else if (end < text_.size() && sign != '+' && text_[end + 1] != '{') {
      const std::size_t line = text.rfind('\n') + 1;  // 0 if there is none
      if ((line > 0 || line_begins_) && text.find_first_not_of(kSpace, line) == text.npos)
        text = text.substr(0, line);
    }
    if (!text.empty()) push(TokenKind::kText, std::string(text));
    move_to(end);
  }

  void take_tag(char kind) {
    const std::size_t begin = at_;
    move_to(begin + 2);
    if (kind != '#' && at_ < text_.size() && (text_[at_] == '-' || text_[at_] == '+') &&
        (kind == '%' || text_[at_] == '-'))
      move_to(at_ + 1);
    if (kind == '#') return take_comment();
    if (kind == '%' && take_raw()) return;
    push(kind == '{' ? TokenKind::kOutputBegin : TokenKind::kStatementBegin, "");
    std::string open;  // brackets
    while (true) {
      skip_space();
      if (at_ >= text_.size()) fail_at(line_, "a tag does not end");
      if (open.empty() && take_end(kind == '{' ? "}}" : "%}",
                                   kind == '{' ? TokenKind::kOutputEnd : TokenKind::kStatementEnd))
        return;
      take_token(open);
    }
  }

  void take_comment() {
    const std::size_t end = text_.find("#}", at_);
    if (end == text_.npos) fail_at(line_, "a comment does not end");
    const char sign = end > at_ ? text_[end - 1] : '\0';
    move_to(end + 2);
    after_tag(sign, true);
  }

  /// What the end of a tag takes of the text behind it.
  void after_tag(char sign, bool trims) {
    const std::size_t begin = at_;
    if (sign == '-') {
      skip_space();
    } else if (trims && sign != '+' && at_ < text_.size() && text_[at_] == '\n') {
      move_to(at_ + 1);
    }
    line_begins_ = at_ > begin && text_[at_ - 1] == '\n';
  }

  bool take_end(std::string_view end, TokenKind kind) {
    const bool sign = text_[at_] == '-' || (text_[at_] == '+' && end == "%}");
    const std::size_t begin = at_ + (sign ? 1 : 0);
    if (text_.substr(begin, 2) != end) return false;
    const char what = sign ? text_[at_] : '\0';
    push(kind, "");
    move_to(begin + 2);
    after_tag(what, end == "%}");
    return true;
  }

  /// {% raw %}...{% endraw %}. Nothing happens if the tag is another one.
  bool take_raw() {
    std::size_t i = std::min(text_.find_first_not_of(kSpace, at_), text_.size());
    if (text_.substr(i, 3) != "raw") return false;
    i = std::min(text_.find_first_not_of(kSpace, i + 3), text_.size());
    const bool strip = text_.substr(i, 3) == "-%}";
    if (!strip && text_.substr(i, 2) != "%}") return false;
    const int64_t line = line_;
    move_to(i + (strip ? 3 : 2));
    if (strip) skip_space();
    for (std::size_t end = text_.find("{%", at_); end != text_.npos;
         end = text_.find("{%", end + 1)) {
      std::size_t j = end + 2;
      if (j < text_.size() && (text_[j] == '-' || text_[j] == '+')) j++;
      j = std::min(text_.find_first_not_of(kSpace, j), text_.size());
      if (text_.substr(j, 6) != "endraw") continue;
      j = std::min(text_.find_first_not_of(kSpace, j + 6), text_.size());
      const char sign = j < text_.size() ? text_[j] : '\0';
      if (sign == '-' || sign == '+') j++;
      if (text_.substr(j, 2) != "%}") continue;
      line_begins_ = false;
      take_text(end);
      move_to(j + 2);
      after_tag(sign, true);
      return true;
    }
    fail_at(line, "a raw block does not end");
  }

  void take_token(std::string& open) {
    const char c = text_[at_];
    line_begins_ = false;
    if (c == '\'' || c == '"') return take_string(c);
    if (is_digit(c)) return take_number();
    if (is_letter(c) || static_cast<unsigned char>(c) >= 0x80) {
      std::size_t end = at_;
      while (end < text_.size() && (is_letter(text_[end]) || is_digit(text_[end]) ||
                                    static_cast<unsigned char>(text_[end]) >= 0x80))
        end++;
      push(TokenKind::kName, std::string(text_.substr(at_, end - at_)));
      return move_to(end);
    }
    constexpr std::array<std::string_view, 6> kLong{"**", "//", "==", "!=", "<=", ">="};
    const std::string_view two = text_.substr(at_, 2);
    const bool is_long = std::find(kLong.begin(), kLong.end(), two) != kLong.end();
    if (!is_long && std::string_view("+-*/%~<>=.:,|()[]{}").find(c) == std::string_view::npos)
      fail_at(line_, fmt::format("unexpected character \"{}\"", c));
    if (c == '(' || c == '[' || c == '{') open += c;
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty()) fail_at(line_, fmt::format("unexpected \"{}\"", c));
      open.pop_back();
    }
    push(TokenKind::kOperator, std::string(is_long ? two : two.substr(0, 1)));
    move_to(at_ + (is_long ? 2 : 1));
  }

  void take_number() {
    std::size_t end = at_;
    bool fraction = false;
    while (end < text_.size() && (is_digit(text_[end]) || text_[end] == '_')) end++;
    if (end + 1 < text_.size() && text_[end] == '.' && is_digit(text_[end + 1])) {
      fraction = true;
      for (end++; end < text_.size() && is_digit(text_[end]);) end++;
    }
    std::string digits(text_.substr(at_, end - at_));
    std::erase(digits, '_');
    if (digits.size() > 18) fail_at(line_, "a number has more than 18 digits");
    push(fraction ? TokenKind::kFloat : TokenKind::kInteger, digits);
    move_to(end);
  }

  void take_string(char quote) {
    std::string value;
    std::size_t i = at_ + 1;
    while (i < text_.size() && text_[i] != quote) {
      if (text_[i] == '\\' && i + 1 < text_.size()) {
        take_escape(i, value);
      } else {
        value += text_[i++];
      }
    }
    if (i >= text_.size()) fail_at(line_, "a string does not end");
    push(TokenKind::kString, std::move(value));
    move_to(i + 1);
  }

  /// The escape sequence of Python at `i`, which is moved behind it.
  void take_escape(std::size_t& i, std::string& value) const {
    constexpr std::string_view kNames = "ntrabfv\\'\"0", kValues{"\n\t\r\a\b\f\v\\'\"\0", 11};
    const char c = text_[i + 1];
    const std::size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    i += 2;
    if (c == '\n') return;
    if (const std::size_t k = kNames.find(c); k != kNames.npos) {
      value += kValues[k];
    } else if (digits > 0) {
      uint32_t code = 0;
      for (std::size_t n = 0; n < digits; n++, i++) {
        const std::size_t digit =
            i < text_.size()
                ? std::string_view("0123456789abcdef").find(static_cast<char>(text_[i] | 0x20))
                : std::string_view::npos;
        if (digit == std::string_view::npos || code > 0xFFFFFFF)
          fail_at(line_, "an escape sequence in a string has too few digits");
        code = code * 16 + static_cast<uint32_t>(digit);
      }
      if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        fail_at(line_, "an escape sequence in a string is no character");
      append_utf8(code, value);
    } else {
      value += '\\';
      value += c;
    }
  }

  void skip_space() {
    std::size_t end = at_;
    while (end < text_.size() && is_space(text_[end])) end++;
    move_to(end);
  }

  void move_to(std::size_t end) {
    line_ += std::count(text_.begin() + static_cast<std::ptrdiff_t>(at_),
                        text_.begin() + static_cast<std::ptrdiff_t>(end), '\n');
    at_ = end;
  }

  void push(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  const std::string source_;
  const std::string_view text_;
  std::size_t at_ = 0;
  int64_t line_ = 1;
  bool line_begins_ = true;  // whether the text at at_ is at the beginning of a line
  std::vector<Token> tokens_;
};

}  // namespace

void fail_at(int64_t line, const std::string& message) {
  throw LineError(fmt::format("line {}: {}", line, message));
}

std::vector<Token> tokenize(const std::string& source) { return Lexer(source).run(); }

}  // namespace aqhost::jinja
