// What expressions are worth, by the rules of Python.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "text/jinja_interpreter.h"
#include "text/unicode.h"

namespace mixtral::jinja {
namespace {

using ExpressionKind = Expression::Kind;

[[noreturn]] void fail_types(std::string_view operation, const Value& left, const Value& right) {
  for (const Value* value : {&left, &right})
    if (value->is(Value::Kind::undefined)) throw RenderError(value->undefined_message());
  throw RenderError(fmt::format("unsupported operand types for {}: '{}' and '{}'", operation,
                                left.type_name(), right.type_name()));
}

[[noreturn]] void fail_range() {
  throw RenderError("a whole number is larger than this program computes with");
}

Integer negated(Integer value) {
  Integer result = 0;
  if (__builtin_sub_overflow(Integer{0}, value, &result)) fail_range();
  return result;
}

/// Python's division and remainder round down.
Integer floor_divide(Integer a, Integer b) {
  if (b == -1) return negated(a);
  const Integer quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

double floor_modulo(double a, double b) {
  const double rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

std::string repeated(std::string_view text, size_t times) {
  std::string result;
  result.reserve(text.size() * times);
  for (size_t i = 0; i < times; ++i) result += text;
  return result;
}

/// The bounds of a slice of `count` items, as Python has them.
struct Slice {
  int64_t start, stop, step;
};

Slice slice_bounds(const Value& start, const Value& stop, const Value& step, int64_t count) {
  const auto bound = [](const Value& value, int64_t otherwise) {
    if (value.is(Value::Kind::none)) return otherwise;
    if (!value.is_whole()) throw RenderError("slice indices must be whole numbers");
    return static_cast<int64_t>(
        std::clamp<Integer>(value.integer(), -(int64_t{1} << 62), int64_t{1} << 62));
  };
  const int64_t by = bound(step, 1);
  if (by == 0) throw RenderError("slice step cannot be zero");
  const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? count : count - 1;
  const auto within = [&](int64_t value) {
    if (value < 0) value += count;
    return std::clamp(value, low, high);
  };
  return {start.is(Value::Kind::none) ? (by > 0 ? low : high) : within(bound(start, 0)),
          stop.is(Value::Kind::none) ? (by > 0 ? high : low) : within(bound(stop, 0)), by};
}

}  // namespace

Integer whole_number(const Value& value) {
  if (value.is(Value::Kind::undefined)) throw RenderError(value.undefined_message());
  if (!value.is_whole())
    throw RenderError(fmt::format("expected a whole number, found '{}'", value.type_name()));
  return value.integer();
}

const std::string& plain_text(const Value& value) {
  if (value.is(Value::Kind::undefined)) throw RenderError(value.undefined_message());
  if (!value.is(Value::Kind::string))
    throw RenderError(fmt::format("expected a text, found '{}'", value.type_name()));
  return value.text();
}

Value Interpreter::evaluate(const Expression& e, const ScopePointer& scope) {
  const Depth depth(*this);
  spend();
  const auto part = [&](size_t i) { return evaluate(*e.parts[i], scope); };
  switch (e.kind) {
    case ExpressionKind::constant:
      return e.value;
    case ExpressionKind::name:
      if (const Value* value = scope->find(e.name)) return *value;
      return Value::undefined(fmt::format("'{}' is undefined", e.name));
    case ExpressionKind::list:
    case ExpressionKind::tuple: {
      std::vector<Value> items;
      items.reserve(e.parts.size());
      for (const auto& item : e.parts) items.push_back(evaluate(*item, scope));
      return list(std::move(items),
                  e.kind == ExpressionKind::list ? Value::Kind::list : Value::Kind::tuple);
    }
    case ExpressionKind::dict: {
      Value dict = Value::dict();
      for (size_t i = 0; i + 1 < e.parts.size(); i += 2) dict.set(part(i), part(i + 1));
      reserve(e.parts.size() * sizeof(Value));
      return dict;
    }
    case ExpressionKind::attribute:
      return attribute(part(0), e.name);
    case ExpressionKind::item: {
      const Value value = part(0);
      if (e.parts[1]->kind == ExpressionKind::slice) return slice(*e.parts[1], value, scope);
      return item(value, part(1));
    }
    case ExpressionKind::slice:
      throw RenderError("a slice stands alone");
    case ExpressionKind::call: {
      const Value callee = part(0);
      Arguments given = arguments(e.arguments, scope);
      return call(callee, given);
    }
    case ExpressionKind::filter: {
      const Value value = e.parts[0] ? part(0) : *scope->find(" filtered");
      Arguments given = arguments(e.arguments, scope);
      return filter(e.name, value, given);
    }
    case ExpressionKind::test: {
      const Value value = part(0);
      Arguments given = arguments(e.arguments, scope);
      return Value::of(test(e.name, value, given));
    }
    case ExpressionKind::negate:
      return Value::of(!truth(part(0)));
    case ExpressionKind::minus:
    case ExpressionKind::plus: {
      const Value value = part(0);
      const bool minus = e.kind == ExpressionKind::minus;
      if (value.is(Value::Kind::real)) return Value::of(minus ? -value.real() : value.real());
      const Integer number = whole_number(value);
      return Value::of(minus ? negated(number) : number);
    }
    case ExpressionKind::binary: {
      if (e.name != "and" && e.name != "or") {
        const Value left = part(0);
        return binary(e.name, left, part(1));
      }
      Value left = part(0);
      return truth(left) == (e.name == "or") ? left : part(1);
    }
    case ExpressionKind::compare: {
      Value left = part(0);
      for (size_t i = 0; i < e.operators.size(); ++i) {
        Value right = part(i + 1);
        if (!comparison(e.operators[i], left, right)) return Value::of(false);
        left = std::move(right);
      }
      return Value::of(true);
    }
    case ExpressionKind::conditional:
      if (truth(part(0))) return part(1);
      if (e.parts[2]) return part(2);
      return Value::undefined("the inline if-expression evaluated to false and has no else");
  }
  return {};
}

Arguments Interpreter::arguments(const ArgumentExpressions& expressions,
                                 const ScopePointer& scope) {
  Arguments given;
  for (const auto& expression : expressions.positional)
    given.positional.push_back(evaluate(*expression, scope));
  for (const auto& [name, expression] : expressions.named)
    given.named.emplace_back(name, evaluate(*expression, scope));
  if (expressions.star)
    for (Value& value : iterate(evaluate(*expressions.star, scope)))
      given.positional.push_back(std::move(value));
  if (expressions.double_star) {
    const Value more = evaluate(*expressions.double_star, scope);
    if (!more.is(Value::Kind::dict)) throw RenderError("** needs a dictionary");
    for (const auto& [key, value] : more.members().items)
      given.named.emplace_back(plain_text(key), value);
  }
  return given;
}

Value Interpreter::attribute(const Value& value, const std::string& name) {
  if (value.is(Value::Kind::undefined)) throw RenderError(value.undefined_message());
  if (value.is(Value::Kind::function)) {
    for (const auto& [known, content] : value.callee().attributes)
      if (known == name) return content;
    if (value.callee().more)
      if (const std::optional<Value> made = value.callee().more(name)) return *made;
  }
  if (value.is(Value::Kind::tuple) && value.items().name == "group") {  // of groupby()
    if (name == "grouper") return value.items().items[0];
    if (name == "list") return value.items().items[1];
  }
  if (value.is(Value::Kind::space)) {
    if (const Value* found = value.find(Value::of(name))) return *found;
  } else if (const Value method = find_method(value, name); !method.is(Value::Kind::undefined)) {
    return method;
  }
  if (value.is(Value::Kind::dict)) {
    if (const Value* found = value.find(Value::of(name))) return *found;
    return Value::undefined(fmt::format("'dict object' has no attribute '{}'", name));
  }
  return Value::undefined(
      fmt::format("'{} object' has no attribute '{}'", value.type_name(), name));
}

Value Interpreter::item(const Value& value, const Value& key) {
  if (value.is(Value::Kind::undefined)) throw RenderError(value.undefined_message());
  if (value.is(Value::Kind::dict)) {
    if (!key.is(Value::Kind::list) && !key.is(Value::Kind::dict))
      if (const Value* found = value.find(key)) return *found;
    if (key.is(Value::Kind::string)) {
      if (Value method = find_method(value, key.text()); !method.is(Value::Kind::undefined))
        return method;
    }
    return Value::undefined(fmt::format("'dict object' has no attribute {}", representation(key)));
  }
  if (key.is(Value::Kind::string)) return attribute(value, key.text());
  const bool sequence = value.is(Value::Kind::string) || value.is(Value::Kind::list) ||
                        value.is(Value::Kind::tuple) || value.is(Value::Kind::range);
  if (!sequence || !key.is_whole())
    return Value::undefined(
        fmt::format("'{} object' has no element {}", value.type_name(), to_text(key)));
  const auto count = static_cast<Integer>(length(value));
  const Integer index = key.integer() < 0 ? key.integer() + count : key.integer();
  if (index < 0 || index >= count)
    return Value::undefined(fmt::format("'{} object' has no element {}", value.type_name(),
                                        number_text(key.integer())));
  if (!value.is(Value::Kind::string)) return value.items().items[static_cast<size_t>(index)];
  std::string_view rest = value.text();
  spend(static_cast<size_t>(index) / 64);
  for (Integer i = 0; i < index; ++i) rest.remove_prefix(first_character(rest).length);
  return Value::of(std::string(rest.substr(0, first_character(rest).length)));
}

Value Interpreter::slice(const Expression& expression, const Value& value,
                         const ScopePointer& scope) {
  const auto bound = [&](size_t i) {
    return expression.parts[i] ? evaluate(*expression.parts[i], scope) : Value::none();
  };
  const Value start = bound(0), stop = bound(1), step = bound(2);
  if (value.is(Value::Kind::undefined)) throw RenderError(value.undefined_message());
  if (!value.is(Value::Kind::string) && !value.is(Value::Kind::list) &&
      !value.is(Value::Kind::tuple) && !value.is(Value::Kind::range))
    throw RenderError(fmt::format("'{}' object cannot be sliced", value.type_name()));
  if (value.is(Value::Kind::string)) reserve(value.text().size() * 4);
  const std::vector<Value> items = iterate(value);
  const Slice bounds = slice_bounds(start, stop, step, static_cast<int64_t>(items.size()));
  std::vector<Value> taken;
  for (int64_t i = bounds.start; bounds.step > 0 ? i < bounds.stop : i > bounds.stop;
       i += bounds.step)
    taken.push_back(items[static_cast<size_t>(i)]);
  if (value.is(Value::Kind::range)) {
    // A range again, in terms of the first one's numbers.
    const Integer first = items.empty() ? 0 : items[0].integer();
    const Integer step_of = items.size() > 1 ? items[1].integer() - first : 1;
    reserve(taken.size() * sizeof(Value));
    return range_value(std::move(taken), first + bounds.start * step_of,
                       first + bounds.stop * step_of, step_of * bounds.step);
  }
  if (!value.is(Value::Kind::string))
    return list(std::move(taken),
                value.is(Value::Kind::tuple) ? Value::Kind::tuple : Value::Kind::list);
  std::string joined;
  for (const Value& character : taken) joined += character.text();
  return text(std::move(joined));
}

bool Interpreter::comparison(const std::string& operation, const Value& left, const Value& right) {
  if (operation == "==") return equal(left, right);
  if (operation == "!=") return !equal(left, right);
  if (operation == "in") return contains(right, left);
  if (operation == "not in") return !contains(right, left);
  if (left.is(Value::Kind::undefined)) throw RenderError(left.undefined_message());
  const bool is_nan = (left.is(Value::Kind::real) && std::isnan(left.real())) ||
                      (right.is(Value::Kind::real) && std::isnan(right.real()));
  const int order = compare(left, right);
  if (is_nan) return false;
  if (operation == "<") return order < 0;
  if (operation == "<=") return order <= 0;
  if (operation == ">") return order > 0;
  return order >= 0;
}

Value Interpreter::add(const Value& left, const Value& right) {
  if (left.is_whole() && right.is_whole()) {
    Integer sum = 0;
    if (__builtin_add_overflow(left.integer(), right.integer(), &sum)) fail_range();
    return Value::of(sum);
  }
  if (left.is_number() && right.is_number()) return Value::of(left.real() + right.real());
  if (left.is(Value::Kind::string) && right.is(Value::Kind::string)) {
    reserve(left.text().size() + right.text().size());
    return Value::of(left.text() + right.text());
  }
  if (left.kind() == right.kind() && (left.is(Value::Kind::list) || left.is(Value::Kind::tuple))) {
    reserve((left.items().items.size() + right.items().items.size()) * sizeof(Value));
    std::vector<Value> items = left.items().items;
    items.insert(items.end(), right.items().items.begin(), right.items().items.end());
    return Value::list(std::move(items), left.kind());
  }
  fail_types("+", left, right);
}

Value Interpreter::multiply(const Value& left, const Value& right) {
  if (left.is_whole() && right.is_whole()) {
    Integer product = 0;
    if (__builtin_mul_overflow(left.integer(), right.integer(), &product)) fail_range();
    return Value::of(product);
  }
  if (left.is_number() && right.is_number()) return Value::of(left.real() * right.real());
  const Value& many = left.is_whole() ? right : left;
  const Value& number = left.is_whole() ? left : right;
  if (!number.is_whole() ||
      !(many.is(Value::Kind::string) || many.is(Value::Kind::list) || many.is(Value::Kind::tuple)))
    fail_types("*", left, right);
  const Integer times = std::max<Integer>(number.integer(), 0);
  const size_t unit =
      many.is(Value::Kind::string) ? many.text().size() : many.items().items.size() * sizeof(Value);
  if (unit == 0) return many;
  if (times > (Integer{1} << 40)) throw RenderError("the template makes too long a text");
  const auto count = static_cast<size_t>(times);
  reserve(unit * count);
  if (many.is(Value::Kind::string)) return Value::of(repeated(many.text(), count));
  std::vector<Value> items;
  for (size_t i = 0; i < count; ++i)
    items.insert(items.end(), many.items().items.begin(), many.items().items.end());
  return Value::list(std::move(items), many.kind());
}

Value Interpreter::power(const Value& left, const Value& right) {
  if (!left.is_number() || !right.is_number()) fail_types("**", left, right);
  if (left.is_whole() && right.is_whole() && right.integer() >= 0) {
    Integer result = 1, base = left.integer();
    for (Integer rest = right.integer(); rest > 0; rest >>= 1) {
      if ((rest & 1) != 0 && __builtin_mul_overflow(result, base, &result)) fail_range();
      if (rest > 1 && __builtin_mul_overflow(base, base, &base)) {
        if (base == 0) break;
        fail_range();
      }
    }
    return Value::of(result);
  }
  if (left.real() == 0 && right.real() < 0)
    throw RenderError("0.0 cannot be raised to a negative power");
  const double result = std::pow(left.real(), right.real());
  if (std::isnan(result) && !std::isnan(left.real()) && !std::isnan(right.real()))
    throw RenderError("the power is a complex number");
  return Value::of(result);
}

Value Interpreter::binary(const std::string& operation, const Value& left, const Value& right) {
  if (operation == "~") {
    const std::string first = to_text(left), second = to_text(right);
    reserve(first.size() + second.size());
    return Value::of(first + second);
  }
  if (operation == "+") return add(left, right);
  if (operation == "*") return multiply(left, right);
  if (operation == "**") return power(left, right);
  if (operation == "%" && left.is(Value::Kind::string))
    return text(percent_format(left.text(), right));
  if (!left.is_number() || !right.is_number()) fail_types(operation, left, right);
  const bool whole = left.is_whole() && right.is_whole();
  if (operation == "-") {
    if (!whole) return Value::of(left.real() - right.real());
    Integer difference = 0;
    if (__builtin_sub_overflow(left.integer(), right.integer(), &difference)) fail_range();
    return Value::of(difference);
  }
  if (right.real() == 0) throw RenderError("division by zero");
  if (operation == "/") return Value::of(left.real() / right.real());
  if (operation == "//") {
    if (whole) return Value::of(floor_divide(left.integer(), right.integer()));
    return Value::of(std::floor(left.real() / right.real()));
  }
  if (!whole) return Value::of(floor_modulo(left.real(), right.real()));
  return Value::of(left.integer() -
                   floor_divide(left.integer(), right.integer()) * right.integer());
}

}  // namespace mixtral::jinja
