#pragma once

#include <string_view>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace mixtral::jinja {

/// A stream of tokens with what both halves of the parser need.
class TokenStream {
 public:
  TokenStream(std::string_view text, std::string_view source)
      : source_(source), tokens_(tokenize(text, source)) {}

  const Token& current() const { return tokens_[at_]; }
  const Token& peek() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  void skip() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  bool is(Token::Kind kind) const { return current().kind == kind; }
  bool is_sign(std::string_view sign) const {
    return is(Token::Kind::sign) && current().text == sign;
  }
  bool is_name(std::string_view name) const {
    return is(Token::Kind::name) && current().text == name;
  }
  bool take_sign(std::string_view sign);
  bool take_name(std::string_view name);
  void expect_sign(std::string_view sign);
  void expect_name(std::string_view name);
  std::string expect_any_name();
  [[noreturn]] void fail(std::string_view reason) const;

 private:
  std::string source_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
};

/// Parses expressions by the grammar of jinja2 3.1, nested at most 200 deep. Throws Error.
class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream& tokens) : tokens_(tokens) {}

  enum class Conditional { allowed, refused };
  ExpressionPointer parse(Conditional conditional = Conditional::allowed);
  /// One expression, or several between commas, which are a tuple.
  ExpressionPointer parse_tuple(Conditional conditional = Conditional::allowed);
  /// A name, a.b, or a tuple of names: what is assigned to.
  ExpressionPointer parse_target();
  /// Filters one after another, for {% filter %} and {% set %}: no value is given.
  ExpressionPointer parse_filters(ExpressionPointer value, bool first_without_pipe);
  ExpressionPointer parse_unary(bool with_filter = true);
  /// Whether a filter or test that does not exist fails only when it is reached.
  void set_lenient(bool lenient) { lenient_ = lenient; }
  bool lenient() const { return lenient_; }

 private:
  ExpressionPointer make(Expression::Kind kind) const;
  ExpressionPointer binary(std::string name, ExpressionPointer left, ExpressionPointer right) const;
  ExpressionPointer parse_or();
  ExpressionPointer parse_and();
  ExpressionPointer parse_not();
  ExpressionPointer parse_compare();
  ExpressionPointer parse_sum();
  ExpressionPointer parse_joined();
  ExpressionPointer parse_product();
  ExpressionPointer parse_power();
  ExpressionPointer parse_primary();
  ExpressionPointer parse_postfix(ExpressionPointer value);
  ExpressionPointer parse_filter_expression(ExpressionPointer value);
  ExpressionPointer parse_subscript(ExpressionPointer value);
  ExpressionPointer parse_one_subscript();
  ExpressionPointer parse_call(ExpressionPointer callee);
  ExpressionPointer parse_test(ExpressionPointer value);
  ExpressionPointer parse_list();
  ExpressionPointer parse_dict();
  ExpressionPointer parse_filter(ExpressionPointer value);
  ArgumentExpressions parse_arguments();
  bool ends_tuple() const;

  TokenStream& tokens_;
  int depth_ = 0;
  bool lenient_ = false;
};

/// Parses a whole template. Throws Error "SOURCE:LINE: reason".
Body parse_template(std::string_view text, std::string_view source);

bool is_filter(std::string_view name);
bool is_test(std::string_view name);

}  // namespace mixtral::jinja
