#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/json.h"

namespace mixtral::jinja {

/// What stops a template while it is rendered: the message, without the line.
class RenderError : public Error {
 public:
  using Error::Error;
};

class Interpreter;
class Value;
__extension__ using Integer = __int128;  // Python's integers, as far as they fit; more is an error

/// What a function is called with.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

/// A value as Python has it. Copies share lists, dictionaries and namespaces; of these a template
/// can change only namespaces.
class Value {
 public:
  enum class Kind {
    undefined,
    none,
    boolean,
    integer,
    real,
    string,
    list,
    tuple,
    dict,
    range,     // range(3)
    view,      // the items(), keys() and values() of a dictionary
    iterator,  // what map() and select() give: read once, of no known length
    space,     // namespace()
    function   // macros, methods, global functions
  };

  struct List {
    std::vector<Value> items;
    std::string name;  // of a range or view: how it is printed
    size_t read = 0;   // of an iterator
  };
  struct Dict {
    std::vector<std::pair<Value, Value>> items;      // in order of insertion
    std::unordered_map<std::string, size_t> places;  // of the keys that are text
  };
  struct Function {
    std::string name;
    std::function<Value(Interpreter&, Arguments&)> call;
    std::vector<std::pair<std::string, Value>> attributes;
    // What else it has, made when it is asked for; may be empty.
    std::function<std::optional<Value>(const std::string&)> more;
  };

  Value() = default;  // undefined
  static Value undefined(std::string message);
  static Value none();
  static Value of(bool value);
  static Value of(Integer value);
  static Value of(int value) { return of(static_cast<Integer>(value)); }
  static Value of(size_t value) { return of(static_cast<Integer>(value)); }
  static Value of(double value);
  static Value of(std::string text);
  static Value of(const char* text) { return of(std::string(text)); }
  static Value list(std::vector<Value> items, Kind kind = Kind::list, std::string name = {});
  static Value tuple(std::vector<Value> items) { return list(std::move(items), Kind::tuple); }
  static Value dict(Kind kind = Kind::dict);
  static Value function(std::string name, std::function<Value(Interpreter&, Arguments&)> call);
  static Value from_json(const Json& json);

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_number() const {
    return kind_ == Kind::boolean || kind_ == Kind::integer || kind_ == Kind::real;
  }
  bool is_whole() const { return kind_ == Kind::boolean || kind_ == Kind::integer; }
  bool is_list_like() const {
    return kind_ == Kind::list || kind_ == Kind::tuple || kind_ == Kind::range ||
           kind_ == Kind::view || kind_ == Kind::iterator;
  }
  bool is_mapping() const { return kind_ == Kind::dict || kind_ == Kind::space; }

  Integer integer() const { return integer_; }  // also of a boolean
  double real() const { return kind_ == Kind::real ? real_ : static_cast<double>(integer_); }
  const std::string& text() const { return *text_; }
  List& items() const { return *list_; }
  Dict& members() const { return *dict_; }
  Function& callee() const { return *function_; }
  /// Whether both are one and the same object.
  bool same(const Value& other) const;

  // Of a dictionary or namespace.
  const Value* find(const Value& key) const;
  void set(const Value& key, Value value) const;

  /// Of undefined: why it is.
  std::string undefined_message() const;
  /// What kind of thing it is, in Python's words: "str", "int".
  std::string_view type_name() const;

 private:
  Kind kind_ = Kind::undefined;
  Integer integer_ = 0;
  double real_ = 0;
  std::shared_ptr<const std::string> text_;
  std::shared_ptr<List> list_;
  std::shared_ptr<Dict> dict_;
  std::shared_ptr<Function> function_;
};

/// What a template may still do. Rendering counts with its own meter; the functions below, which
/// walk through values, count with that of the rendering that is under way on their thread, if any:
/// values that hold one another many times over have no end otherwise.
class Meter {
 public:
  Meter() : outer_(current()) { current() = this; }
  ~Meter() { current() = outer_; }
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  /// Throws RenderError where it is too much.
  void spend(size_t steps);
  static void spend_here(size_t steps) {
    if (Meter* meter = current()) meter->spend(steps);
  }

 private:
  static Meter*& current();

  Meter* outer_;
  uint64_t steps_ = 0;
};

/// Steps that walking through a text, a list or a dictionary takes, beside one.
size_t steps_through(const Value& value);
/// Steps that looking for one text in another takes, where every place is nearly the right one.
size_t steps_to_find(const std::string& part, const std::string& text);

bool truth(const Value& value);
/// Throws RenderError where values lie within one another deeper than is compared and printed.
void limit_depth(int depth);
bool equal(const Value& a, const Value& b, int depth = 0);
/// Negative, 0 or positive. Throws RenderError where the two have no order.
int compare(const Value& a, const Value& b, int depth = 0);
/// Python's str() and repr().
std::string to_text(const Value& value);
std::string representation(const Value& value, int depth = 0);
std::string number_text(double value);
std::string number_text(Integer value);

/// The items of anything that can be iterated: lists, the keys of dictionaries, the characters of
/// text, nothing of undefined. Throws RenderError for others. An iterator is used up.
std::vector<Value> iterate(const Value& value);
/// Python's len(). Throws RenderError where there is none.
size_t length(const Value& value);
bool contains(const Value& container, const Value& item);

/// Python's json.dumps().
struct JsonStyle {
  std::optional<std::string> indent;  // of one level; nothing: all on one line
  std::string item_separator = ", ", key_separator = ": ";
  bool ensure_ascii = false, sort_keys = false;
};
std::string to_json(const Value& value, const JsonStyle& style, int depth = 0);

/// "%s and %03d" % values, and "{} {:>4}".format(). Throws RenderError for what Python refuses, and
/// for what is not supported.
std::string percent_format(std::string_view format, const Value& values);
std::string brace_format(std::string_view format, const Arguments& arguments);

}  // namespace mixtral::jinja
