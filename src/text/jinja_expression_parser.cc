#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_parser.h"

namespace mixtral::jinja {
namespace {

using ExpressionKind = Expression::Kind;

constexpr int kDeepestExpression = 200;  // expressions within expressions
constexpr int kLongestChain = 500;       // a + b + c ..., and a.b.c ...

std::string described(const Token& token) {
  switch (token.kind) {
    case Token::Kind::data:
      return "text outside of tags";
    case Token::Kind::print_begin:
      return "'{{'";
    case Token::Kind::print_end:
      return "'}}'";
    case Token::Kind::statement_begin:
      return "'{%'";
    case Token::Kind::statement_end:
      return "'%}'";
    case Token::Kind::end:
      return "the end of the template";
    default:
      return fmt::format("'{}'", printable(token.text));
  }
}

}  // namespace

void TokenStream::fail(std::string_view reason) const { fail_at(source_, current().line, reason); }

bool TokenStream::take_sign(std::string_view sign) {
  if (!is_sign(sign)) return false;
  skip();
  return true;
}

bool TokenStream::take_name(std::string_view name) {
  if (!is_name(name)) return false;
  skip();
  return true;
}

void TokenStream::expect_sign(std::string_view sign) {
  if (!take_sign(sign)) fail(fmt::format("expected '{}', found {}", sign, described(current())));
}

void TokenStream::expect_name(std::string_view name) {
  if (!take_name(name)) fail(fmt::format("expected '{}', found {}", name, described(current())));
}

std::string TokenStream::expect_any_name() {
  if (!is(Token::Kind::name)) fail(fmt::format("expected a name, found {}", described(current())));
  std::string name = current().text;
  skip();
  return name;
}

ExpressionPointer ExpressionParser::make(ExpressionKind kind) const {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->line = tokens_.current().line;
  return expression;
}

ExpressionPointer ExpressionParser::binary(std::string name, ExpressionPointer left,
                                           ExpressionPointer right) const {
  auto expression = make(ExpressionKind::binary);
  expression->name = std::move(name);
  expression->parts.push_back(std::move(left));
  expression->parts.push_back(std::move(right));
  return expression;
}

ExpressionPointer ExpressionParser::parse(Conditional conditional) {
  if (++depth_ > kDeepestExpression) tokens_.fail("expressions are nested too deeply");
  ExpressionPointer value = parse_or();
  for (int chain = 0; conditional == Conditional::allowed && tokens_.is_name("if"); ++chain) {
    if (chain > kDeepestExpression) tokens_.fail("there are too many conditions in one expression");
    auto expression = make(ExpressionKind::conditional);
    tokens_.skip();
    const bool outer = lenient_;
    lenient_ = true;
    expression->parts.push_back(parse_or());
    expression->parts.push_back(std::move(value));
    expression->parts.push_back(tokens_.take_name("else") ? parse() : nullptr);
    lenient_ = outer;
    value = std::move(expression);
  }
  --depth_;
  return value;
}

ExpressionPointer ExpressionParser::parse_or() {
  ExpressionPointer left = parse_and();
  for (int chain = 0; tokens_.take_name("or"); ++chain) {
    if (chain > kLongestChain) tokens_.fail("the expression is too long");
    left = binary("or", std::move(left), parse_and());
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_and() {
  ExpressionPointer left = parse_not();
  for (int chain = 0; tokens_.take_name("and"); ++chain) {
    if (chain > kLongestChain) tokens_.fail("the expression is too long");
    left = binary("and", std::move(left), parse_not());
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_not() {
  if (!tokens_.is_name("not")) return parse_compare();
  if (++depth_ > kDeepestExpression) tokens_.fail("expressions are nested too deeply");
  auto expression = make(ExpressionKind::negate);
  tokens_.skip();
  expression->parts.push_back(parse_not());
  --depth_;
  return expression;
}

ExpressionPointer ExpressionParser::parse_compare() {
  ExpressionPointer first = parse_sum();
  ExpressionPointer expression;
  while (true) {
    std::string name;
    for (const std::string_view sign : {"==", "!=", "<=", ">=", "<", ">"})
      if (tokens_.is_sign(sign)) name = sign;
    const bool negated = tokens_.is_name("not") && tokens_.peek().kind == Token::Kind::name &&
                         tokens_.peek().text == "in";
    if (negated)
      name = "not in";
    else if (tokens_.is_name("in"))
      name = "in";
    if (name.empty()) break;
    tokens_.skip();
    if (negated) tokens_.skip();
    if (!expression) {
      expression = make(ExpressionKind::compare);
      expression->parts.push_back(std::move(first));
    }
    expression->operators.push_back(std::move(name));
    expression->parts.push_back(parse_sum());
  }
  return expression ? std::move(expression) : std::move(first);
}

ExpressionPointer ExpressionParser::parse_sum() {
  ExpressionPointer left = parse_joined();
  for (int chain = 0; tokens_.is_sign("+") || tokens_.is_sign("-"); ++chain) {
    if (chain > kLongestChain) tokens_.fail("the expression is too long");
    std::string sign = tokens_.current().text;
    tokens_.skip();
    left = binary(std::move(sign), std::move(left), parse_joined());
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_joined() {
  ExpressionPointer left = parse_product();
  for (int chain = 0; tokens_.take_sign("~"); ++chain) {
    if (chain > kLongestChain) tokens_.fail("the expression is too long");
    left = binary("~", std::move(left), parse_product());
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_product() {
  ExpressionPointer left = parse_power();
  for (int chain = 0; tokens_.is_sign("*") || tokens_.is_sign("/") || tokens_.is_sign("//") ||
                      tokens_.is_sign("%");
       ++chain) {
    if (chain > kLongestChain) tokens_.fail("the expression is too long");
    std::string sign = tokens_.current().text;
    tokens_.skip();
    left = binary(std::move(sign), std::move(left), parse_power());
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_power() {
  ExpressionPointer left = parse_unary();
  for (int chain = 0; tokens_.take_sign("**"); ++chain) {
    if (chain > kLongestChain) tokens_.fail("the expression is too long");
    left = binary("**", std::move(left), parse_unary());
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_unary(bool with_filter) {
  if (++depth_ > kDeepestExpression) tokens_.fail("expressions are nested too deeply");
  ExpressionPointer value;
  if (tokens_.is_sign("-") || tokens_.is_sign("+")) {
    value = make(tokens_.is_sign("-") ? ExpressionKind::minus : ExpressionKind::plus);
    tokens_.skip();
    value->parts.push_back(parse_unary(false));
  } else {
    value = parse_primary();
  }
  value = parse_postfix(std::move(value));
  if (with_filter) value = parse_filter_expression(std::move(value));
  --depth_;
  return value;
}

ExpressionPointer ExpressionParser::parse_primary() {
  const Token& token = tokens_.current();
  auto expression = make(ExpressionKind::constant);
  switch (token.kind) {
    case Token::Kind::name:
      if (token.text == "true" || token.text == "True") {
        expression->value = Value::of(true);
      } else if (token.text == "false" || token.text == "False") {
        expression->value = Value::of(false);
      } else if (token.text == "none" || token.text == "None") {
        expression->value = Value::none();
      } else {
        expression->kind = ExpressionKind::name;
        expression->name = token.text;
      }
      tokens_.skip();
      return expression;
    case Token::Kind::text: {
      std::string text;
      for (; tokens_.is(Token::Kind::text); tokens_.skip()) text += tokens_.current().text;
      expression->value = Value::of(std::move(text));
      return expression;
    }
    case Token::Kind::number:
      expression->value = token.number;
      tokens_.skip();
      return expression;
    default:
      break;
  }
  if (tokens_.take_sign("(")) {
    if (tokens_.take_sign(")")) return make(ExpressionKind::tuple);
    ExpressionPointer inner = parse_tuple();
    tokens_.expect_sign(")");
    return inner;
  }
  if (tokens_.is_sign("[")) return parse_list();
  if (tokens_.is_sign("{")) return parse_dict();
  tokens_.fail(fmt::format("expected an expression, found {}", described(token)));
}

bool ExpressionParser::ends_tuple() const {
  return tokens_.is(Token::Kind::print_end) || tokens_.is(Token::Kind::statement_end) ||
         tokens_.is_sign(")") || tokens_.is_sign("=") || tokens_.is_name("in");
}

ExpressionPointer ExpressionParser::parse_tuple(Conditional conditional) {
  ExpressionPointer first = parse(conditional);
  if (!tokens_.is_sign(",")) return first;
  auto tuple = make(ExpressionKind::tuple);
  tuple->parts.push_back(std::move(first));
  while (tokens_.take_sign(",") && !ends_tuple()) tuple->parts.push_back(parse(conditional));
  return tuple;
}

ExpressionPointer ExpressionParser::parse_target() {
  const auto one = [&]() -> ExpressionPointer {
    if (tokens_.take_sign("(")) {
      ExpressionPointer inner = parse_target();
      tokens_.expect_sign(")");
      return inner;
    }
    auto name = make(ExpressionKind::name);
    name->name = tokens_.expect_any_name();
    for (const std::string_view constant : {"true", "false", "none", "True", "False", "None"})
      if (name->name == constant) tokens_.fail(fmt::format("'{}' cannot be assigned to", constant));
    if (!tokens_.take_sign(".")) return name;
    auto attribute = make(ExpressionKind::attribute);
    attribute->name = tokens_.expect_any_name();
    attribute->parts.push_back(std::move(name));
    return attribute;
  };
  if (++depth_ > kDeepestExpression) tokens_.fail("expressions are nested too deeply");
  ExpressionPointer first = one();
  if (tokens_.is_sign(",")) {
    auto tuple = make(ExpressionKind::tuple);
    tuple->parts.push_back(std::move(first));
    while (tokens_.take_sign(",") && !ends_tuple()) tuple->parts.push_back(one());
    first = std::move(tuple);
  }
  --depth_;
  return first;
}

ExpressionPointer ExpressionParser::parse_list() {
  auto list = make(ExpressionKind::list);
  tokens_.expect_sign("[");
  while (!tokens_.is_sign("]")) {
    list->parts.push_back(parse());
    if (!tokens_.take_sign(",")) break;
  }
  tokens_.expect_sign("]");
  return list;
}

ExpressionPointer ExpressionParser::parse_dict() {
  auto dict = make(ExpressionKind::dict);
  tokens_.expect_sign("{");
  while (!tokens_.is_sign("}")) {
    dict->parts.push_back(parse());
    tokens_.expect_sign(":");
    dict->parts.push_back(parse());
    if (!tokens_.take_sign(",")) break;
  }
  tokens_.expect_sign("}");
  return dict;
}

ExpressionPointer ExpressionParser::parse_postfix(ExpressionPointer value) {
  for (int chain = 0;; ++chain) {
    if (chain > kLongestChain) tokens_.fail("the expression is too long");
    if (tokens_.is_sign(".") || tokens_.is_sign("["))
      value = parse_subscript(std::move(value));
    else if (tokens_.is_sign("("))
      value = parse_call(std::move(value));
    else
      return value;
  }
}

ExpressionPointer ExpressionParser::parse_filter_expression(ExpressionPointer value) {
  for (int chain = 0;; ++chain) {
    if (chain > kLongestChain) tokens_.fail("the expression is too long");
    if (tokens_.take_sign("|"))
      value = parse_filter(std::move(value));
    else if (tokens_.is_name("is"))
      value = parse_test(std::move(value));
    else if (tokens_.is_sign("("))
      value = parse_call(std::move(value));
    else
      return value;
  }
}

ExpressionPointer ExpressionParser::parse_filters(ExpressionPointer value,
                                                  bool first_without_pipe) {
  if (first_without_pipe) value = parse_filter(std::move(value));
  while (tokens_.take_sign("|")) value = parse_filter(std::move(value));
  return value;
}

ExpressionPointer ExpressionParser::parse_filter(ExpressionPointer value) {
  auto filter = make(ExpressionKind::filter);
  filter->name = tokens_.expect_any_name();
  while (tokens_.take_sign(".")) filter->name += "." + tokens_.expect_any_name();
  if (!lenient_ && !is_filter(filter->name))
    tokens_.fail(fmt::format("there is no filter named '{}'", printable(filter->name)));
  filter->parts.push_back(std::move(value));
  if (tokens_.is_sign("(")) filter->arguments = parse_arguments();
  return filter;
}

ExpressionPointer ExpressionParser::parse_test(ExpressionPointer value) {
  tokens_.skip();
  const bool negated = tokens_.take_name("not");
  auto test = make(ExpressionKind::test);
  test->name = tokens_.expect_any_name();
  while (tokens_.take_sign(".")) test->name += "." + tokens_.expect_any_name();
  if (!lenient_ && !is_test(test->name))
    tokens_.fail(fmt::format("there is no test named '{}'", printable(test->name)));
  test->parts.push_back(std::move(value));
  if (tokens_.is_sign("(")) {
    test->arguments = parse_arguments();
  } else if ((tokens_.is(Token::Kind::name) && !tokens_.is_name("else") && !tokens_.is_name("or") &&
              !tokens_.is_name("and")) ||
             tokens_.is(Token::Kind::text) || tokens_.is(Token::Kind::number) ||
             tokens_.is_sign("[") || tokens_.is_sign("{")) {
    if (tokens_.is_name("is")) tokens_.fail("tests with 'is' cannot be chained");
    test->arguments.positional.push_back(parse_postfix(parse_primary()));
  }
  if (!negated) return test;
  auto expression = make(ExpressionKind::negate);
  expression->parts.push_back(std::move(test));
  return expression;
}

ExpressionPointer ExpressionParser::parse_subscript(ExpressionPointer value) {
  if (tokens_.take_sign(".")) {
    if (tokens_.is(Token::Kind::number) && tokens_.current().number.is(Value::Kind::integer)) {
      auto item = make(ExpressionKind::item);
      auto index = make(ExpressionKind::constant);
      index->value = tokens_.current().number;
      tokens_.skip();
      item->parts.push_back(std::move(value));
      item->parts.push_back(std::move(index));
      return item;
    }
    auto attribute = make(ExpressionKind::attribute);
    attribute->name = tokens_.expect_any_name();
    attribute->parts.push_back(std::move(value));
    return attribute;
  }
  auto item = make(ExpressionKind::item);
  tokens_.expect_sign("[");
  std::vector<ExpressionPointer> subscripts;
  while (!tokens_.is_sign("]")) {
    subscripts.push_back(parse_one_subscript());
    if (!tokens_.take_sign(",")) break;
  }
  tokens_.expect_sign("]");
  item->parts.push_back(std::move(value));
  if (subscripts.size() == 1) {
    item->parts.push_back(std::move(subscripts[0]));
  } else {
    auto tuple = make(ExpressionKind::tuple);
    tuple->parts = std::move(subscripts);
    item->parts.push_back(std::move(tuple));
  }
  return item;
}

ExpressionPointer ExpressionParser::parse_one_subscript() {
  ExpressionPointer start;
  if (!tokens_.is_sign(":")) {
    start = parse();
    if (!tokens_.is_sign(":")) return start;
  }
  auto slice = make(ExpressionKind::slice);
  tokens_.skip();
  const auto bound = [&]() -> ExpressionPointer {
    if (tokens_.is_sign(":") || tokens_.is_sign("]") || tokens_.is_sign(",")) return nullptr;
    return parse();
  };
  slice->parts.push_back(std::move(start));
  slice->parts.push_back(bound());
  slice->parts.push_back(tokens_.take_sign(":") ? bound() : nullptr);
  return slice;
}

ExpressionPointer ExpressionParser::parse_call(ExpressionPointer callee) {
  auto call = make(ExpressionKind::call);
  call->parts.push_back(std::move(callee));
  call->arguments = parse_arguments();
  return call;
}

ArgumentExpressions ExpressionParser::parse_arguments() {
  ArgumentExpressions arguments;
  tokens_.expect_sign("(");
  const auto require = [&](bool condition) {
    if (!condition) tokens_.fail("the arguments are in the wrong order");
  };
  while (!tokens_.is_sign(")")) {
    if (tokens_.take_sign("*")) {
      require(!arguments.star && !arguments.double_star);
      arguments.star = parse();
    } else if (tokens_.take_sign("**")) {
      require(!arguments.double_star);
      arguments.double_star = parse();
    } else if (tokens_.is(Token::Kind::name) && tokens_.peek().kind == Token::Kind::sign &&
               tokens_.peek().text == "=") {
      require(!arguments.double_star);
      std::string name = tokens_.expect_any_name();
      tokens_.skip();
      arguments.named.emplace_back(std::move(name), parse());
    } else {
      require(!arguments.star && !arguments.double_star && arguments.named.empty());
      arguments.positional.push_back(parse());
    }
    if (!tokens_.take_sign(",")) break;
  }
  tokens_.expect_sign(")");
  return arguments;
}

}  // namespace mixtral::jinja
