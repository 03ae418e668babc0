#include "chat/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"

namespace aqhost::jinja {
namespace {

constexpr int kMaxNesting = 100;
constexpr std::size_t kPartWeight = 16, kMaxWeight = std::size_t{1} << 27;

/// The depth of a value that contains `part`.
int depth_around(int depth, const Value& part) {
  if (part.name_space()) fail("a namespace in a list, a dict or a namespace is not supported");
  const int inner = part.sequence() ? part.sequence()->depth : part.dict() ? part.dict()->depth : 0;
  if (inner >= kMaxNesting) fail("lists and dicts nest deeper than {} levels", kMaxNesting);
  return std::max(depth, inner + 1);
}

/// The weight of a value that weighed `weight` and gets `part`.
std::size_t weight_with(std::size_t weight, const Value& part) {
  weight += weight_of(part);
  if (weight > kMaxWeight) fail("a list or a dict becomes larger than {} MB", kMaxWeight >> 20);
  return weight;
}

std::string float_text(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d > 0 ? "inf" : "-inf";
  char buffer[64];
  const double size = std::fabs(d);
  const bool fixed = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, d,
                                 fixed ? std::chars_format::fixed : std::chars_format::scientific);
  std::string text(buffer, end.ptr);
  if (fixed && text.find('.') == text.npos) text += ".0";
  return text;
}

/// The code point that begins at `at`, which is moved behind it.
uint32_t code_point(const std::string& s, std::size_t& at) {
  const auto byte = [&](std::size_t i) {
    return i < s.size() ? static_cast<unsigned char>(s[i]) : 0U;
  };
  const uint32_t first = byte(at++);
  if (first < 0xC0) return first;
  const int more = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
  uint32_t c = first & (0x3FU >> more);
  for (int i = 0; i < more; i++) c = c << 6 | (byte(at++) & 0x3FU);
  return c;
}

std::string quoted(const std::string& s) {
  const char quote = s.find('\'') != s.npos && s.find('"') == s.npos ? '"' : '\'';
  std::string text(1, quote);
  for (const char c : s) {
    const auto u = static_cast<unsigned char>(c);
    if (c == quote || c == '\\') {
      text += '\\';
      text += c;
    } else if (c == '\n') {
      text += "\\n";
    } else if (c == '\r') {
      text += "\\r";
    } else if (c == '\t') {
      text += "\\t";
    } else if (u < 0x20 || u == 0x7F) {
      text += fmt::format("\\x{:02x}", u);
    } else {
      text += c;
    }
  }
  return text + quote;
}

std::string json_string(const std::string& s, bool ascii) {
  std::string text = "\"";
  for (std::size_t at = 0; at < s.size();) {
    const std::size_t begin = at;
    const uint32_t c = code_point(s, at);
    // clang-format off
    switch (c) {
      case '"': text += "\\\""; break;
      case '\\': text += "\\\\"; break;
      case '\n': text += "\\n"; break;
      case '\r': text += "\\r"; break;
      case '\t': text += "\\t"; break;
      case '\b': text += "\\b"; break;
      case '\f': text += "\\f"; break;
      default:
        if (c < 0x20 || (ascii && c >= 0x7F && c < 0x10000 && c != 0x7F)) text += fmt::format("\\u{:04x}", c);
        else if (ascii && c >= 0x10000)
          text += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((c - 0x10000) >> 10), 0xDC00 + ((c - 0x10000) & 0x3FF));
        else text += s.substr(begin, at - begin);
    }
    // clang-format on
  }
  return text + '"';
}

std::string text_of(const Value& value) {
  if (const auto* s = value.string()) return quoted(*s);
  if (const auto* list = value.sequence()) {
    std::string text(1, list->tuple ? '(' : '[');
    for (std::size_t i = 0; i < list->items.size(); i++)
      text += (i > 0 ? ", " : "") + text_of(list->items[i]);
    if (list->tuple && list->items.size() == 1) text += ',';
    return text + (list->tuple ? ')' : ']');
  }
  if (const auto* dict = value.dict()) {
    std::string text = "{";
    for (const auto& [key, field] : dict->fields)
      text += (text.size() > 1 ? ", " : "") + text_of(key) + ": " + text_of(field);
    return text + '}';
  }
  if (value.is_undefined()) return "Undefined";
  if (value.function() != nullptr || value.name_space())
    fail("a {} cannot be printed", type_name(value));
  return to_string(value);
}

std::string to_json(const Value& value, int64_t indent, bool ascii, int depth) {
  if (value.is_none()) return "null";
  if (value.is_bool()) return truth(value) ? "true" : "false";
  if (value.is_number()) return to_string(value);
  if (const auto* s = value.string()) return json_string(*s, ascii);
  const auto line = [&](int level) {
    return indent < 0 ? std::string()
                      : "\n" + std::string(static_cast<std::size_t>(indent * level), ' ');
  };
  const std::string comma = indent < 0 ? ", " : ",";
  std::string text;
  const auto begin_item = [&] { text += (text.empty() ? "" : comma) + line(depth + 1); };
  if (const auto* list = value.sequence()) {
    for (const Value& item : list->items) {
      begin_item();
      text += to_json(item, indent, ascii, depth + 1);
    }
    return text.empty() ? "[]" : "[" + text + line(depth) + "]";
  }
  if (const auto* dict = value.dict()) {
    for (const auto& [key, field] : dict->fields) {
      begin_item();
      text += json_string(to_string(key), ascii) + ": " + to_json(field, indent, ascii, depth + 1);
    }
    return text.empty() ? "{}" : "{" + text + line(depth) + "}";
  }
  fail("{} cannot be written as JSON", type_name(value));
}

}  // namespace

Value::Value(List items, bool tuple) {
  int depth = 1;
  std::size_t weight = kPartWeight;
  for (const Value& item : items) {
    depth = depth_around(depth, item);
    weight = weight_with(weight, item);
  }
  any_ = std::make_shared<const Sequence>(Sequence{std::move(items), tuple, depth, weight});
}

Value::Value(Dict d) {
  d.weight = kPartWeight;
  for (const auto& [key, value] : d.fields) {
    d.depth = depth_around(d.depth, value);
    d.weight = weight_with(weight_with(d.weight, key), value);
  }
  any_ = std::make_shared<const Dict>(std::move(d));
}

Value from_json(const nlohmann::ordered_json& json) {
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_float()) return json.get<double>();
  if (json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX) return json.get<double>();
  if (json.is_number()) return json.get<int64_t>();
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array()) {
    List list;
    for (const auto& item : json) list.push_back(from_json(item));
    return list;
  }
  if (json.is_object()) {
    Dict dict;
    for (const auto& [key, field] : json.items())
      dict.fields.emplace_back(Value(key), from_json(field));
    return dict;
  }
  return {};
}

std::size_t weight_of(const Value& value) {
  if (const auto* s = value.string()) return kPartWeight + s->size();
  if (const auto* list = value.sequence()) return list->weight;
  return value.dict() ? value.dict()->weight : kPartWeight;
}

bool truth(const Value& value) {
  if (value.is_number()) return value.number() != 0;
  if (const auto* s = value.string()) return !s->empty();
  if (const auto* list = value.sequence()) return !list->items.empty();
  if (const auto* dict = value.dict()) return !dict->fields.empty();
  return !value.is_none() && !value.is_undefined();
}

const char* type_name(const Value& value) {
  if (value.is_undefined()) return "an undefined value";
  if (value.is_none()) return "none";
  if (value.is_bool()) return "a boolean";
  if (value.is_number()) return "a number";
  if (value.string()) return "a string";
  if (const auto* list = value.sequence()) return list->tuple ? "a tuple" : "a list";
  if (value.dict()) return "a dict";
  return value.function() ? "a function" : "a namespace";
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number())
    return a.is_integer() && b.is_integer() ? a.integer() == b.integer() : a.number() == b.number();
  if (a.string() && b.string()) return *a.string() == *b.string();
  if (const auto* x = a.sequence(), *y = b.sequence(); x && y)
    return x->tuple == y->tuple && x->items.size() == y->items.size() &&
           std::equal(x->items.begin(), x->items.end(), y->items.begin(),
                      [&](const Value& p, const Value& q) { return equal(p, q); });
  if (const auto* x = a.dict(), *y = b.dict(); x && y)
    return x->fields.size() == y->fields.size() &&
           std::all_of(x->fields.begin(), x->fields.end(), [&](const auto& field) {
             const Value* other = find(y->fields, field.first);
             return other != nullptr && equal(field.second, *other);
           });
  if (a.function() || b.function()) return a.function() == b.function();
  if (a.name_space() || b.name_space()) return a.name_space() == b.name_space();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

bool less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number())
    return a.is_integer() && b.is_integer() ? a.integer() < b.integer() : a.number() < b.number();
  if (a.string() && b.string()) return *a.string() < *b.string();
  fail("{} and {} have no order", type_name(a), type_name(b));
}

const Value* find(const Fields& fields, const Value& key) {
  for (const auto& [name, value] : fields)
    if (equal(name, key)) return &value;
  return nullptr;
}

void put(Fields& fields, const Value& key, const Value& value) {
  depth_around(0, value);
  for (auto& [name, old] : fields)
    if (equal(name, key)) {
      old = value;
      return;
    }
  fields.emplace_back(key, value);
}

std::string to_string(const Value& value) {
  if (const auto* s = value.string()) return *s;
  if (value.is_undefined()) return {};
  if (value.is_none()) return "None";
  if (value.is_bool()) return truth(value) ? "True" : "False";
  if (value.is_integer()) return std::to_string(value.integer());
  if (value.is_number()) return float_text(value.number());
  return text_of(value);
}

std::string repr(const Value& value) { return text_of(value); }

std::string to_json(const Value& value, int64_t indent, bool ascii) {
  return to_json(value, std::min<int64_t>(indent, 16), ascii, 0);
}

int64_t length(const std::string& text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::vector<std::string> characters(const std::string& text) {
  std::vector<std::string> all;
  for (const char c : text) {
    if (all.empty() || (static_cast<unsigned char>(c) & 0xC0) != 0x80) all.emplace_back();
    all.back() += c;
  }
  return all;
}

}  // namespace aqhost::jinja
