#include "chat/parser.h"

#include <array>
#include <string_view>

#include "base/error.h"

namespace aqhost::jinja {
namespace {

/// Names that statements begin with in Jinja and that are not read here.
constexpr std::array<std::string_view, 9> kOthers{
    "include", "import", "from", "extends", "block", "call", "with", "autoescape", "do"};

class Parser : ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Block run() {
    Block block = body({});
    if (now().kind != TokenKind::kEnd) unexpected("the end of the template");
    return block;
  }

 private:
  /// The statements up to one of the words `ends`, in front of which it stops.
  Block body(std::initializer_list<const char*> ends) {
    const Level level(*this);
    Block block;
    while (now().kind != TokenKind::kEnd) {
      if (now().kind == TokenKind::kText) {
        block.push_back(Statement{Statement::Kind::kText, now().line, now().text});
        advance();
      } else if (now().kind == TokenKind::kOutputBegin) {
        block.push_back(Statement{Statement::Kind::kOutput, now().line});
        advance();
        block.back().value = expression_or_tuple();
        end_tag(TokenKind::kOutputEnd);
      } else {
        advance();
        for (const char* end : ends)
          if (is_word(end)) return block;
        block.push_back(statement());
      }
    }
    if (ends.size() > 0) unexpected(fmt::format("{{% {} %}}", *(ends.end() - 1)));
    return block;
  }

  void end_tag(TokenKind kind) {
    if (now().kind != kind) unexpected(kind == TokenKind::kOutputEnd ? "\"}}\"" : "\"%}\"");
    advance();
  }
  void end_statement() { end_tag(TokenKind::kStatementEnd); }

  /// A body and the statement that ends it.
  Block body_to(const char* end) {
    end_statement();
    Block block = body({end});
    advance();
    return block;
  }

  Statement statement() {
    const int64_t line = now().line;
    const std::string name = expect_name();
    Statement made{Statement::Kind::kScope, line};
    if (name == "if") {
      parse_if(made);
    } else if (name == "for") {
      parse_for(made);
    } else if (name == "set") {
      parse_set(made);
    } else if (name == "macro") {
      parse_macro(made);
    } else if (name == "filter") {
      made.kind = Statement::Kind::kFilter;
      made.value = block_filters(line, true);
      made.body = body_to("endfilter");
    } else if (name == "generation") {
      made.body = body_to("endgeneration");
    } else if (name == "break" || name == "continue") {
      if (loops_ == 0) fail_at(line, fmt::format("{} is outside of a loop", name));
      made.kind = name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue;
    } else {
      for (const std::string_view other : kOthers)
        if (name == other)
          fail_at(line, fmt::format("the statement \"{}\" is not supported", name));
      fail_at(line, fmt::format("there is no statement \"{}\" here", name));
    }
    end_statement();
    return made;
  }

  void parse_if(Statement& made) {
    made.kind = Statement::Kind::kIf;
    bool last = false;
    ExpressionPtr condition = expression_or_tuple();
    while (true) {
      end_statement();
      Block block = last ? body({"endif"}) : body({"elif", "else", "endif"});
      made.branches.emplace_back(std::move(condition), std::move(block));
      if (take_word("endif")) return;
      last = !take_word("elif");
      if (last) advance();  // else
      condition = last ? nullptr : expression_or_tuple();
    }
  }

  void parse_for(Statement& made) {
    made.kind = Statement::Kind::kFor;
    parse_targets(made);
    if (!take_word("in")) unexpected("\"in\"");
    made.value = condition_free_expression();  // an "if" belongs to the loop
    if (take_word("if")) made.condition = expression();
    if (is_word("recursive")) fail_at(now().line, "recursive loops are not supported");
    end_statement();
    loops_++;
    made.body = body({"else", "endfor"});
    loops_--;
    if (take_word("else")) {
      made.other = body_to("endfor");
    } else {
      advance();
    }
  }

  void parse_targets(Statement& made) {
    const bool parenthesis = take_operator("(");
    do {
      made.targets.push_back(expect_name());
    } while (take_operator(","));
    if (parenthesis) expect_operator(")");
  }

  void parse_set(Statement& made) {
    made.kind = Statement::Kind::kSet;
    parse_targets(made);
    if (made.targets.size() == 1 && take_operator(".")) made.attribute = expect_name();
    if (take_operator("=")) {
      made.value = expression_or_tuple();
      return;
    }
    made.kind = Statement::Kind::kSetBlock;
    made.value = block_filters(made.line, false);
    const int loops = loops_;
    loops_ = 0;
    made.body = body_to("endset");
    loops_ = loops;
  }

  /// The filters for the text of a block. A set block may have none.
  ExpressionPtr block_filters(int64_t line, bool filter) {
    auto text = std::make_unique<Expression>(Expression{Expression::Kind::kName, line, kBlockText});
    if (filter) return first_filter(std::move(text));
    return filters(std::move(text));
  }

  void parse_macro(Statement& made) {
    made.kind = Statement::Kind::kMacro;
    if (loops_ > 0 || macros_ > 0)
      fail_at(made.line, "a macro in a loop or in another macro is not supported");
    made.name = expect_name();
    expect_operator("(");
    for (bool first = true; !take_operator(")"); first = false) {
      if (!first) expect_operator(",");
      std::string parameter = expect_name();
      made.parameters.emplace_back(std::move(parameter),
                                   take_operator("=") ? expression() : nullptr);
    }
    macros_++;
    made.body = body_to("endmacro");
    macros_--;
  }

  int loops_ = 0, macros_ = 0;
};

}  // namespace

Block parse(const std::vector<Token>& tokens) { return Parser(tokens).run(); }

}  // namespace aqhost::jinja
