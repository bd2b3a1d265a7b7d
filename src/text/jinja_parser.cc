#include "text/jinja_parser.h"

#include <fmt/format.h>

#include <algorithm>

namespace mixtral::jinja {
namespace {

using StatementKind = Statement::Kind;

constexpr int kDeepestBlock = 100;  // blocks within blocks

class StatementParser {
 public:
  StatementParser(std::string_view text, std::string_view source)
      : tokens_(text, source), expressions_(tokens_) {}

  Body parse() {
    Body body = parse_body({});
    if (!tokens_.is(Token::Kind::end)) tokens_.fail("unexpected tag");
    return body;
  }

 private:
  /// Statements up to a tag of one of the names, which is left at its name, or to the end where
  /// there are no names.
  Body parse_body(const std::vector<std::string_view>& ends) {
    if (++depth_ > kDeepestBlock) tokens_.fail("blocks are nested too deeply");
    Body body;
    while (true) {
      if (tokens_.is(Token::Kind::end)) {
        if (!ends.empty())
          tokens_.fail(fmt::format("the template ends before {{% {} %}}", ends.back()));
        break;
      }
      if (tokens_.is(Token::Kind::data)) {
        Statement data = make(StatementKind::data);
        data.text = tokens_.current().text;
        tokens_.skip();
        body.push_back(std::move(data));
      } else if (tokens_.is(Token::Kind::print_begin)) {
        tokens_.skip();
        Statement print = make(StatementKind::print);
        print.expression = expressions_.parse_tuple();
        if (!tokens_.is(Token::Kind::print_end)) tokens_.fail("expected '}}' after the expression");
        tokens_.skip();
        body.push_back(std::move(print));
      } else {
        tokens_.skip();  // {%
        const std::string name = tokens_.is(Token::Kind::name) ? tokens_.current().text : "";
        if (std::ranges::find(ends, name) != ends.end()) break;
        body.push_back(parse_statement());
      }
    }
    --depth_;
    return body;
  }

  static Statement make_at(StatementKind kind, int line) {
    Statement statement;
    statement.kind = kind;
    statement.line = line;
    return statement;
  }
  Statement make(StatementKind kind) const { return make_at(kind, tokens_.current().line); }

  void end_tag() {
    if (!tokens_.is(Token::Kind::statement_end)) tokens_.fail("expected '%}' here");
    tokens_.skip();
  }

  /// The rest of a block: its body, and its end tag.
  Body block(std::string_view end) {
    end_tag();
    Body body = parse_body({end});
    tokens_.expect_name(end);
    end_tag();
    return body;
  }

  Statement parse_statement() {
    const int line = tokens_.current().line;
    const std::string name = tokens_.expect_any_name();
    if (name == "if") return parse_if(line);
    if (name == "for") return parse_for(line);
    if (name == "set") return parse_set(line);
    if (name == "macro") return parse_macro(line);
    if (name == "call") return parse_call(line);
    if (name == "filter") {
      Statement statement = make_at(StatementKind::filter_block, line);
      statement.expression = expressions_.parse_filters(nullptr, true);
      statement.body = block("endfilter");
      return statement;
    }
    if (name == "with") return parse_with(line);
    if (name == "generation") {
      Statement statement = make_at(StatementKind::generation, line);
      statement.body = block("endgeneration");
      return statement;
    }
    if (name == "block" || name == "autoescape") return parse_scope(line, name);
    if (name == "break" || name == "continue") {
      Statement statement =
          make_at(name == "break" ? StatementKind::leave : StatementKind::go_on, line);
      if (loops_ == 0) tokens_.fail(fmt::format("'{}' outside of a loop", name));
      end_tag();
      return statement;
    }
    if (name == "print") {
      Statement statement = make_at(StatementKind::print, line);
      statement.expression = expressions_.parse_tuple();
      end_tag();
      return statement;
    }
    if (name == "do") tokens_.fail("the tag 'do' is an extension that chat templates do not have");
    if (name == "include" || name == "import" || name == "from" || name == "extends") {
      Statement statement = make_at(StatementKind::refused, line);
      statement.text = name;
      while (!tokens_.is(Token::Kind::statement_end) && !tokens_.is(Token::Kind::end))
        tokens_.skip();
      end_tag();
      return statement;
    }
    tokens_.fail(fmt::format("unknown tag '{}'", printable(name)));
  }

  Statement parse_if(int line) {
    Statement statement = make_at(StatementKind::branch, line);
    if (++depth_ > kDeepestBlock) tokens_.fail("blocks are nested too deeply");
    const bool outer = expressions_.lenient();
    statement.expression = expressions_.parse_tuple(ExpressionParser::Conditional::refused);
    expressions_.set_lenient(true);
    end_tag();
    statement.body = parse_body({"elif", "else", "endif"});
    if (tokens_.is_name("elif")) {
      const int next = tokens_.current().line;
      tokens_.skip();
      statement.otherwise.push_back(parse_if(next));
    } else {
      if (tokens_.take_name("else")) {
        end_tag();
        statement.otherwise = parse_body({"endif"});
      }
      tokens_.expect_name("endif");
      end_tag();
    }
    expressions_.set_lenient(outer);
    --depth_;
    return statement;
  }

  Statement parse_for(int line) {
    Statement statement = make_at(StatementKind::loop, line);
    statement.target = expressions_.parse_target();
    tokens_.expect_name("in");
    statement.expression = expressions_.parse_tuple(ExpressionParser::Conditional::refused);
    if (tokens_.take_name("if")) statement.condition = expressions_.parse();
    statement.recursive = tokens_.take_name("recursive");
    end_tag();
    const bool outer = expressions_.lenient();
    expressions_.set_lenient(false);
    ++loops_;
    statement.body = parse_body({"else", "endfor"});
    --loops_;
    if (tokens_.take_name("else")) {
      end_tag();
      statement.otherwise = parse_body({"endfor"});
    }
    expressions_.set_lenient(outer);
    tokens_.expect_name("endfor");
    end_tag();
    return statement;
  }

  Statement parse_set(int line) {
    Statement statement = make_at(StatementKind::set, line);
    statement.target = expressions_.parse_target();
    if (tokens_.take_sign("=")) {
      statement.expression = expressions_.parse_tuple();
      end_tag();
      return statement;
    }
    statement.kind = StatementKind::set_block;
    if (tokens_.is_sign("|")) statement.expression = expressions_.parse_filters(nullptr, false);
    statement.body = block("endset");
    return statement;
  }

  Parameters parse_parameters() {
    Parameters parameters;
    tokens_.expect_sign("(");
    while (!tokens_.is_sign(")")) {
      parameters.names.push_back(tokens_.expect_any_name());
      if (tokens_.take_sign("="))
        parameters.defaults.push_back(expressions_.parse());
      else if (!parameters.defaults.empty())
        tokens_.fail("a parameter without a default follows one with a default");
      if (!tokens_.take_sign(",")) break;
    }
    tokens_.expect_sign(")");
    return parameters;
  }

  /// A body that a loop outside cannot be left from.
  Body own_block(std::string_view end) {
    const int loops = loops_;
    const bool outer = expressions_.lenient();
    loops_ = 0;
    expressions_.set_lenient(false);
    Body body = block(end);
    loops_ = loops;
    expressions_.set_lenient(outer);
    return body;
  }

  Statement parse_macro(int line) {
    Statement statement = make_at(StatementKind::macro, line);
    statement.text = tokens_.expect_any_name();
    statement.parameters = parse_parameters();
    statement.body = own_block("endmacro");
    return statement;
  }

  Statement parse_call(int line) {
    Statement statement = make_at(StatementKind::call_block, line);
    if (tokens_.is_sign("(")) statement.parameters = parse_parameters();
    statement.expression = expressions_.parse();
    if (statement.expression->kind != Expression::Kind::call)
      tokens_.fail("expected a call after 'call'");
    statement.body = own_block("endcall");
    return statement;
  }

  Statement parse_with(int line) {
    Statement statement = make_at(StatementKind::with, line);
    while (!tokens_.is(Token::Kind::statement_end)) {
      if (!statement.pairs.empty()) tokens_.expect_sign(",");
      ExpressionPointer target = expressions_.parse_target();
      tokens_.expect_sign("=");
      statement.pairs.emplace_back(std::move(target), expressions_.parse());
    }
    statement.body = block("endwith");
    return statement;
  }

  Statement parse_scope(int line, const std::string& name) {
    Statement statement = make_at(StatementKind::scope, line);
    if (name == "autoescape") {
      statement.expression = expressions_.parse();
    } else {
      tokens_.expect_any_name();
      while (tokens_.take_name("scoped") || tokens_.take_name("required")) {
      }
    }
    end_tag();
    const std::string end = "end" + name;
    statement.body = parse_body({end});
    tokens_.expect_name(end);
    if (name == "block" && tokens_.is(Token::Kind::name)) tokens_.skip();
    end_tag();
    return statement;
  }

  TokenStream tokens_;
  ExpressionParser expressions_;
  int depth_ = 0, loops_ = 0;
};

}  // namespace

Body parse_template(std::string_view text, std::string_view source) {
  return StatementParser(text, source).parse();
}

}  // namespace mixtral::jinja
