// Operators, attributes and methods of lists and dicts.

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <string_view>

#include "base/error.h"
#include "chat/builtins.h"

namespace aqhost::jinja {
namespace {

constexpr std::array<std::string_view, 4> kDictMethods{"items", "keys", "values", "get"};

int64_t checked(bool overflow, int64_t result) {
  if (overflow) fail("an integer is larger than 64 bits");
  return result;
}

/// Division that rounds down, as Python's.
int64_t floor_quotient(int64_t a, int64_t b) {
  if (b == 0) fail("a division by zero");
  if (b == -1) return checked(a == INT64_MIN, a == INT64_MIN ? 0 : -a);
  return a / b - ((a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0);
}

int64_t power(int64_t base, int64_t exponent) {
  if (exponent < 0 || exponent > 64) fail("only powers from 0 to 64 are supported");
  int64_t result = 1;
  for (int64_t i = 0; i < exponent; i++) {
    const bool overflow = __builtin_mul_overflow(result, base, &result);
    checked(overflow, result);
  }
  return result;
}

Value of_integers(const std::string& name, int64_t a, int64_t b) {
  if (name == "+" || name == "-" || name == "*") {
    int64_t r = 0;
    const bool overflow = name == "+"   ? __builtin_add_overflow(a, b, &r)
                          : name == "-" ? __builtin_sub_overflow(a, b, &r)
                                        : __builtin_mul_overflow(a, b, &r);
    return checked(overflow, r);
  }
  if (name == "//") return floor_quotient(a, b);
  if (name == "%") {
    if (b == 0) fail("a division by zero");
    return b == -1 ? int64_t{0} : a % b + ((a % b != 0 && (a < 0) != (b < 0)) ? b : 0);
  }
  if (name == "**") return power(a, b);
  if (b == 0) fail("a division by zero");
  return static_cast<double>(a) / static_cast<double>(b);
}

Value of_numbers(const std::string& name, double a, double b) {
  if (name == "+") return a + b;
  if (name == "-") return a - b;
  if (name == "*") return a * b;
  if (name == "**") return std::pow(a, b);
  if (b == 0) fail("a division by zero");
  if (name == "//") return std::floor(a / b);
  if (name == "%") return a - b * std::floor(a / b);
  return a / b;
}

Value repeated(const Value& what, int64_t count, Budget& budget) {
  const auto times = static_cast<std::size_t>(std::clamp<int64_t>(count, 0, 1 << 27));
  const std::size_t size = what.string() ? what.string()->size() : what.sequence()->items.size();
  budget.charge(times * std::max<std::size_t>(size, 1));
  std::string text;
  List list;
  for (std::size_t i = 0; i < times; i++) {
    if (what.string())
      text += *what.string();
    else
      list.insert(list.end(), what.sequence()->items.begin(), what.sequence()->items.end());
  }
  return what.string() ? Value(text) : Value(list, what.sequence()->tuple);
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (const auto* text = container.string()) {
    budget.charge(text->size());
    if (!item.string()) fail("\"in\" a string: expected a string, found {}", type_name(item));
    return text->find(*item.string()) != text->npos;
  }
  if (const auto* dict = container.dict()) {
    budget.charge(std::min(dict->weight, (dict->fields.size() + 1) * weight_of(item)));
    return find(dict->fields, item) != nullptr;
  }
  if (const auto* list = container.sequence()) {
    budget.charge(std::min(list->weight, (list->items.size() + 1) * weight_of(item)));
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& v) { return equal(v, item); });
  }
  if (container.is_undefined()) return false;
  fail("\"in\": expected a list, a dict or a string, found {}", type_name(container));
}

Value range(const Arguments& arguments, Budget& budget) {
  int64_t begin = 0, end = integer_argument(arguments, 0, "stop", 0);
  const int64_t step = integer_argument(arguments, 2, "step", 1);
  if (arguments.positional.size() > 1) {
    begin = end;
    end = integer_argument(arguments, 1, "stop", 0);
  }
  if (step == 0) fail("range: the step is zero");
  List list;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    budget.charge(16);
    list.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return list;
}

/// The same date in every run, so that the same chats always give the same tokens.
Value fixed_date(const Arguments& arguments) {
  std::tm date{};
  date.tm_year = 125;  // 1 January 2025, a Wednesday
  date.tm_mday = 1;
  date.tm_wday = 3;
  char text[256] = "";
  const std::string format = text_argument(arguments, 0, "format", "%Y-%m-%d");
  if (format.size() > 64) fail("strftime_now: the format has more than 64 bytes");
  return std::string(text, std::strftime(text, sizeof text, format.c_str(), &date));
}

Value make_namespace(const Arguments& arguments) {
  auto made = std::make_shared<Namespace>();
  for (const Value& dict : arguments.positional)
    if (dict.dict())
      for (const auto& [key, value] : dict.dict()->fields) put(made->fields, key, value);
  for (const auto& [name, value] : arguments.named) put(made->fields, name, value);
  return made;
}

}  // namespace

void Budget::exceeded() {
  fail("the template takes too many steps, or makes too much text, for one chat");
}

const Value* argument(const Arguments& arguments, std::size_t place, const char* name) {
  if (place < arguments.positional.size()) return &arguments.positional[place];
  for (const auto& [given, value] : arguments.named)
    if (given == name) return &value;
  return nullptr;
}

std::string text_argument(const Arguments& arguments, std::size_t place, const char* name,
                          const std::string& otherwise) {
  const Value* value = argument(arguments, place, name);
  if (value == nullptr) return otherwise;
  if (!value->string()) fail("{}: expected a string, found {}", name, type_name(*value));
  return *value->string();
}

int64_t integer_argument(const Arguments& arguments, std::size_t place, const char* name,
                         int64_t otherwise) {
  const Value* value = argument(arguments, place, name);
  if (value == nullptr || value->is_none()) return otherwise;
  if (!value->is_integer()) fail("{}: expected an integer, found {}", name, type_name(*value));
  return value->integer();
}

bool has_method(const Value& object, const std::string& name) {
  return object.dict() &&
         std::find(kDictMethods.begin(), kDictMethods.end(), name) != kDictMethods.end();
}

Value call_method(const Value& object, const std::string& name, const Arguments& arguments,
                  Budget& budget) {
  if (object.string()) return call_text_method(*object.string(), name, arguments, budget);
  if (object.is_undefined()) fail("\"{}\" is undefined", object.undefined()->name);
  const auto* dict = object.dict();
  if (dict == nullptr || !has_method(object, name))
    fail("the method {} of {} is not supported", name, type_name(object));
  budget.charge(dict->fields.size() + 1);
  const Value* key = argument(arguments, 0, "key");
  if (name == "get") {
    if (key == nullptr) fail("get: no key is given");
    const Value* found = find(dict->fields, *key);
    const Value* otherwise = argument(arguments, 1, "default");
    return found != nullptr ? *found : otherwise != nullptr ? *otherwise : Value();
  }
  List list;
  for (const auto& [field, value] : dict->fields)
    list.push_back(name == "items"  ? Value(List{field, value}, true)
                   : name == "keys" ? field
                                    : value);
  return list;
}

Value attribute_of(const Value& object, const std::string& name) {
  if (object.is_undefined())
    fail("\"{}\" is undefined and has no {}", object.undefined()->name, name);
  const Value* found = nullptr;
  if (const auto space = object.name_space()) found = find(space->fields, name);
  if (object.dict()) found = find(object.dict()->fields, name);
  return found != nullptr ? *found : Value(Undefined{name});
}

Value item_of(const Value& object, const Value& key, Budget& budget) {
  if (!key.is_integer() || object.dict()) {
    if (object.is_undefined())
      fail("\"{}\" is undefined and has no items", object.undefined()->name);
    const Value* found = object.dict() ? find(object.dict()->fields, key) : nullptr;
    return found != nullptr ? *found : Value(Undefined{to_string(key)});
  }
  if (!object.string() && !object.sequence()) return attribute_of(object, to_string(key));
  const Value items = object.sequence() ? object : Value(items_of(object, budget));
  const List& list = items.sequence()->items;
  const auto size = static_cast<int64_t>(list.size());
  const int64_t index = key.integer() < 0 ? key.integer() + size : key.integer();
  if (index < 0 || index >= size) return Undefined{"item " + to_string(key)};
  return list[static_cast<std::size_t>(index)];
}

Value slice_of(const Value& object, const Value& begin, const Value& end, const Value& step,
               Budget& budget) {
  const auto bound = [](const Value& v) -> int64_t {
    if (!v.is_integer()) fail("a slice: expected an integer, found {}", type_name(v));
    return v.integer();
  };
  if (!object.string() && !object.sequence()) fail("{} has no slices", type_name(object));
  const List items = items_of(object, budget);
  const auto size = static_cast<int64_t>(items.size());
  const int64_t by = step.is_none() ? 1 : std::clamp<int64_t>(bound(step), -size - 1, size + 1);
  if (by == 0) fail("a slice: the step is zero");
  const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? size : size - 1;
  const auto place = [&](const Value& v, int64_t otherwise) {
    if (v.is_none()) return otherwise;
    const int64_t i = std::clamp<int64_t>(bound(v), -size - 1, size + 1);
    return std::clamp(i < 0 ? i + size : i, low, high);
  };
  const int64_t from = place(begin, by > 0 ? low : high), to = place(end, by > 0 ? high : low);
  List kept;
  std::string text;
  for (int64_t i = from; by > 0 ? i < to : i > to; i += by) {
    const Value& item = items[static_cast<std::size_t>(i)];
    if (object.string())
      text += *item.string();
    else
      kept.push_back(item);
  }
  return object.string() ? budget.text(text) : Value(kept, object.sequence()->tuple);
}

Value apply_binary(const std::string& name, const Value& a, const Value& b, Budget& budget) {
  if (name == "~") {
    std::string text = printed(a, budget);
    return budget.text(text += printed(b, budget));
  }
  if (a.is_number() && b.is_number())
    return a.is_integer() && b.is_integer() ? of_integers(name, a.integer(), b.integer())
                                            : of_numbers(name, a.number(), b.number());
  if (name == "+" && a.string() && b.string()) return budget.text(*a.string() + *b.string());
  if (const auto* x = a.sequence(), *y = b.sequence();
      name == "+" && x && y && x->tuple == y->tuple) {
    budget.charge(x->items.size() + y->items.size());
    List list = x->items;
    list.insert(list.end(), y->items.begin(), y->items.end());
    return Value(std::move(list), x->tuple);
  }
  if (name == "*" && (a.string() || a.sequence()) && b.is_integer())
    return repeated(a, b.integer(), budget);
  for (const Value* v : {&a, &b})
    if (v->is_undefined()) fail("\"{}\" is undefined", v->undefined()->name);
  fail("{} {} {} is not supported", type_name(a), name, type_name(b));
}

bool compare(const std::string& name, const Value& a, const Value& b, Budget& budget) {
  if (name == "in" || name == "not in") return contains(b, a, budget) == (name == "in");
  budget.charge(std::min(weight_of(a), weight_of(b)));
  if (name == "==") return equal(a, b);
  if (name == "!=") return !equal(a, b);
  if (name == "<") return less(a, b);
  if (name == ">") return less(b, a);
  if (name == "<=") return !less(b, a);
  return !less(a, b);  // >=
}

std::string printed(const Value& value, Budget& budget) {
  budget.charge(weight_of(value));
  return to_string(value);
}

Value global_function(const std::string& name, Budget& budget) {
  if (name == "namespace") return Function{name, make_namespace};
  if (name == "strftime_now") return Function{name, fixed_date};
  if (name == "range")
    return Function{name, [&budget](const Arguments& a) { return range(a, budget); }};
  if (name == "dict")
    return Function{name, [](const Arguments& a) {
                      Dict dict;
                      for (const auto& [key, value] : a.named) put(dict.fields, key, value);
                      return Value(dict);
                    }};
  if (name == "raise_exception")
    return Function{name, [](const Arguments& a) -> Value {
                      fail("the template refuses the chat: {}", text_argument(a, 0, "message", ""));
                    }};
  return Undefined{name};
}

}  // namespace aqhost::jinja
