#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/jinja_ast.h"

namespace mixtral::jinja {

/// Variables of a block, and those of the blocks around it.
struct Scope {
  std::unordered_map<std::string, Value> variables;
  std::shared_ptr<Scope> outer;

  const Value* find(const std::string& name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->outer.get())
      if (const auto found = scope->variables.find(name); found != scope->variables.end())
        return &found->second;
    return nullptr;
  }
};
using ScopePointer = std::shared_ptr<Scope>;

/// Bytes begin to end of the output that {% generation %} marks as the assistant's.
struct GeneratedSpan {
  size_t begin = 0, end = 0;
};

/// Runs a template. Steps, the size of texts and lists, and the depth of calls are bounded, so that
/// no template takes more than seconds and some hundred megabytes; past a bound it ends in an
/// error.
class Interpreter {
 public:
  explicit Interpreter(std::string_view source) : source_(source) {}
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  /// Renders with the variables. Throws Error "SOURCE:LINE: reason".
  std::string render(const Body& body, const Value& variables);
  const std::vector<GeneratedSpan>& generated() const { return generated_; }

  Value evaluate(const Expression& expression, const ScopePointer& scope);
  Value call(const Value& callee, Arguments& arguments);
  Value filter(const std::string& name, const Value& value, Arguments& arguments);
  bool test(const std::string& name, const Value& value, Arguments& arguments);
  Value attribute(const Value& value, const std::string& name);
  Value item(const Value& value, const Value& key);

  /// Keeps a namespace until the interpreter goes, and empties it then: a template can make one
  /// refer to itself, which reference counts do not free.
  Value keep(Value space) {
    spaces_.push_back(space);
    return space;
  }
  /// Counts work; throws RenderError past the bound.
  void spend(size_t steps = 1) { meter_.spend(steps); }
  /// Counts the bytes of a text, or the items of a list, that is about to be made.
  void reserve(size_t bytes);
  Value text(std::string value) {
    reserve(value.size());
    return Value::of(std::move(value));
  }
  Value list(std::vector<Value> items, Value::Kind kind = Value::Kind::list) {
    reserve(items.size() * sizeof(Value));
    return Value::list(std::move(items), kind);
  }

 private:
  enum class Flow { on, leave, again };
  /// Counts how deeply statements, expressions and calls are nested.
  struct Depth {
    explicit Depth(Interpreter& interpreter);
    ~Depth() { --owner.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
    Interpreter& owner;
  };

  Flow run(const Body& body, const ScopePointer& scope, std::string& out);
  Flow run(const Statement& statement, const ScopePointer& scope, std::string& out);
  Flow run_loop(const Statement& statement, const ScopePointer& scope, std::string& out);
  void run_items(const Statement& statement, const Value& items, const ScopePointer& scope,
                 std::string& out, int depth);
  std::string capture(const Body& body, const ScopePointer& scope);
  void write(std::string_view text, std::string& out);
  void assign(const Expression& target, const Value& value, const ScopePointer& scope);
  Value make_macro(const Statement& statement, const ScopePointer& scope, const std::string& name);
  Value run_macro(const Statement& statement, const ScopePointer& scope, Arguments& arguments);
  void run_call_block(const Statement& statement, const ScopePointer& scope, std::string& out);
  Arguments arguments(const ArgumentExpressions& expressions, const ScopePointer& scope);
  Value slice(const Expression& expression, const Value& value, const ScopePointer& scope);
  Value binary(const std::string& operation, const Value& left, const Value& right);
  Value power(const Value& left, const Value& right);
  Value add(const Value& left, const Value& right);
  Value multiply(const Value& left, const Value& right);
  bool comparison(const std::string& operation, const Value& left, const Value& right);
  [[noreturn]] void fail(int line, std::string_view reason) const;

  std::string source_;
  std::string* output_ = nullptr;  // of the template itself, not of a macro or block
  std::vector<GeneratedSpan> generated_;
  std::vector<Value> spaces_;
  Meter meter_;
  uint64_t bytes_ = 0;
  int depth_ = 0;
};

/// The functions that every template has: range, namespace, dict, raise_exception, strftime_now,
/// joiner, cycler, lipsum (which is refused).
const std::unordered_map<std::string, Value>& global_functions();

/// range(start, stop, step), whose numbers are `items`.
Value range_value(std::vector<Value> items, Integer start, Integer stop, Integer step);

/// A method of a value, such as "upper" of text; undefined where there is none, or where it would
/// change the value.
Value find_method(const Value& value, const std::string& name);

/// Puts arguments in the order of the parameters' names; those that are not given are nothing.
/// Throws RenderError for names that there are not, and for too many.
std::vector<std::optional<Value>> bind(const Arguments& arguments,
                                       std::span<const std::string_view> names,
                                       std::string_view function);
template <size_t N>
std::vector<std::optional<Value>> bind(const Arguments& arguments,
                                       const std::string_view (&names)[N],
                                       std::string_view function) {
  return bind(arguments, std::span<const std::string_view>(names), function);
}
Integer whole_number(const Value& value);
/// The text of a value that must be text.
const std::string& plain_text(const Value& value);

using FilterFunction = Value (*)(Interpreter&, const Value&, Arguments&);
/// The filters that work on text and numbers, and those that work on lists; null for others.
FilterFunction find_text_filter(std::string_view name);
FilterFunction find_list_filter(std::string_view name);
using TestFunction = bool (*)(Interpreter&, const Value&, Arguments&);
TestFunction find_test(std::string_view name);

}  // namespace mixtral::jinja
