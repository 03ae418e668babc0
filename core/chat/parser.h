#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "chat/syntax.h"

namespace aqhost::jinja {

/// Reads tokens one after another, and expressions with Jinja's precedence.
class ExpressionParser {
 public:
  explicit ExpressionParser(const std::vector<Token>& tokens) : tokens_(tokens) {}

 protected:
  const Token& now() const { return tokens_[at_]; }
  const Token& next() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  void advance() { at_ += at_ + 1 < tokens_.size() ? 1 : 0; }
  bool is_operator(const char* text) const {
    return now().kind == TokenKind::kOperator && now().text == text;
  }
  bool is_word(const char* text) const {
    return now().kind == TokenKind::kName && now().text == text;
  }
  bool take_operator(const char* text);
  bool take_word(const char* text);
  void expect_operator(const char* text);
  std::string expect_name();
  [[noreturn]] void unexpected(const std::string& expected) const;

  ExpressionPtr expression();
  /// Expressions with commas between them are a tuple.
  ExpressionPtr expression_or_tuple();
  /// `operand | filter | filter`, of which `operand` is there already.
  ExpressionPtr filters(ExpressionPtr operand);
  /// The same without "|" in front of the first filter.
  ExpressionPtr first_filter(ExpressionPtr operand) { return filters(filter(std::move(operand))); }
  /// An expression without `a if b` outside of parentheses.
  ExpressionPtr condition_free_expression();

  /// Counts how deep the parser is in itself while this lives.
  class Level {
   public:
    explicit Level(ExpressionParser& parser);
    ~Level() { parser_.depth_--; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    ExpressionParser& parser_;
  };

 private:
  ExpressionPtr make(Expression::Kind kind, ExpressionPtr first = nullptr,
                     ExpressionPtr second = nullptr) const;
  ExpressionPtr either();
  ExpressionPtr both();
  ExpressionPtr negation();
  ExpressionPtr comparison();
  ExpressionPtr binary(std::size_t level);
  ExpressionPtr unary(bool with_filters = true);
  ExpressionPtr primary();
  ExpressionPtr postfix(ExpressionPtr operand);
  ExpressionPtr filters_and_tests(ExpressionPtr operand);
  ExpressionPtr filter(ExpressionPtr operand);
  ExpressionPtr test(ExpressionPtr operand);
  ExpressionPtr subscript(ExpressionPtr operand);
  ExpressionPtr list(const char* end, Expression::Kind kind);
  ExpressionPtr dict();
  ExpressionPtr parenthesis();
  void arguments(Expression& call);

  const std::vector<Token>& tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace aqhost::jinja
