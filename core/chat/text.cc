// Functions of texts.

#include <unicode/locid.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "chat/builtins.h"

namespace aqhost::jinja {
namespace {

/// Whether a character in UTF-8 is white space for str.strip() of Python.
bool is_white(const std::string& c) {
  if (c.size() == 1) return (c[0] >= 9 && c[0] <= 13) || (c[0] >= 28 && c[0] <= 32);
  static constexpr std::array kWide{"\u0085", "\u00a0", "\u1680", "\u2000", "\u2001",
                                    "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
                                    "\u2007", "\u2008", "\u2009", "\u200a", "\u2028",
                                    "\u2029", "\u202f", "\u205f", "\u3000"};
  return std::find(kWide.begin(), kWide.end(), c) != kWide.end();
}

template <typename Change>
std::string changed(const std::string& text, Change change) {
  std::string result;
  icu::UnicodeString unicode = icu::UnicodeString::fromUTF8(text);
  change(unicode);
  return unicode.toUTF8String(result);
}

/// Python's str.split(separator, most) with a separator.
List split_at(const std::string& text, const std::string& separator, int64_t most, bool from_end,
              Budget& budget) {
  if (separator.empty()) fail("split: the separator is empty");
  List parts;
  std::string rest = text;
  while (most-- != 0) {
    const std::size_t at = from_end ? rest.rfind(separator) : rest.find(separator);
    if (at == rest.npos) break;
    budget.charge(rest.size());
    const std::string head = rest.substr(0, at), tail = rest.substr(at + separator.size());
    parts.push_back(from_end ? tail : head);
    rest = from_end ? head : tail;
  }
  parts.emplace_back(rest);
  if (from_end) std::reverse(parts.begin(), parts.end());
  return parts;
}

List split_at_spaces(const std::string& text, int64_t most) {
  List parts;
  const std::vector<std::string> all = characters(text);
  std::size_t at = 0;
  while (true) {
    while (at < all.size() && is_white(all[at])) at++;
    if (at == all.size()) return parts;
    std::string word;
    const bool last = most >= 0 && static_cast<int64_t>(parts.size()) == most;
    while (at < all.size() && (last || !is_white(all[at]))) word += all[at++];
    parts.emplace_back(last ? strip(word, nullptr, false, true) : word);
  }
}

Value split(const std::string& text, const Arguments& arguments, bool from_end, Budget& budget) {
  budget.charge(text.size());
  const Value* separator = argument(arguments, 0, "sep");
  const int64_t most = integer_argument(arguments, 1, "maxsplit", -1);
  if (separator != nullptr && !separator->is_none())
    return split_at(text, text_argument(arguments, 0, "sep", ""), most, from_end, budget);
  if (from_end && most >= 0) fail("rsplit at white space with a limit is not supported");
  budget.charge(16 * text.size());
  return split_at_spaces(text, most);
}

/// startswith() and endswith(), whose argument is a string or a tuple of strings.
bool has_end(const std::string& text, const Arguments& arguments, bool at_end) {
  const auto is_end = [&](const std::string& end) {
    return at_end ? text.ends_with(end) : text.starts_with(end);
  };
  const Value* ends = argument(arguments, 0, "prefix");
  if (ends == nullptr || !ends->sequence())
    return is_end(text_argument(arguments, 0, "prefix", ""));
  return std::any_of(ends->sequence()->items.begin(), ends->sequence()->items.end(),
                     [&](const Value& end) { return end.string() && is_end(*end.string()); });
}

}  // namespace

std::string strip(const std::string& text, const Value* given, bool left, bool right) {
  const bool spaces = given == nullptr || given->is_none();
  if (!spaces && !given->string()) fail("strip: expected a string, found {}", type_name(*given));
  const std::vector<std::string> set =
      spaces ? std::vector<std::string>() : characters(*given->string());
  const auto goes = [&](const std::string& c) {
    return spaces ? is_white(c) : std::find(set.begin(), set.end(), c) != set.end();
  };
  const auto follows = [&](std::size_t at) {  // in the character of the byte before
    return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
  };
  std::size_t begin = 0, end = text.size();
  while (left && begin < end) {
    std::size_t next = begin + 1;
    while (follows(next)) next++;
    if (!goes(text.substr(begin, next - begin))) break;
    begin = next;
  }
  while (right && end > begin) {
    std::size_t last = end - 1;
    while (last > begin && follows(last)) last--;
    if (!goes(text.substr(last, end - last))) break;
    end = last;
  }
  return text.substr(begin, end - begin);
}

std::string to_lower(const std::string& text) {
  return changed(text, [](icu::UnicodeString& s) { s.toLower(icu::Locale::getRoot()); });
}

std::string to_upper(const std::string& text) {
  return changed(text, [](icu::UnicodeString& s) { s.toUpper(icu::Locale::getRoot()); });
}

std::string capitalized(const std::string& text) {
  std::vector<std::string> all = characters(text);
  std::string rest;
  for (std::size_t i = 1; i < all.size(); i++) rest += all[i];
  return all.empty() ? "" : to_upper(all[0]) + to_lower(rest);
}

std::string to_title(const std::string& text) {
  std::string result, word;
  const auto end_word = [&] {
    result += capitalized(word);
    word.clear();
  };
  for (const std::string& c : characters(text)) {
    const bool letter = to_lower(c) != to_upper(c);
    if (!letter) end_word();
    (letter ? word : result) += c;
  }
  end_word();
  return result;
}

std::string replaced(const std::string& text, const std::string& from, const std::string& to,
                     int64_t count, Budget& budget) {
  if (from.empty()) fail("replace: the text to replace is empty");
  std::string result;
  std::size_t at = 0;
  while (count-- != 0) {
    const std::size_t found = text.find(from, at);
    if (found == text.npos) break;
    budget.charge(to.size() + 1);
    result.append(text, at, found - at).append(to);
    at = found + from.size();
  }
  return result.append(text, at);
}

Value call_text_method(const std::string& text, const std::string& name, const Arguments& arguments,
                       Budget& budget) {
  budget.charge(text.size() + 1);
  const Value* first = argument(arguments, 0, "chars");
  if (name == "strip") return budget.text(strip(text, first, true, true));
  if (name == "lstrip") return budget.text(strip(text, first, true, false));
  if (name == "rstrip") return budget.text(strip(text, first, false, true));
  if (name == "split" || name == "rsplit") return split(text, arguments, name == "rsplit", budget);
  if (name == "startswith" || name == "endswith")
    return has_end(text, arguments, name == "endswith");
  if (name == "lower") return budget.text(to_lower(text));
  if (name == "upper") return budget.text(to_upper(text));
  if (name == "title") return budget.text(to_title(text));
  if (name == "capitalize") return budget.text(capitalized(text));
  if (name != "replace" && name != "find" && name != "rfind" && name != "removeprefix" &&
      name != "removesuffix")
    fail("the method {} of strings is not supported", name);
  const std::string part = text_argument(arguments, 0, "sub", "");
  if (name == "replace")
    return budget.text(replaced(text, part, text_argument(arguments, 1, "new", ""),
                                integer_argument(arguments, 2, "count", -1), budget));
  if (name == "removeprefix") return text.starts_with(part) ? text.substr(part.size()) : text;
  if (name == "find" || name == "rfind") {
    const std::size_t at = name == "find" ? text.find(part) : text.rfind(part);
    return at == text.npos ? int64_t{-1} : length(text.substr(0, at));
  }
  return text.ends_with(part) ? text.substr(0, text.size() - part.size()) : text;
}

}  // namespace aqhost::jinja
