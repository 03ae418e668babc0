#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "chat/lexer.h"
#include "chat/value.h"

namespace aqhost::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

/// A node of an expression. Which fields are used follows from the kind.
struct Expression {
  enum class Kind {
    kConstant,     // value
    kName,         // name
    kList,         // operands
    kTuple,        // operands
    kDict,         // operands: key, value, key, value ...
    kAttribute,    // operands[0].name
    kItem,         // operands[0][operands[1]]
    kSlice,        // operands[0][operands[1]:operands[2]:operands[3]], null where nothing is given
    kCall,         // operands[0](the others, named)
    kFilter,       // operands[0] | name(the others, named)
    kTest,         // operands[0] is name(the others); negated: is not
    kUnary,        // name ("-", "+", "not") operands[0]
    kBinary,       // operands[0] name operands[1]; also "and", "or", "~"
    kCompare,      // operands[0] names[0] operands[1] names[1] operands[2] ...
    kConditional,  // operands[0] if operands[1] else operands[2], which may be null
  };
  Kind kind;
  int64_t line;
  std::string name{};
  Value value{};
  std::vector<ExpressionPtr> operands{};
  std::vector<std::string> names{};
  std::vector<std::pair<std::string, ExpressionPtr>> named{};  // arguments
  bool negated = false;
  int depth = 1;  // of the tree below
};

struct Statement;
using Block = std::vector<Statement>;

/// A node of a template.
struct Statement {
  enum class Kind {
    kText,      // name
    kOutput,    // value
    kIf,        // branches; the last one has no condition if there is an else
    kFor,       // targets in value, if condition; body, other
    kSet,       // targets = value, or namespace.attribute = value
    kSetBlock,  // targets = what body prints, through the filters of value, if it is not null
    kMacro,     // name(parameters): body
    kFilter,    // value of what body prints
    kScope,     // body, whose variables end with it
    kBreak,
    kContinue,
  };
  Kind kind;
  int64_t line;
  std::string name{}, attribute{};
  std::vector<std::string> targets{};
  ExpressionPtr value{}, condition{};
  Block body{}, other{};
  std::vector<std::pair<ExpressionPtr, Block>> branches{};
  std::vector<std::pair<std::string, ExpressionPtr>> parameters{};  // with defaults, or null
};

/// The name under which the text of a block stands in the filters of kSetBlock and kFilter.
inline constexpr const char* kBlockText = " block";

/// The syntax tree of a template. An Error says the line, and what was found there. What Jinja has
/// and chat templates do not use (include, import, extends, call, ...) is an Error, too.
Block parse(const std::vector<Token>& tokens);

}  // namespace aqhost::jinja
