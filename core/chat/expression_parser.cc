#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"
#include "chat/parser.h"

namespace aqhost::jinja {
namespace {

constexpr int kMaxLevels = 60;  // of an expression or a block in another
constexpr int kMaxTree = 400;   // the depth of the tree of an expression

constexpr std::array<std::array<const char*, 4>, 4> kBinary{
    {{"+", "-"}, {"~"}, {"*", "/", "//", "%"}, {"**"}}};

/// Makes `child`, which may be null, a part of `node`. Throws an Error if the tree gets too deep.
ExpressionPtr* adopt(Expression& node, ExpressionPtr& child) {
  if (!child) return &child;
  node.depth = std::max(node.depth, child->depth + 1);
  if (node.depth > kMaxTree)
    fail_at(node.line, fmt::format("an expression nests deeper than {} levels", kMaxTree));
  return &child;
}

void add(Expression& node, ExpressionPtr child) {
  node.operands.push_back(std::move(*adopt(node, child)));
}

}  // namespace

ExpressionParser::Level::Level(ExpressionParser& parser) : parser_(parser) {
  if (parser.depth_ >= kMaxLevels)
    fail_at(parser.now().line, fmt::format("the template nests deeper than {} levels", kMaxLevels));
  parser.depth_++;
}

bool ExpressionParser::take_operator(const char* text) {
  if (!is_operator(text)) return false;
  advance();
  return true;
}

bool ExpressionParser::take_word(const char* text) {
  if (!is_word(text)) return false;
  advance();
  return true;
}

void ExpressionParser::expect_operator(const char* text) {
  if (!take_operator(text)) unexpected(fmt::format("\"{}\"", text));
}

std::string ExpressionParser::expect_name() {
  if (now().kind != TokenKind::kName) unexpected("a name");
  std::string name = now().text;
  advance();
  return name;
}

void ExpressionParser::unexpected(const std::string& expected) const {
  const TokenKind kind = now().kind;
  const std::string found = kind == TokenKind::kEnd            ? "the end of the template"
                            : kind == TokenKind::kOutputEnd    ? "\"}}\""
                            : kind == TokenKind::kStatementEnd ? "\"%}\""
                                                               : "\"" + now().text + "\"";
  fail_at(now().line, fmt::format("found {}, expected {}", found, expected));
}

ExpressionPtr ExpressionParser::make(Expression::Kind kind, ExpressionPtr first,
                                     ExpressionPtr second) const {
  auto node = std::make_unique<Expression>(Expression{kind, now().line});
  if (first) add(*node, std::move(first));
  if (second) add(*node, std::move(second));
  return node;
}

ExpressionPtr ExpressionParser::expression() {
  const Level level(*this);
  ExpressionPtr value = either();
  while (take_word("if")) {
    value = make(Expression::Kind::kConditional, std::move(value), either());
    add(*value, take_word("else") ? expression() : nullptr);
  }
  return value;
}

ExpressionPtr ExpressionParser::expression_or_tuple() {
  ExpressionPtr first = expression();
  if (!is_operator(",")) return first;
  ExpressionPtr tuple = make(Expression::Kind::kTuple, std::move(first));
  while (take_operator(",")) {
    if (now().kind == TokenKind::kOutputEnd || now().kind == TokenKind::kStatementEnd ||
        is_operator(")") || is_operator("]"))
      break;
    add(*tuple, expression());
  }
  return tuple;
}

ExpressionPtr ExpressionParser::condition_free_expression() {
  ExpressionPtr first = either();
  if (!is_operator(",")) return first;
  ExpressionPtr tuple = make(Expression::Kind::kTuple, std::move(first));
  while (take_operator(",")) add(*tuple, either());
  return tuple;
}

ExpressionPtr ExpressionParser::either() {
  ExpressionPtr left = both();
  while (take_word("or")) {
    left = make(Expression::Kind::kBinary, std::move(left), both());
    left->name = "or";
  }
  return left;
}

ExpressionPtr ExpressionParser::both() {
  ExpressionPtr left = negation();
  while (take_word("and")) {
    left = make(Expression::Kind::kBinary, std::move(left), negation());
    left->name = "and";
  }
  return left;
}

ExpressionPtr ExpressionParser::negation() {
  if (!is_word("not")) return comparison();
  const Level level(*this);
  advance();
  ExpressionPtr node = make(Expression::Kind::kUnary, negation());
  node->name = "not";
  return node;
}

ExpressionPtr ExpressionParser::comparison() {
  ExpressionPtr first = binary(0);
  ExpressionPtr node;
  while (true) {
    std::string name;
    for (const char* symbol : {"==", "!=", "<", "<=", ">", ">="})
      if (is_operator(symbol)) name = symbol;
    if (is_word("in")) name = "in";
    if (is_word("not") && next().kind == TokenKind::kName && next().text == "in") name = "not in";
    if (name.empty()) return node ? std::move(node) : std::move(first);
    advance();
    if (name == "not in") advance();
    if (!node) node = make(Expression::Kind::kCompare, std::move(first));
    node->names.push_back(name);
    add(*node, binary(0));
  }
}

ExpressionPtr ExpressionParser::binary(std::size_t level) {
  if (level == kBinary.size()) return unary();
  ExpressionPtr left = binary(level + 1);
  while (true) {
    const char* found = nullptr;
    for (const char* symbol : kBinary[level])
      if (symbol != nullptr && is_operator(symbol)) found = symbol;
    if (found == nullptr) return left;
    advance();
    left = make(Expression::Kind::kBinary, std::move(left), binary(level + 1));
    left->name = found;
  }
}

ExpressionPtr ExpressionParser::unary(bool with_filters) {
  ExpressionPtr node;
  if (is_operator("-") || is_operator("+")) {
    const Level level(*this);
    const std::string name = now().text;
    advance();
    node = make(Expression::Kind::kUnary, unary(false));
    node->name = name;
  } else {
    node = primary();
  }
  node = postfix(std::move(node));
  return with_filters ? filters_and_tests(std::move(node)) : std::move(node);
}

ExpressionPtr ExpressionParser::primary() {
  const Token& token = now();
  if (take_operator("(")) return parenthesis();
  if (take_operator("[")) return list("]", Expression::Kind::kList);
  if (take_operator("{")) return dict();
  ExpressionPtr node = make(Expression::Kind::kConstant);
  const std::string& text = token.text;
  if (token.kind == TokenKind::kString) {
    std::string joined;
    for (; now().kind == TokenKind::kString; advance()) joined += now().text;
    node->value = joined;
    return node;
  }
  if (token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat) {
    int64_t integer = 0;
    double number = 0;
    if (token.kind == TokenKind::kFloat)
      std::from_chars(text.data(), text.data() + text.size(), number);
    else
      std::from_chars(text.data(), text.data() + text.size(), integer);
    node->value = token.kind == TokenKind::kFloat ? Value(number) : Value(integer);
  } else if (token.kind == TokenKind::kName) {
    if (text == "true" || text == "True" || text == "false" || text == "False")
      node->value = text == "true" || text == "True";
    else if (text != "none" && text != "None")
      *node = Expression{Expression::Kind::kName, token.line, text};
  } else {
    unexpected("a value");
  }
  advance();
  return node;
}

ExpressionPtr ExpressionParser::parenthesis() {
  if (take_operator(")")) return make(Expression::Kind::kTuple);
  ExpressionPtr inner = expression_or_tuple();
  expect_operator(")");
  return inner;
}

ExpressionPtr ExpressionParser::list(const char* end, Expression::Kind kind) {
  ExpressionPtr node = make(kind);
  while (!take_operator(end)) {
    if (!node->operands.empty()) expect_operator(",");
    if (take_operator(end)) break;
    add(*node, expression());
  }
  return node;
}

ExpressionPtr ExpressionParser::dict() {
  ExpressionPtr node = make(Expression::Kind::kDict);
  while (!take_operator("}")) {
    if (!node->operands.empty()) expect_operator(",");
    if (take_operator("}")) break;
    add(*node, expression());
    expect_operator(":");
    add(*node, expression());
  }
  return node;
}

ExpressionPtr ExpressionParser::postfix(ExpressionPtr operand) {
  while (true) {
    if (take_operator(".")) {
      operand = make(Expression::Kind::kAttribute, std::move(operand));
      if (now().kind == TokenKind::kInteger) {
        operand->kind = Expression::Kind::kItem;
        add(*operand, primary());
      } else {
        operand->name = expect_name();
      }
    } else if (take_operator("[")) {
      operand = subscript(std::move(operand));
    } else if (is_operator("(")) {
      operand = make(Expression::Kind::kCall, std::move(operand));
      arguments(*operand);
    } else {
      return operand;
    }
  }
}

ExpressionPtr ExpressionParser::subscript(ExpressionPtr operand) {
  ExpressionPtr node = make(Expression::Kind::kItem, std::move(operand));
  ExpressionPtr parts[3];
  std::size_t count = 0;
  while (!is_operator("]")) {
    if (take_operator(":")) {
      if (++count > 2) unexpected("\"]\"");
      continue;
    }
    if (parts[count]) unexpected("\":\" or \"]\"");
    parts[count] = expression_or_tuple();
  }
  advance();
  if (count == 0 && !parts[0]) unexpected("an index");
  if (count > 0) node->kind = Expression::Kind::kSlice;
  for (std::size_t i = 0; i < (count > 0 ? 3U : 1U); i++) add(*node, std::move(parts[i]));
  return node;
}

/// Adds the arguments in parentheses, if there are any.
void ExpressionParser::arguments(Expression& call) {
  if (!take_operator("(")) return;
  for (bool first = true; !take_operator(")"); first = false) {
    if (!first) expect_operator(",");
    if (take_operator(")")) return;
    if (is_operator("*") || is_operator("**"))
      fail_at(now().line, "arguments from a list or a dict (*) are not supported");
    const bool is_named =
        now().kind == TokenKind::kName && next().kind == TokenKind::kOperator && next().text == "=";
    if (!is_named) {
      add(call, expression());
      continue;
    }
    std::string name = expect_name();
    advance();
    ExpressionPtr value = expression();
    call.named.emplace_back(std::move(name), std::move(*adopt(call, value)));
  }
}

ExpressionPtr ExpressionParser::filter(ExpressionPtr operand) {
  ExpressionPtr node = make(Expression::Kind::kFilter, std::move(operand));
  node->name = expect_name();
  arguments(*node);
  return node;
}

ExpressionPtr ExpressionParser::filters(ExpressionPtr operand) {
  while (take_operator("|")) operand = filter(std::move(operand));
  return operand;
}

ExpressionPtr ExpressionParser::filters_and_tests(ExpressionPtr operand) {
  while (true) {
    if (take_operator("|")) {
      operand = filter(std::move(operand));
    } else if (take_word("is")) {
      operand = test(std::move(operand));
    } else if (is_operator("(")) {
      operand = make(Expression::Kind::kCall, std::move(operand));
      arguments(*operand);
    } else {
      return operand;
    }
  }
}

ExpressionPtr ExpressionParser::test(ExpressionPtr operand) {
  ExpressionPtr node = make(Expression::Kind::kTest, std::move(operand));
  node->negated = take_word("not");
  node->name = expect_name();
  if (is_operator("(")) {
    arguments(*node);
    return node;
  }
  const TokenKind kind = now().kind;
  bool argument = kind == TokenKind::kString || kind == TokenKind::kInteger ||
                  kind == TokenKind::kFloat || kind == TokenKind::kName || is_operator("[") ||
                  is_operator("{");
  for (const char* word : {"else", "or", "and", "if", "in", "is", "not"})
    argument = argument && !is_word(word);
  if (argument) add(*node, postfix(primary()));
  return node;
}

}  // namespace aqhost::jinja
