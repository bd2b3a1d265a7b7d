#include "text/jinja_interpreter.h"

#include <fmt/format.h>

#include <algorithm>

namespace mixtral::jinja {
namespace {

using StatementKind = Statement::Kind;

constexpr size_t kStepsPerTurn = 8;                   // of a loop: a turn makes a scope
constexpr uint64_t kMostBytes = uint64_t{512} << 20;  // made in all
constexpr size_t kLongestText = size_t{32} << 20;
constexpr int kDeepestCall = 1500;  // of nested statements, expressions and calls

ScopePointer inner_scope(const ScopePointer& outer) {
  auto scope = std::make_shared<Scope>();
  scope->outer = outer;
  return scope;
}

}  // namespace

Interpreter::Depth::Depth(Interpreter& interpreter) : owner(interpreter) {
  if (owner.depth_ >= kDeepestCall) throw RenderError("calls are nested too deeply");
  ++owner.depth_;
}

Interpreter::~Interpreter() {
  for (const Value& space : spaces_) space.members() = {};
}

void Interpreter::fail(int line, std::string_view reason) const {
  throw Error(fmt::format("{}:{}: {}", source_, line, reason));
}

void Interpreter::reserve(size_t bytes) {
  if (bytes > kLongestText) throw RenderError("the template makes too long a text");
  bytes_ += bytes;
  spend(1 + bytes / 4096);
  if (bytes_ > kMostBytes) throw RenderError("the template makes too much text");
}

std::string Interpreter::render(const Body& body, const Value& variables) {
  auto globals = std::make_shared<Scope>();
  globals->variables = global_functions();
  for (const auto& [name, value] : variables.members().items)
    globals->variables[name.text()] = value;
  std::string out;
  output_ = &out;
  run(body, inner_scope(globals), out);
  return out;
}

Interpreter::Flow Interpreter::run(const Body& body, const ScopePointer& scope, std::string& out) {
  for (const Statement& statement : body) {
    Flow flow = Flow::on;
    try {
      flow = run(statement, scope, out);
    } catch (const RenderError& error) {
      fail(statement.line, error.what());
    }
    if (flow != Flow::on) return flow;
  }
  return Flow::on;
}

void Interpreter::write(std::string_view text, std::string& out) {
  if (out.size() + text.size() > kLongestText)
    throw RenderError("the template makes too long a text");
  reserve(text.size());
  out += text;
}

std::string Interpreter::capture(const Body& body, const ScopePointer& scope) {
  std::string text;
  run(body, scope, text);
  return text;
}

Interpreter::Flow Interpreter::run(const Statement& statement, const ScopePointer& scope,
                                   std::string& out) {
  const Depth depth(*this);
  spend();
  switch (statement.kind) {
    case StatementKind::data:
      write(statement.text, out);
      break;
    case StatementKind::print:
      write(to_text(evaluate(*statement.expression, scope)), out);
      break;
    case StatementKind::branch:
      return run(
          truth(evaluate(*statement.expression, scope)) ? statement.body : statement.otherwise,
          scope, out);
    case StatementKind::loop:
      return run_loop(statement, scope, out);
    case StatementKind::set:
      assign(*statement.target, evaluate(*statement.expression, scope), scope);
      break;
    case StatementKind::set_block: {
      Value value = text(capture(statement.body, inner_scope(scope)));
      if (statement.expression) {
        const ScopePointer inner = inner_scope(scope);
        inner->variables[" filtered"] = std::move(value);
        value = evaluate(*statement.expression, inner);
      }
      assign(*statement.target, value, scope);
      break;
    }
    case StatementKind::filter_block: {
      const ScopePointer inner = inner_scope(scope);
      inner->variables[" filtered"] = text(capture(statement.body, inner_scope(scope)));
      write(to_text(evaluate(*statement.expression, inner)), out);
      break;
    }
    case StatementKind::macro:
      scope->variables[statement.text] = make_macro(statement, scope, statement.text);
      break;
    case StatementKind::call_block:
      run_call_block(statement, scope, out);
      break;
    case StatementKind::with: {
      // Each value is computed outside of the block.
      const ScopePointer inner = inner_scope(scope);
      for (const auto& [target, expression] : statement.pairs)
        assign(*target, evaluate(*expression, scope), inner);
      return run(statement.body, inner, out);
    }
    case StatementKind::generation: {
      const size_t begin = out.size();
      run(statement.body, inner_scope(scope), out);
      if (&out == output_) generated_.push_back({begin, out.size()});
      break;
    }
    case StatementKind::scope:
      return run(statement.body, inner_scope(scope), out);
    case StatementKind::go_on:
      return Flow::again;
    case StatementKind::leave:
      return Flow::leave;
    case StatementKind::refused:
      throw RenderError(
          fmt::format("'{}' would read another file, and a template has none", statement.text));
    case StatementKind::nothing:
      break;
  }
  return Flow::on;
}

void Interpreter::assign(const Expression& target, const Value& value, const ScopePointer& scope) {
  if (target.kind == Expression::Kind::name) {
    scope->variables[target.name] = value;
    return;
  }
  if (target.kind == Expression::Kind::attribute) {
    const Value space = evaluate(*target.parts[0], scope);
    if (!space.is(Value::Kind::space))
      throw RenderError("only attributes of a namespace() can be assigned to");
    space.set(Value::of(target.name), value);
    return;
  }
  const std::vector<Value> items = iterate(value);
  if (items.size() != target.parts.size()) {
    throw RenderError(fmt::format("{} values cannot be unpacked into {} names", items.size(),
                                  target.parts.size()));
  }
  for (size_t i = 0; i < items.size(); ++i) assign(*target.parts[i], items[i], scope);
}

Interpreter::Flow Interpreter::run_loop(const Statement& statement, const ScopePointer& scope,
                                        std::string& out) {
  run_items(statement, evaluate(*statement.expression, scope), scope, out, 1);
  return Flow::on;
}

/// What the variable "loop" of every turn of a loop shares.
struct LoopState {
  std::vector<Value> items;
  std::vector<Value> last_seen;  // of loop.changed()
  int depth = 1;
};

/// An attribute of the variable "loop" in turn `i`; nothing where there is none of that name.
std::optional<Value> loop_attribute(const std::shared_ptr<LoopState>& state, size_t i,
                                    const std::string& name) {
  const size_t count = state->items.size();
  if (name == "index") return Value::of(i + 1);
  if (name == "index0") return Value::of(i);
  if (name == "revindex") return Value::of(count - i);
  if (name == "revindex0") return Value::of(count - i - 1);
  if (name == "first") return Value::of(i == 0);
  if (name == "last") return Value::of(i + 1 == count);
  if (name == "length") return Value::of(count);
  if (name == "depth") return Value::of(state->depth);
  if (name == "depth0") return Value::of(state->depth - 1);
  if (name == "previtem")
    return i > 0 ? state->items[i - 1] : Value::undefined("there is no previous item");
  if (name == "nextitem")
    return i + 1 < count ? state->items[i + 1] : Value::undefined("there is no next item");
  if (name == "cycle") {
    return Value::function("cycle", [i](Interpreter&, Arguments& given) {
      if (given.positional.empty()) throw RenderError("no items for cycling given");
      return given.positional[i % given.positional.size()];
    });
  }
  if (name == "changed") {
    return Value::function("changed", [state](Interpreter&, Arguments& given) {
      const bool same = !state->last_seen.empty() &&
                        equal(Value::tuple(state->last_seen), Value::tuple(given.positional));
      state->last_seen = given.positional;
      return Value::of(!same);
    });
  }
  return std::nullopt;
}

void Interpreter::run_items(const Statement& statement, const Value& iterated,
                            const ScopePointer& scope, std::string& out, int depth) {
  const Depth guard(*this);
  auto state = std::make_shared<LoopState>();
  state->depth = depth;
  for (Value& item : iterate(iterated)) {
    spend();
    if (statement.condition) {
      const ScopePointer inner = inner_scope(scope);
      assign(*statement.target, item, inner);
      if (!truth(evaluate(*statement.condition, inner))) continue;
    }
    state->items.push_back(std::move(item));
  }
  if (state->items.empty()) {
    run(statement.otherwise, inner_scope(scope), out);
    return;
  }
  // What loop.changed() saw may be the loop itself.
  const struct Forget {
    ~Forget() { state.last_seen.clear(); }
    LoopState& state;
  } forget{*state};
  const size_t count = state->items.size();
  for (size_t i = 0; i < count; ++i) {
    spend(kStepsPerTurn);
    const ScopePointer inner = inner_scope(scope);
    assign(*statement.target, state->items[i], inner);
    Value loop =
        Value::function("loop", [this, &statement, scope, depth](Interpreter&, Arguments& given) {
          if (!statement.recursive)
            throw RenderError("the loop is not recursive, so it cannot be called");
          if (given.positional.size() != 1) throw RenderError("loop() needs one argument");
          std::string inner_text;
          run_items(statement, given.positional[0], scope, inner_text, depth + 1);
          return text(std::move(inner_text));
        });
    loop.callee().more = [state, i](const std::string& name) {
      return loop_attribute(state, i, name);
    };
    inner->variables["loop"] = std::move(loop);
    if (run(statement.body, inner, out) == Flow::leave) break;
  }
}

Value Interpreter::make_macro(const Statement& statement, const ScopePointer& scope,
                              const std::string& name) {
  // The macro is a variable of this scope, and would keep it alive for ever.
  const std::weak_ptr<Scope> defined_in = scope;
  Value macro =
      Value::function(name, [this, &statement, defined_in](Interpreter&, Arguments& given) {
        const ScopePointer outer = defined_in.lock();
        if (!outer) throw RenderError("a macro is called after the block that defined it");
        return run_macro(statement, outer, given);
      });
  std::vector<Value> names;
  names.reserve(statement.parameters.names.size());
  for (const std::string& parameter : statement.parameters.names)
    names.push_back(Value::of(parameter));
  macro.callee().attributes = {{"name", Value::of(name)}, {"arguments", Value::tuple(names)}};
  return macro;
}

Value Interpreter::run_macro(const Statement& statement, const ScopePointer& scope,
                             Arguments& given) {
  const Depth depth(*this);
  const ScopePointer inner = inner_scope(scope);
  const Parameters& parameters = statement.parameters;
  const size_t required = parameters.names.size() - parameters.defaults.size();
  Value more = Value::dict();
  std::vector<bool> set(parameters.names.size());
  const auto set_parameter = [&](size_t i, const Value& value) {
    inner->variables[parameters.names[i]] = value;
    set[i] = true;
  };
  for (size_t i = 0; i < std::min(given.positional.size(), parameters.names.size()); ++i)
    set_parameter(i, given.positional[i]);
  for (const auto& [name, value] : given.named) {
    const auto place = std::ranges::find(parameters.names, name);
    if (place == parameters.names.end())
      more.set(Value::of(name), value);
    else if (set[static_cast<size_t>(place - parameters.names.begin())])
      throw RenderError(fmt::format("the macro's parameter '{}' is given twice", name));
    else
      set_parameter(static_cast<size_t>(place - parameters.names.begin()), value);
  }
  for (size_t i = 0; i < parameters.names.size(); ++i) {
    if (set[i]) continue;
    inner->variables[parameters.names[i]] =
        i < required
            ? Value::undefined(fmt::format("parameter '{}' was not provided", parameters.names[i]))
            : evaluate(*parameters.defaults[i - required], inner);
  }
  const size_t used = std::min(given.positional.size(), parameters.names.size());
  inner->variables["varargs"] = Value::tuple(
      {given.positional.begin() + static_cast<std::ptrdiff_t>(used), given.positional.end()});
  if (const Value* caller = more.find(Value::of("caller"))) {
    inner->variables["caller"] = *caller;
    Value rest = Value::dict();
    for (const auto& [key, value] : more.members().items)
      if (key.text() != "caller") rest.set(key, value);
    more = rest;
  }
  inner->variables["kwargs"] = more;
  return text(capture(statement.body, inner));
}

void Interpreter::run_call_block(const Statement& statement, const ScopePointer& scope,
                                 std::string& out) {
  const Expression& called = *statement.expression;
  const Value callee = evaluate(*called.parts[0], scope);
  Arguments given = arguments(called.arguments, scope);
  given.named.emplace_back("caller", make_macro(statement, scope, "caller"));
  write(to_text(call(callee, given)), out);
}

Value Interpreter::call(const Value& callee, Arguments& given) {
  const Depth depth(*this);
  spend();
  if (callee.is(Value::Kind::undefined)) throw RenderError(callee.undefined_message());
  if (!callee.is(Value::Kind::function))
    throw RenderError(fmt::format("'{}' object is not callable", callee.type_name()));
  return callee.callee().call(*this, given);
}

}  // namespace mixtral::jinja
