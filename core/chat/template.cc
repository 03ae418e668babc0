#include "chat/template.h"

#include <algorithm>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/utf8.h"
#include "chat/builtins.h"

namespace aqhost::jinja {
namespace {

constexpr int kMaxEvaluations = 1200;  // of evaluations in each other
constexpr std::size_t kStep = 64;      // what a step costs, in bytes
constexpr std::size_t kMaxSource = std::size_t{1} << 20;

/// The variables of a loop, a macro or the template. Inner scopes see those of outer ones.
struct Scope {
  std::vector<std::pair<std::string, Value>> variables{};
  const Scope* parent = nullptr;

  const Value* find(const std::string& name) const {
    for (const Scope* s = this; s != nullptr; s = s->parent)
      for (const auto& [known, value] : s->variables)
        if (known == name) return &value;
    return nullptr;
  }
  void set(const std::string& name, Value value) {
    for (auto& [known, old] : variables)
      if (known == name) {
        old = std::move(value);
        return;
      }
    variables.emplace_back(name, std::move(value));
  }
};

enum class Flow { kOn, kBreak, kContinue };

class Interpreter {
 public:
  explicit Interpreter(const std::vector<std::pair<std::string, Value>>& variables)
      : global_{variables} {}

  std::string run(const Block& body) {
    std::string out;
    execute(body, global_, out);
    return out;
  }

 private:
  /// Counts how deep evaluations are in each other while this lives.
  class Level {
   public:
    explicit Level(int& depth) : depth_(depth) {
      if (depth >= kMaxEvaluations) fail("the template nests or calls itself too deeply");
      depth_++;
    }
    ~Level() { depth_--; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    int& depth_;
  };

  void print(const std::string& text, std::string& out) {
    budget_.charge(text.size());
    out += text;
  }

  Flow execute(const Block& block, Scope& scope, std::string& out) {
    for (const Statement& statement : block) {
      budget_.charge(kStep);
      check_interrupt();
      try {
        if (const Flow flow = execute(statement, scope, out); flow != Flow::kOn) return flow;
      } catch (const LineError&) {
        throw;
      } catch (const Error& e) {
        fail_at(statement.line, e.what());
      }
    }
    return Flow::kOn;
  }

  Flow execute(const Statement& s, Scope& scope, std::string& out) {
    const Level level(depth_);
    // clang-format off
    switch (s.kind) {
      case Statement::Kind::kText: print(s.name, out); break;
      case Statement::Kind::kOutput: print(printed(evaluate(*s.value, scope), budget_), out); break;
      case Statement::Kind::kIf: return execute_if(s, scope, out);
      case Statement::Kind::kFor: execute_for(s, scope, out); break;
      case Statement::Kind::kSet: assign(s, evaluate(*s.value, scope), scope); break;
      case Statement::Kind::kSetBlock: assign(s, text_of_block(s, scope), scope); break;
      case Statement::Kind::kMacro: scope.set(s.name, macro(s)); break;
      case Statement::Kind::kFilter: print(printed(text_of_block(s, scope), budget_), out); break;
      case Statement::Kind::kBreak: return Flow::kBreak;
      case Statement::Kind::kContinue: return Flow::kContinue;
      case Statement::Kind::kScope: {
        Scope inner{{}, &scope};
        return execute(s.body, inner, out);
      }
    }
    // clang-format on
    return Flow::kOn;
  }

  Flow execute_if(const Statement& s, Scope& scope, std::string& out) {
    for (const auto& [condition, body] : s.branches)
      if (!condition || truth(evaluate(*condition, scope))) return execute(body, scope, out);
    return Flow::kOn;
  }

  void execute_for(const Statement& s, Scope& scope, std::string& out) {
    List items = items_of(evaluate(*s.value, scope), budget_);
    if (s.condition)
      std::erase_if(items, [&](const Value& item) {
        Scope inner{{}, &scope};
        unpack(s.targets, item, inner);
        return !truth(evaluate(*s.condition, inner));
      });
    for (std::size_t i = 0; i < items.size(); i++) {
      budget_.charge(4 * kStep);
      Scope inner{{}, &scope};
      inner.set("loop", loop_of(items, i));
      unpack(s.targets, items[i], inner);
      if (execute(s.body, inner, out) == Flow::kBreak) break;
    }
    if (!items.empty()) return;
    Scope inner{{}, &scope};
    execute(s.other, inner, out);
  }

  static Value loop_of(const List& items, std::size_t i) {
    const auto index = static_cast<int64_t>(i), size = static_cast<int64_t>(items.size());
    Dict loop;
    const auto add = [&](const char* name, Value value) {
      loop.fields.emplace_back(name, std::move(value));
    };
    add("index", index + 1);
    add("index0", index);
    add("first", i == 0);
    add("last", index + 1 == size);
    add("length", size);
    add("revindex", size - index);
    add("revindex0", size - index - 1);
    add("previtem", i > 0 ? items[i - 1] : Value(Undefined{"loop.previtem"}));
    add("nextitem", index + 1 < size ? items[i + 1] : Value(Undefined{"loop.nextitem"}));
    return loop;
  }

  void unpack(const std::vector<std::string>& targets, const Value& value, Scope& scope) {
    if (targets.size() == 1) return scope.set(targets.front(), value);
    const List items = items_of(value, budget_);
    if (items.size() != targets.size())
      fail("{} values for {} names", items.size(), targets.size());
    for (std::size_t i = 0; i < items.size(); i++) scope.set(targets[i], items[i]);
  }

  void assign(const Statement& s, const Value& value, Scope& scope) {
    if (s.attribute.empty()) return unpack(s.targets, value, scope);
    const Value* object = scope.find(s.targets.front());
    const auto space = object == nullptr ? nullptr : object->name_space();
    if (!space) fail("{} is no namespace, so its attribute cannot be set", s.targets.front());
    put(space->fields, s.attribute, value);
  }

  Value text_of_block(const Statement& s, Scope& scope) {
    Scope inner{{}, &scope};
    std::string text;
    execute(s.body, inner, text);
    inner.set(kBlockText, budget_.text(std::move(text)));
    return evaluate(*s.value, inner);
  }

  Value macro(const Statement& s) {
    return Function{s.name, [this, &s](const Arguments& arguments) -> Value {
                      Scope scope{{}, &global_};
                      bind(s, arguments, scope);
                      std::string text;
                      execute(s.body, scope, text);
                      return budget_.text(std::move(text));
                    }};
  }

  void bind(const Statement& s, const Arguments& arguments, Scope& scope) {
    if (arguments.positional.size() > s.parameters.size())
      fail("the macro {} takes {} arguments", s.name, s.parameters.size());
    for (std::size_t i = 0; i < s.parameters.size(); i++) {
      const auto& [name, otherwise] = s.parameters[i];
      const Value* given = argument(arguments, i, name.c_str());
      scope.set(name, given != nullptr ? *given
                      : otherwise      ? evaluate(*otherwise, scope)
                                       : Value(Undefined{name}));
    }
    for (const auto& [name, value] : arguments.named)
      if (std::none_of(s.parameters.begin(), s.parameters.end(),
                       [&](const auto& parameter) { return parameter.first == name; }))
        fail("the macro {} has no parameter {}", s.name, name);
  }

  Value evaluate(const Expression& e, const Scope& scope) {
    const Level level(depth_);
    budget_.charge(kStep);
    try {
      return value_of(e, scope);
    } catch (const LineError&) {
      throw;
    } catch (const Error& error) {
      fail_at(e.line, error.what());
    }
  }

  Value operand(const Expression& e, std::size_t i, const Scope& scope) {
    return e.operands[i] ? evaluate(*e.operands[i], scope) : Value();
  }

  Value value_of(const Expression& e, const Scope& scope) {
    // clang-format off
    switch (e.kind) {
      case Expression::Kind::kConstant: return e.value;
      case Expression::Kind::kName: return variable(e.name, scope);
      case Expression::Kind::kList: return Value(operands(e, 0, scope));
      case Expression::Kind::kTuple: return Value(operands(e, 0, scope), true);
      case Expression::Kind::kDict: return dict(e, scope);
      case Expression::Kind::kAttribute: return attribute(e, scope);
      case Expression::Kind::kItem: return item_of(operand(e, 0, scope), operand(e, 1, scope), budget_);
      case Expression::Kind::kSlice: return slice_of(operand(e, 0, scope), operand(e, 1, scope), operand(e, 2, scope), operand(e, 3, scope), budget_);
      case Expression::Kind::kCall: return call(e, scope);
      case Expression::Kind::kFilter: return apply_filter(e.name, operand(e, 0, scope), arguments(e, scope), budget_);
      case Expression::Kind::kTest: return apply_test(e.name, operand(e, 0, scope), arguments(e, scope), budget_) != e.negated;
      case Expression::Kind::kUnary: return unary(e, scope);
      case Expression::Kind::kBinary: return binary(e, scope);
      case Expression::Kind::kCompare: return comparison(e, scope);
      case Expression::Kind::kConditional: break;
    }
    // clang-format on
    if (truth(operand(e, 1, scope))) return operand(e, 0, scope);
    return e.operands[2] ? operand(e, 2, scope) : Value(Undefined{"the value without else"});
  }

  Value variable(const std::string& name, const Scope& scope) {
    const Value* found = scope.find(name);
    return found != nullptr ? *found : global_function(name, budget_);
  }

  List operands(const Expression& e, std::size_t from, const Scope& scope) {
    List list;
    for (std::size_t i = from; i < e.operands.size(); i++) list.push_back(operand(e, i, scope));
    return list;
  }

  Arguments arguments(const Expression& e, const Scope& scope) {
    Arguments result{operands(e, 1, scope), {}};
    for (const auto& [name, value] : e.named)
      result.named.emplace_back(name, evaluate(*value, scope));
    return result;
  }

  Value dict(const Expression& e, const Scope& scope) {
    Dict made;
    for (std::size_t i = 0; i < e.operands.size(); i += 2)
      put(made.fields, operand(e, i, scope), operand(e, i + 1, scope));
    return made;
  }

  Value attribute(const Expression& e, const Scope& scope) {
    const Value object = operand(e, 0, scope);
    if (has_method(object, e.name) && find(object.dict()->fields, e.name) == nullptr)
      fail("the method {} is not called", e.name);
    return attribute_of(object, e.name);
  }

  Value call(const Expression& e, const Scope& scope) {
    const Expression& callee = *e.operands.front();
    if (callee.kind == Expression::Kind::kAttribute) {
      const Value object = operand(callee, 0, scope);
      if (!object.name_space())
        return call_method(object, callee.name, arguments(e, scope), budget_);
    }
    const Value function = evaluate(callee, scope);
    if (!function.function())
      fail("\"{}\" is {}, expected a function or a macro", callee.name, type_name(function));
    return function.function()->call(arguments(e, scope));
  }

  Value unary(const Expression& e, const Scope& scope) {
    const Value value = operand(e, 0, scope);
    if (e.name == "not") return !truth(value);
    if (!value.is_number()) fail("the sign of {}", type_name(value));
    return apply_binary(e.name, int64_t{0}, value, budget_);
  }

  Value binary(const Expression& e, const Scope& scope) {
    Value left = operand(e, 0, scope);
    if (e.name == "and") return truth(left) ? operand(e, 1, scope) : left;
    if (e.name == "or") return truth(left) ? left : operand(e, 1, scope);
    return apply_binary(e.name, left, operand(e, 1, scope), budget_);
  }

  Value comparison(const Expression& e, const Scope& scope) {
    Value left = operand(e, 0, scope);
    for (std::size_t i = 0; i < e.names.size(); i++) {
      Value right = operand(e, i + 1, scope);
      if (!compare(e.names[i], left, right, budget_)) return false;
      left = std::move(right);
    }
    return true;
  }

  Scope global_;
  Budget budget_;
  int depth_ = 0;
};

}  // namespace

Template Template::parse(const std::string& source, std::string where) {
  if (source.size() > kMaxSource) fail("{}: the template has more than 1 MiB", where);
  if (!is_utf8(source)) fail("{}: the template is not UTF-8", where);
  try {
    return {jinja::parse(tokenize(source)), where};
  } catch (const Error& e) {
    fail("{}, {}", where, e.what());
  }
}

std::string Template::render(const std::vector<std::pair<std::string, Value>>& variables) const {
  try {
    return Interpreter(variables).run(body_);
  } catch (const Error& e) {
    fail("{}, {}", where_, e.what());
  }
}

}  // namespace aqhost::jinja
