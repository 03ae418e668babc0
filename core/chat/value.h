#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace aqhost::jinja {

class Value;
using List = std::vector<Value>;
using Fields = std::vector<std::pair<Value, Value>>;  // of a dict, in the order of insertion

struct Undefined {
  std::string name;  // of what is undefined, for messages
};
struct None {};
struct Sequence {
  List items;
  bool tuple = false;
  int depth = 0;           // of values in each other
  std::size_t weight = 0;  // see weight_of()
};
struct Dict {
  Fields fields;
  int depth = 0;
  std::size_t weight = 0;
};
/// What namespace() returns: the one value that a template can change.
struct Namespace {
  Fields fields;
};
/// The arguments of a call.
struct Arguments {
  List positional;
  std::vector<std::pair<std::string, Value>> named;
};
struct Function {
  std::string name;
  std::function<Value(const Arguments&)> call;
};

/// A value of a template, with the meaning that it has in Python. Copies share strings, lists and
/// dicts, which never change.
class Value {
 public:
  using Any =
      std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>,
                   std::shared_ptr<const Sequence>, std::shared_ptr<const Dict>,
                   std::shared_ptr<Namespace>, std::shared_ptr<const Function>>;

  // A value of the template language stands for each of these, so conversions are implicit.
  // NOLINTBEGIN(google-explicit-constructor)
  Value() : any_(None{}) {}
  Value(Undefined u) : any_(std::move(u)) {}
  Value(bool b) : any_(b) {}
  Value(int64_t i) : any_(i) {}
  Value(double d) : any_(d) {}
  Value(std::string s) : any_(std::make_shared<const std::string>(std::move(s))) {}
  Value(const char* s) : Value(std::string(s)) {}
  /// Lists and dicts nest up to 100 levels, contain no namespaces, and have a limited weight, so
  /// that values are trees of limited depth and size; otherwise an Error is thrown.
  Value(List items, bool tuple = false);
  Value(Dict d);
  Value(std::shared_ptr<Namespace> n) : any_(std::move(n)) {}
  Value(Function f) : any_(std::make_shared<const Function>(std::move(f))) {}
  // NOLINTEND(google-explicit-constructor)

  bool is_undefined() const { return std::holds_alternative<Undefined>(any_); }
  bool is_none() const { return std::holds_alternative<None>(any_); }
  bool is_bool() const { return std::holds_alternative<bool>(any_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(any_) || is_bool(); }
  bool is_number() const { return is_integer() || std::holds_alternative<double>(any_); }

  const Undefined* undefined() const { return std::get_if<Undefined>(&any_); }
  const std::string* string() const { return shared<const std::string>(); }
  const Sequence* sequence() const { return shared<const Sequence>(); }
  const Dict* dict() const { return shared<const Dict>(); }
  const Function* function() const { return shared<const Function>(); }
  std::shared_ptr<Namespace> name_space() const {
    const auto* n = std::get_if<std::shared_ptr<Namespace>>(&any_);
    return n == nullptr ? nullptr : *n;
  }
  /// Of numbers only; true counts as 1.
  int64_t integer() const {
    return is_bool() ? (std::get<bool>(any_) ? 1 : 0) : std::get<int64_t>(any_);
  }
  double number() const {
    return is_integer() ? static_cast<double>(integer()) : std::get<double>(any_);
  }

 private:
  template <typename T>
  const T* shared() const {
    const auto* p = std::get_if<std::shared_ptr<T>>(&any_);
    return p == nullptr ? nullptr : p->get();
  }
  Any any_;
};

/// The value of a JSON document. Keys keep their order. Its strings must be UTF-8.
Value from_json(const nlohmann::ordered_json& json);

/// What a visit of all of the value costs: 16 for each value in it, and the bytes of strings. What
/// is shared counts each time.
std::size_t weight_of(const Value& value);
/// Whether Python takes the value for true.
bool truth(const Value& value);
/// "string", "list" and so on, for messages.
const char* type_name(const Value& value);
bool equal(const Value& a, const Value& b);
/// Whether a comes before b. Throws an Error if they cannot be ordered.
bool less(const Value& a, const Value& b);
/// The value of a key, or null.
const Value* find(const Fields& fields, const Value& key);
void put(Fields& fields, const Value& key, const Value& value);

/// str() and repr() of Python.
std::string to_string(const Value& value);
std::string repr(const Value& value);
/// json.dumps(value, ensure_ascii=...) of Python; with `indent` spaces for each level, or on one
/// line if that is negative. Throws an Error for what JSON cannot express.
std::string to_json(const Value& value, int64_t indent, bool ascii = false);

/// The number of characters of a UTF-8 text, and its characters.
int64_t length(const std::string& text);
std::vector<std::string> characters(const std::string& text);

}  // namespace aqhost::jinja
