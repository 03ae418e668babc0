// Filters and tests.

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "chat/builtins.h"

namespace aqhost::jinja {
namespace {

/// The value of an attribute "a.b" of an item.
Value path_of(const Value& item, const std::string& path, Budget& budget) {
  Value value = item;
  for (std::size_t at = 0; at <= path.size();) {
    const std::size_t end = std::min(path.find('.', at), path.size());
    value = item_of(value, path.substr(at, end - at), budget);
    at = end + 1;
  }
  return value;
}

std::string joined(const Value& value, const Arguments& arguments, Budget& budget) {
  const std::string between = text_argument(arguments, 0, "d", "");
  const Value* attribute = argument(arguments, 1, "attribute");
  std::string text;
  bool first = true;
  for (const Value& item : items_of(value, budget)) {
    if (!first) text += between;
    first = false;
    const std::string part = printed(
        attribute ? path_of(item, text_argument(arguments, 1, "attribute", ""), budget) : item,
        budget);
    budget.charge(part.size() + between.size());
    text += part;
  }
  return text;
}

std::string indented(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Value* width = argument(arguments, 0, "width");
  const int64_t spaces = width && width->string() ? 0 : integer_argument(arguments, 0, "width", 4);
  if (spaces < 0 || spaces > 1000) fail("indent: expected 0 to 1000 spaces");
  const std::string margin = width && width->string()
                                 ? *width->string()
                                 : std::string(static_cast<std::size_t>(spaces), ' ');
  const Value* first = argument(arguments, 1, "first");
  const Value* blank = argument(arguments, 2, "blank");
  std::string result = first && truth(*first) ? margin : "";
  for (std::size_t i = 0; i < text.size(); i++) {
    result += text[i];
    const bool ends = i + 1 == text.size() || text[i + 1] == '\n';
    if (text[i] != '\n' || (ends && !(blank && truth(*blank)))) continue;
    budget.charge(margin.size());
    result += margin;
  }
  return result;
}

/// What select, reject and map do with the rest of their arguments.
Arguments rest_of(const Arguments& arguments, std::size_t from) {
  Arguments rest;
  for (std::size_t i = from; i < arguments.positional.size(); i++)
    rest.positional.push_back(arguments.positional[i]);
  return rest;
}

/// select, reject, selectattr and rejectattr.
List selected(const std::string& name, const Value& value, const Arguments& arguments,
              Budget& budget) {
  const bool by_attribute = name.ends_with("attr"), keeps = name.starts_with("select");
  const std::size_t first = by_attribute ? 1 : 0;
  const std::string test = text_argument(arguments, first, "test", "");
  List kept;
  for (const Value& item : items_of(value, budget)) {
    const Value tested =
        by_attribute ? path_of(item, text_argument(arguments, 0, "attribute", ""), budget) : item;
    const bool holds = test.empty()
                           ? truth(tested)
                           : apply_test(test, tested, rest_of(arguments, first + 1), budget);
    if (holds == keeps) kept.push_back(item);
  }
  return kept;
}

List mapped(const Value& value, const Arguments& arguments, Budget& budget) {
  List result;
  const Value* attribute =
      arguments.positional.empty() ? argument(arguments, 0, "attribute") : nullptr;
  for (const Value& item : items_of(value, budget)) {
    if (attribute == nullptr) {
      result.push_back(apply_filter(text_argument(arguments, 0, "filter", ""), item,
                                    rest_of(arguments, 1), budget));
      continue;
    }
    Value found = path_of(item, text_argument(arguments, 0, "attribute", ""), budget);
    const Value* otherwise = argument(arguments, 1, "default");
    result.push_back(found.is_undefined() && otherwise ? *otherwise : found);
  }
  return result;
}

/// The key by which sort, dictsort, unique, min and max compare: without case.
Value folded(const Value& value) {
  return value.string() ? Value(to_lower(*value.string())) : value;
}

List sorted(List list, const Arguments& arguments, Budget& budget) {
  const Value* attribute = argument(arguments, 2, "attribute");
  const Value* reverse = argument(arguments, 0, "reverse");
  const Value* by_case = argument(arguments, 1, "case_sensitive");
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : list) {
    const Value key =
        attribute ? path_of(item, text_argument(arguments, 2, "attribute", ""), budget) : item;
    keyed.emplace_back(by_case && truth(*by_case) ? key : folded(key), std::move(item));
  }
  const bool down = reverse && truth(*reverse);
  // a merge sort, which compares so that an Error leaves nothing half done
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return down ? less(b.first, a.first) : less(a.first, b.first);
  });
  List result;
  for (auto& [key, item] : keyed) result.push_back(std::move(item));
  return result;
}

List unique(const List& list, Budget& budget) {
  List seen, kept;
  for (const Value& item : list) {
    const Value key = folded(item);
    budget.charge((seen.size() + 1) * weight_of(key));
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& v) { return equal(v, key); }))
      continue;
    seen.push_back(key);
    kept.push_back(item);
  }
  return kept;
}

/// The fields of a dict as a list of tuples.
List pairs_of(const Value& value) {
  List pairs;
  if (value.is_undefined()) return pairs;
  if (!value.dict()) fail("items: expected a dict, found {}", type_name(value));
  for (const auto& [key, field] : value.dict()->fields) pairs.emplace_back(List{key, field}, true);
  return pairs;
}

List sorted_pairs(const Value& value) {
  List pairs = pairs_of(value);
  std::stable_sort(pairs.begin(), pairs.end(), [](const Value& a, const Value& b) {
    return less(folded(a.sequence()->items[0]), folded(b.sequence()->items[0]));
  });
  return pairs;
}

Value number_of(const Value& value, bool integer) {
  if (value.is_number()) {
    const double d = value.number();
    if (!integer) return d;
    if (value.is_integer()) return value.integer();
    return d > -9e18 && d < 9e18 ? Value(static_cast<int64_t>(d)) : Value(int64_t{0});
  }
  const std::string text = value.string() ? strip(*value.string(), nullptr, true, true) : "";
  const char *begin = text.data(), *end = begin + text.size();
  double d = 0;
  int64_t i = 0;
  if (integer && std::from_chars(begin, end, i).ptr == end && begin != end) return i;
  if (std::from_chars(begin, end, d).ptr != end || begin == end) d = 0;
  return integer ? number_of(Value(d), true) : Value(d);
}

Value written_as_json(const Value& value, const Arguments& arguments, Budget& budget) {
  const Value* ascii = argument(arguments, 0, "ensure_ascii");
  for (const auto& [name, given] : arguments.named)
    if (name != "ensure_ascii" && name != "indent")
      fail("tojson: the argument {} is not supported", name);
  if (arguments.positional.size() > 0) fail("tojson: only named arguments are supported");
  const int64_t indent = integer_argument(arguments, 1, "indent", -1);
  // each value on a line of its own, at a depth of up to 100
  budget.charge(weight_of(value) *
                static_cast<std::size_t>(std::clamp<int64_t>(indent, 0, 16) + 1));
  return budget.text(to_json(value, indent, ascii && truth(*ascii)));
}

Value with_default(const Value& value, const Arguments& arguments) {
  const Value* otherwise = argument(arguments, 0, "default_value");
  const Value* also_false = argument(arguments, 1, "boolean");
  if (!value.is_undefined() && !(also_false && truth(*also_false) && !truth(value))) return value;
  return otherwise ? *otherwise : Value("");
}

int64_t size_of(const Value& value) {
  if (value.string()) return length(*value.string());
  if (value.sequence()) return static_cast<int64_t>(value.sequence()->items.size());
  if (value.dict()) return static_cast<int64_t>(value.dict()->fields.size());
  if (value.is_undefined()) return 0;
  fail("length: {} has none", type_name(value));
}

/// first, last, min and max.
Value one_of(const std::string& name, const Value& value, const Arguments& arguments,
             Budget& budget) {
  const bool by_size = name == "min" || name == "max";
  List list = items_of(value, budget);
  if (by_size) list = sorted(std::move(list), {}, budget);
  if (by_size && argument(arguments, 1, "attribute")) fail("{}: attribute is not supported", name);
  if (list.empty()) return Undefined{name};
  return name == "first" || name == "min" ? list.front() : list.back();
}

Value absolute(const Value& value) {
  if (!value.is_number()) fail("abs: expected a number, found {}", type_name(value));
  return less(value, int64_t{0})
             ? (value.is_integer() ? number_of(-value.number(), true) : Value(-value.number()))
             : value;
}

Value text_filter(const std::string& name, const std::string& text, const Arguments& arguments,
                  Budget& budget) {
  if (name == "trim") return strip(text, argument(arguments, 0, "chars"), true, true);
  if (name == "lower") return to_lower(text);
  if (name == "upper") return to_upper(text);
  if (name == "title" || name == "capitalize") budget.charge(16 * text.size());
  if (name == "title") return to_title(text);
  if (name == "capitalize") return capitalized(text);
  if (name == "indent") return indented(text, arguments, budget);
  if (name == "replace")
    return replaced(text, text_argument(arguments, 0, "old", ""),
                    text_argument(arguments, 1, "new", ""),
                    integer_argument(arguments, 2, "count", -1), budget);
  if (name == "string" || name == "safe") return text;
  fail("the filter {} is not supported", name);
}

}  // namespace

List items_of(const Value& value, Budget& budget) {
  List list;
  if (const auto* sequence = value.sequence()) {
    list = sequence->items;
  } else if (const auto* dict = value.dict()) {
    for (const auto& [key, field] : dict->fields) list.push_back(key);
  } else if (value.string()) {
    budget.charge(16 * value.string()->size());
    for (std::string& c : characters(*value.string())) list.emplace_back(std::move(c));
  } else if (!value.is_undefined()) {
    fail("{} has no items", type_name(value));
  }
  budget.charge(16 * list.size());
  return list;
}

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments,
                   Budget& budget) {
  if (name == "default" || name == "d") return with_default(value, arguments);
  if (name == "length" || name == "count") return size_of(value);
  if (name == "tojson") return written_as_json(value, arguments, budget);
  if (name == "items") return pairs_of(value);
  if (name == "dictsort" && arguments.positional.empty() && arguments.named.empty())
    return sorted_pairs(value);
  if (name == "list") return items_of(value, budget);
  if (name == "join") return joined(value, arguments, budget);
  if (name == "first" || name == "last" || name == "min" || name == "max")
    return one_of(name, value, arguments, budget);
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr")
    return selected(name, value, arguments, budget);
  if (name == "map") return mapped(value, arguments, budget);
  if (name == "sort") return sorted(items_of(value, budget), arguments, budget);
  if (name == "unique") return unique(items_of(value, budget), budget);
  if (name == "reverse") {
    List list = items_of(value, budget);
    std::reverse(list.begin(), list.end());
    return value.string() ? budget.text(joined(list, {}, budget)) : Value(list);
  }
  if (name == "int" || name == "float") return number_of(value, name == "int");
  if (name == "abs") return absolute(value);
  const std::string text = printed(value, budget);
  return text_filter(name, text, arguments, budget);
}

bool apply_test(const std::string& name, const Value& v, const Arguments& arguments,
                Budget& budget) {
  const auto other = [&] {
    const Value* given = argument(arguments, 0, "other");
    if (given == nullptr) fail("the test {} needs an argument", name);
    return *given;
  };
  if (name == "defined") return !v.is_undefined();
  if (name == "undefined") return v.is_undefined();
  if (name == "none") return v.is_none();
  if (name == "string") return v.string() != nullptr;
  if (name == "mapping") return v.dict() != nullptr;
  if (name == "number") return v.is_number();
  if (name == "boolean") return v.is_bool();
  if (name == "true" || name == "false") return v.is_bool() && truth(v) == (name == "true");
  if (name == "integer") return v.is_integer() && !v.is_bool();
  if (name == "float") return v.is_number() && !v.is_integer();
  if (name == "iterable" || name == "sequence")
    return v.string() || v.sequence() || v.dict() || v.is_undefined();
  if (name == "callable") return v.function() != nullptr;
  if (name == "equalto" || name == "eq" || name == "==") return compare("==", v, other(), budget);
  if (name == "ne" || name == "!=") return compare("!=", v, other(), budget);
  if (name == "in") return compare("in", v, other(), budget);
  if (name == "lessthan" || name == "lt" || name == "<") return compare("<", v, other(), budget);
  if (name == "greaterthan" || name == "gt" || name == ">") return compare(">", v, other(), budget);
  if (name == "le" || name == "<=") return !less(other(), v);
  if (name == "ge" || name == ">=") return !less(v, other());
  if (name == "odd" || name == "even" || name == "divisibleby") {
    const int64_t divisor = name == "divisibleby" ? integer_argument(arguments, 0, "num", 0) : 2;
    if (!v.is_integer() || divisor == 0) fail("the test {} needs integers", name);
    return (divisor == -1 || v.integer() % divisor == 0) == (name != "odd");
  }
  fail("the test {} is not supported", name);
}

}  // namespace aqhost::jinja
