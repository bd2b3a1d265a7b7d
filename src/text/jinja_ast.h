#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace mixtral::jinja {

struct Expression;
using ExpressionPointer = std::unique_ptr<Expression>;

/// The arguments of a call, filter or test, before they are computed.
struct ArgumentExpressions {
  std::vector<ExpressionPointer> positional;
  std::vector<std::pair<std::string, ExpressionPointer>> named;
  ExpressionPointer star, double_star;  // *args and **kwargs; may be null
};

struct Expression {
  enum class Kind {
    constant,
    name,
    list,
    tuple,
    dict,       // parts: key, value, key, value, ...
    attribute,  // parts[0].name
    item,       // parts[0][parts[1]]
    slice,      // parts: start, stop, step; each may be null
    call,       // parts[0](arguments)
    filter,     // parts[0] | name(arguments); parts[0] is null in {% filter %}
    test,       // parts[0] is name(arguments)
    negate,     // not parts[0]
    minus,
    plus,
    binary,       // parts[0] name parts[1]; name is the operator, also "and" and "or"
    compare,      // parts[0] operators[0] parts[1] operators[1] parts[2] ...
    conditional,  // parts[1] if parts[0] else parts[2], which may be null
  };
  Kind kind = Kind::constant;
  int line = 0;
  Value value;
  std::string name;
  std::vector<ExpressionPointer> parts;
  std::vector<std::string> operators;
  ArgumentExpressions arguments;
};

struct Statement;
using Body = std::vector<Statement>;

/// A macro's parameters, or those of the block of {% call %}.
struct Parameters {
  std::vector<std::string> names;
  std::vector<ExpressionPointer> defaults;  // of the last names
};

struct Statement {
  enum class Kind {
    data,
    print,       // expression
    branch,      // if expression: body, else: otherwise
    loop,        // for target in expression [if condition] [recursive]: body, else: otherwise
    set,         // set target = expression
    set_block,   // set target | expression: body
    macro,       // name, parameters, body
    call_block,  // call(parameters) expression: body
    filter_block,
    with,  // target = expression, one by one in pairs: body
    generation,
    scope,    // a block of a name, or autoescape
    go_on,    // continue
    leave,    // break
    refused,  // include, import, extends: fails when it is reached
    nothing
  };
  Kind kind = Kind::nothing;
  int line = 0;
  std::string text;  // data, or a name
  ExpressionPointer target, expression, condition;
  std::vector<std::pair<ExpressionPointer, ExpressionPointer>> pairs;
  Parameters parameters;
  Body body, otherwise;
  bool recursive = false;
};

}  // namespace mixtral::jinja
