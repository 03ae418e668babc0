#include "tokenizer/regex_dialect.h"

#include <vector>

#include "base/error.h"
#include "tokenizer/recent_characters.h"
#include "tokenizer/unicode.h"

namespace aqhost {
namespace {

constexpr std::string_view kSpace =
    "\\t-\\r "
    "\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
constexpr std::string_view kNotSpace =
    "\\x00-\\x08\\x0E-\\x1F\\x21-\\x84\\x86-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}\\x{200B}-"
    "\\x{2027}"
    "\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}";
const std::string kDigit = "\\p{Nd}" + recent_characters("Nd").value();
const std::string kWord = "\\p{Alphabetic}\\p{M}\\p{Pc}" + kDigit + recent_characters("L").value() +
                          recent_characters("M").value();
/// Outside of character classes, Oniguruma's \w includes the superscripts and fractions of
/// Latin-1.
const std::string kLooseWord = kWord + "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";
constexpr std::string_view kHex = "0-9A-Fa-f";

/// Escapes with the same meaning in both dialects.
constexpr std::string_view kSameEscapes = "nrtfaeAzZGKR";

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : in_(pattern), where_(where) {}

  std::string run() {
    while (at_ < in_.size()) {
      if (in_class_) {
        class_item();
      } else {
        item();
      }
    }
    if (in_class_) refuse("a class that is not closed");
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail("{}: the regular expression \"{}\" is not supported: {}", where_, in_, what);
  }
  char peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  std::string_view rest() const { return in_.substr(at_); }

  /// Copies one code point.
  void copy() {
    const size_t start = at_;
    next_code_point(in_, at_);
    out_ += in_.substr(start, at_ - start);
  }

  void item() {
    switch (peek()) {
      case '(':
        open_group();
        break;
      case ')':
        if (groups_.empty()) refuse("a parenthesis that was not opened");
        atom_ = groups_.back();
        groups_.pop_back();
        copy();
        break;
      case '[':
        atom_ = out_.size();
        open_class();
        break;
      case '{':
        interval();
        break;
      case '*':
      case '+':
      case '?':
      case '|':
        copy();
        break;
      case '\\':
        atom_ = out_.size();
        escape();
        break;
      default:
        atom_ = out_.size();
        copy();
    }
  }

  void open_group() {
    groups_.push_back(out_.size());
    if (peek(1) == '*') refuse("(*");
    if (peek(1) == '?') {
      // An option alone, (?i), applies to more of the pattern in Ruby than in PCRE2, unless it
      // comes first.
      size_t end = 2;
      while (std::string_view("imsxadu-").find(peek(end)) != std::string_view::npos && peek(end)) {
        end++;
      }
      const std::string_view options = in_.substr(at_ + 2, end - 2);
      const bool only_case = options.empty() || options == "i" || options == "-i";
      if (!only_case) refuse("an option other than i");
      if (!options.empty() && peek(end) == ')' && at_ != 0) refuse("an option within the pattern");
    }
    copy();
  }

  void open_class() {
    in_class_ = true;
    copy();
    negated_ = peek() == '^';
    if (negated_) copy();
    if (peek() == ']') refuse("a class that begins with ]");
  }

  void class_item() {
    switch (peek()) {
      case ']':
        in_class_ = false;
        copy();
        if (intersected_) end_intersection();
        break;
      case '[':
        refuse("a class within a class");
      case '&':
        if (peek(1) == '&') {
          begin_intersection();
        } else {
          copy();
        }
        break;
      case '\\':
        class_escape();
        break;
      default:
        copy();
    }
  }

  /// [A&&[B]] becomes (?:(?=[A])[B]). Other forms of intersections are not known to be used.
  void begin_intersection() {
    if (negated_ || intersected_ || peek(2) != '[' || atom_ + 1 == out_.size()) {
      refuse("an intersection of classes in another form than [A&&[B]]");
    }
    intersected_ = true;
    out_.insert(atom_, "(?:(?=");
    out_ += "])";
    at_ += 2;
    open_class();
  }
  void end_intersection() {
    if (peek() != ']') refuse("an intersection of classes in another form than [A&&[B]]");
    intersected_ = false;
    out_ += ')';
    at_++;
  }

  /// A{n,m}. A + after it repeats it in Ruby, but would make it possessive in PCRE2.
  void interval() {
    size_t end = 1;
    while ((peek(end) >= '0' && peek(end) <= '9') || peek(end) == ',') end++;
    const std::string_view bounds = in_.substr(at_ + 1, end - 1);
    if (peek(end) != '}' || bounds.empty() || bounds == ",") {
      atom_ = out_.size();
      out_ += "\\{";
      at_++;
      return;
    }
    const bool single = bounds.find(',') == std::string_view::npos;
    out_ += fmt::format("{{{}{}}}", bounds.front() == ',' ? "0" : "", bounds);
    at_ += end + 1;
    if (peek() == '+') {
      at_++;
      out_.insert(atom_, "(?:");
      out_ += ")+";
    } else if (peek() == '?' && single) {
      refuse("{n}?");
    }
  }

  void escape() {
    const char c = peek(1);
    switch (c) {
      case 's':
        return replace(fmt::format("[{}]", kSpace));
      case 'S':
        return replace(fmt::format("[^{}]", kSpace));
      case 'w':
        return replace(fmt::format("[{}]", kLooseWord));
      case 'W':
        return replace(fmt::format("[^{}]", kLooseWord));
      case 'd':
        return replace(fmt::format("[{}]", kDigit));
      case 'D':
        return replace(fmt::format("[^{}]", kDigit));
      case 'h':
        return replace(fmt::format("[{}]", kHex));
      case 'H':
        return replace(fmt::format("[^{}]", kHex));
      case 'b':
        return replace(fmt::format("(?:(?<=[{0}])(?![{0}])|(?<![{0}])(?=[{0}]))", kLooseWord));
      case 'B':
        return replace(fmt::format("(?:(?<=[{0}])(?=[{0}])|(?<![{0}])(?![{0}]))", kLooseWord));
      default:
        common_escape();
    }
  }

  void class_escape() {
    switch (peek(1)) {
      case 's':
        return replace(kSpace);
      case 'S':
        return replace(kNotSpace);
      case 'w':
        return replace(kWord);
      case 'd':
        return replace(kDigit);
      case 'h':
        return replace(kHex);
      case 'b':
        return replace("\\x08");
      case 'A':
      case 'z':
      case 'Z':
      case 'G':
      case 'K':
      case 'R':
        refuse(fmt::format("\\{} within a class", peek(1)));
      default:
        common_escape();
    }
  }

  void common_escape() {
    const char c = peek(1);
    if (c == 'v') return replace("\\x0B");
    if (c == 'p' || c == 'P') return property();
    if (c == 'u') return short_code();
    if (c == 'x') {
      at_++;
      out_ += '\\';
      return copy();
    }
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool digit = c >= '0' && c <= '9';
    if (c == '\0' || digit || (letter && kSameEscapes.find(c) == std::string_view::npos)) {
      refuse(fmt::format("the escape \\{}", c ? std::string(1, c) : ""));
    }
    out_ += '\\';
    at_++;
    copy();
  }

  /// \uHHHH
  void short_code() {
    const std::string_view digits = in_.substr(std::min(at_ + 2, in_.size())).substr(0, 4);
    if (digits.size() != 4 ||
        digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      refuse("\\u without four hexadecimal digits");
    }
    out_ += fmt::format("\\x{{{}}}", digits);
    at_ += 6;
  }

  /// \p{Han}. In PCRE2, the bare name of a script includes its extensions.
  void property() {
    const size_t close = rest().find('}');
    if (peek(2) != '{' || close == std::string_view::npos) refuse("\\p without {name}");
    std::string name(rest().substr(3, close - 3));
    bool negative = peek(1) == 'P';
    if (!name.empty() && name.front() == '^') {
      negative = !negative;
      name.erase(0, 1);
    }
    if (name.find_first_of("=:") != std::string::npos) refuse("\\p{name=value}");
    const std::optional<std::string> recent = recent_characters(name);
    if (!recent) {
      refuse(fmt::format(
          "\\p{{{}}}, which is neither a general category nor a script whose characters are known",
          name));
    }
    if (in_class_ && negative && !recent->empty()) {
      refuse(fmt::format("the complement of \\p{{{}}} within a class", name));
    }
    const bool script = name.size() > 2;
    const std::string known = fmt::format("\\{}{{{}{}}}", negative && recent->empty() ? 'P' : 'p',
                                          script ? "sc:" : "", name);
    if (in_class_ || recent->empty()) {
      out_ += known + *recent;
    } else {
      out_ += fmt::format("[{}{}{}]", negative ? "^" : "", known, *recent);
    }
    at_ += close + 1;
  }

  /// Writes `text` in place of a two-character escape.
  void replace(std::string_view text) {
    out_ += text;
    at_ += 2;
  }

  std::string_view in_;
  const std::string& where_;
  size_t at_ = 0;
  std::string out_;
  bool in_class_ = false;
  bool negated_ = false;        ///< the class begins with ^
  bool intersected_ = false;    ///< within the B of [A&&[B]]
  size_t atom_ = 0;             ///< where the item that a quantifier would repeat begins in out_
  std::vector<size_t> groups_;  ///< the same for the open groups
};

}  // namespace

std::string to_pcre2(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

}  // namespace aqhost
