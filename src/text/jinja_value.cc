#include "text/jinja_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "text/unicode.h"

namespace mixtral::jinja {
namespace {

constexpr int kDeepestValue = 100;  // lists within lists that are compared and printed
constexpr uint64_t kMostSteps = 5'000'000;
constexpr size_t kBytesOfStep = 16, kItemsOfStep = 8;
constexpr size_t kComparedBytesOfStep = 4096;  // one after another

bool same_items(const std::vector<Value>& a, const std::vector<Value>& b, int depth) {
  return std::ranges::equal(a, b,
                            [&](const Value& x, const Value& y) { return equal(x, y, depth + 1); });
}

}  // namespace

Meter*& Meter::current() {
  thread_local Meter* meter = nullptr;
  return meter;
}

void Meter::spend(size_t steps) {
  steps_ += steps;
  if (steps_ > kMostSteps) throw RenderError("the template takes too many steps");
}

size_t steps_through(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::string:
      return value.text().size() / kBytesOfStep;
    case Value::Kind::list:
    case Value::Kind::tuple:
    case Value::Kind::range:
    case Value::Kind::view:
    case Value::Kind::iterator:
      return value.items().items.size() / kItemsOfStep;
    case Value::Kind::dict:
      return value.members().items.size() / kItemsOfStep;
    default:
      return 0;
  }
}

size_t steps_to_find(const std::string& part, const std::string& text) {
  if (part.size() > text.size()) return 0;
  return (text.size() - part.size() + 1) * (1 + part.size()) / kComparedBytesOfStep;
}

void limit_depth(int depth) {
  if (depth > kDeepestValue) throw RenderError("values are nested too deeply");
}

Value Value::undefined(std::string message) {
  Value value;
  value.text_ = std::make_shared<const std::string>(std::move(message));
  return value;
}

Value Value::none() {
  Value value;
  value.kind_ = Kind::none;
  return value;
}

Value Value::of(bool boolean) {
  Value value;
  value.kind_ = Kind::boolean;
  value.integer_ = boolean ? 1 : 0;
  return value;
}

Value Value::of(Integer integer) {
  Value value;
  value.kind_ = Kind::integer;
  value.integer_ = integer;
  return value;
}

Value Value::of(double real) {
  Value value;
  value.kind_ = Kind::real;
  value.real_ = real;
  return value;
}

Value Value::of(std::string text) {
  Value value;
  value.kind_ = Kind::string;
  value.text_ = std::make_shared<const std::string>(std::move(text));
  return value;
}

Value Value::list(std::vector<Value> items, Kind kind, std::string name) {
  Value value;
  value.kind_ = kind;
  value.list_ = std::make_shared<List>(List{std::move(items), std::move(name)});
  return value;
}

Value Value::dict(Kind kind) {
  Value value;
  value.kind_ = kind;
  value.dict_ = std::make_shared<Dict>();
  return value;
}

Value Value::function(std::string name, std::function<Value(Interpreter&, Arguments&)> call) {
  Value value;
  value.kind_ = Kind::function;
  value.function_ = std::make_shared<Function>(Function{std::move(name), std::move(call), {}, {}});
  return value;
}

Value Value::from_json(const Json& json) {
  switch (json.kind()) {
    case Json::Kind::null:
      return none();
    case Json::Kind::boolean:
      return of(json.as_bool());
    case Json::Kind::integer:
      return of(static_cast<Integer>(json.as_int()));
    case Json::Kind::number:
      return of(json.as_double());
    case Json::Kind::string:
      return of(json.as_string());
    case Json::Kind::array: {
      std::vector<Value> items;
      for (const Json& item : json.items()) items.push_back(from_json(item));
      return list(std::move(items));
    }
    case Json::Kind::object: {
      Value object = dict();
      for (const auto& [key, item] : json.members()) object.set(of(key), from_json(item));
      return object;
    }
  }
  return {};
}

bool Value::same(const Value& other) const {
  if (kind_ != other.kind_) return false;
  if (list_ || dict_ || function_)
    return list_ == other.list_ && dict_ == other.dict_ && function_ == other.function_;
  return equal(*this, other);
}

const Value* Value::find(const Value& key) const {
  if (key.is(Kind::string)) {
    Meter::spend_here(key.text().size() / kComparedBytesOfStep);
    const auto place = dict_->places.find(key.text());
    return place == dict_->places.end() ? nullptr : &dict_->items[place->second].second;
  }
  for (const auto& [known, value] : dict_->items)
    if (!known.is(Kind::string) && equal(known, key)) return &value;
  return nullptr;
}

void Value::set(const Value& key, Value value) const {
  if (key.is(Kind::list) || key.is(Kind::dict))
    throw RenderError(fmt::format("unhashable type: '{}'", key.type_name()));
  if (const Value* known = find(key)) {
    *const_cast<Value*>(known) = std::move(value);
    return;
  }
  if (key.is(Kind::string)) dict_->places[key.text()] = dict_->items.size();
  dict_->items.emplace_back(key, std::move(value));
}

std::string Value::undefined_message() const { return text_ ? *text_ : "a value is undefined"; }

std::string_view Value::type_name() const {
  constexpr std::array<std::string_view, 14> names = {
      "Undefined", "NoneType", "bool",  "int",        "float",     "str",       "list",
      "tuple",     "dict",     "range", "dict_items", "generator", "Namespace", "function"};
  return names[static_cast<size_t>(kind_)];
}

bool truth(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::undefined:
    case Value::Kind::none:
      return false;
    case Value::Kind::boolean:
    case Value::Kind::integer:
      return value.integer() != 0;
    case Value::Kind::real:
      return value.real() != 0;
    case Value::Kind::string:
      return !value.text().empty();
    case Value::Kind::list:
    case Value::Kind::tuple:
    case Value::Kind::range:
    case Value::Kind::view:
      return !value.items().items.empty();
    case Value::Kind::dict:
      return !value.members().items.empty();
    default:
      return true;
  }
}

bool equal(const Value& a, const Value& b, int depth) {
  limit_depth(depth);
  Meter::spend_here(1);
  if (a.is_whole() && b.is_whole()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.real() == b.real();
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Value::Kind::undefined:
    case Value::Kind::none:
      return true;
    case Value::Kind::string:
      Meter::spend_here(a.text().size() / kComparedBytesOfStep);
      return a.text() == b.text();
    case Value::Kind::list:
    case Value::Kind::tuple:
    case Value::Kind::range:
      return same_items(a.items().items, b.items().items, depth);
    case Value::Kind::dict: {
      const auto& items = a.members().items;
      if (items.size() != b.members().items.size()) return false;
      return std::ranges::all_of(items, [&](const auto& item) {
        const Value* other = b.find(item.first);
        return other != nullptr && equal(item.second, *other, depth + 1);
      });
    }
    default:
      return a.same(b);
  }
}

int compare(const Value& a, const Value& b, int depth) {
  limit_depth(depth);
  Meter::spend_here(1);
  if (a.is_whole() && b.is_whole())
    return a.integer() < b.integer() ? -1 : a.integer() > b.integer() ? 1 : 0;
  if (a.is_number() && b.is_number()) return a.real() < b.real() ? -1 : a.real() > b.real() ? 1 : 0;
  if (a.is(Value::Kind::string) && b.is(Value::Kind::string)) {
    Meter::spend_here(a.text().size() / kComparedBytesOfStep);
    return a.text().compare(b.text());
  }
  if (a.kind() == b.kind() && (a.is(Value::Kind::list) || a.is(Value::Kind::tuple))) {
    const auto &x = a.items().items, &y = b.items().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!equal(x[i], y[i], depth + 1)) return compare(x[i], y[i], depth + 1);
    return x.size() < y.size() ? -1 : x.size() > y.size() ? 1 : 0;
  }
  for (const Value* value : {&a, &b})
    if (value->is(Value::Kind::undefined)) throw RenderError(value->undefined_message());
  throw RenderError(
      fmt::format("'{}' and '{}' have no order to compare by", a.type_name(), b.type_name()));
}

std::vector<Value> iterate(const Value& value) {
  // Characters become values of their own.
  Meter::spend_here(value.is(Value::Kind::string) ? value.text().size() / 4 : steps_through(value));
  switch (value.kind()) {
    case Value::Kind::undefined:
      return {};
    case Value::Kind::string: {
      std::vector<Value> characters;
      for (std::string_view rest = value.text(); !rest.empty();) {
        const size_t size = first_character(rest).length;
        characters.push_back(Value::of(std::string(rest.substr(0, size))));
        rest.remove_prefix(size);
      }
      return characters;
    }
    case Value::Kind::list:
    case Value::Kind::tuple:
    case Value::Kind::range:
    case Value::Kind::view:
      return value.items().items;
    case Value::Kind::iterator: {
      Value::List& list = value.items();
      std::vector<Value> rest(list.items.begin() + static_cast<std::ptrdiff_t>(list.read),
                              list.items.end());
      list.read = list.items.size();
      return rest;
    }
    case Value::Kind::dict: {
      std::vector<Value> keys;
      for (const auto& item : value.members().items) keys.push_back(item.first);
      return keys;
    }
    default:
      throw RenderError(fmt::format("'{}' object is not iterable", value.type_name()));
  }
}

size_t length(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::undefined:
      return 0;
    case Value::Kind::string:
      Meter::spend_here(steps_through(value));
      return count_characters(value.text());
    case Value::Kind::list:
    case Value::Kind::tuple:
    case Value::Kind::range:
    case Value::Kind::view:
      return value.items().items.size();
    case Value::Kind::dict:
      return value.members().items.size();
    default:
      throw RenderError(fmt::format("object of type '{}' has no len()", value.type_name()));
  }
}

bool contains(const Value& container, const Value& item) {
  if (container.is(Value::Kind::string)) {
    if (!item.is(Value::Kind::string)) {
      throw RenderError(
          fmt::format("'in <string>' requires string as left operand, not {}", item.type_name()));
    }
    Meter::spend_here(steps_to_find(item.text(), container.text()));
    return container.text().find(item.text()) != std::string::npos;
  }
  if (container.is(Value::Kind::dict)) {
    if (item.is(Value::Kind::list) || item.is(Value::Kind::dict))
      throw RenderError(fmt::format("unhashable type: '{}'", item.type_name()));
    return container.find(item) != nullptr;
  }
  return std::ranges::any_of(iterate(container),
                             [&](const Value& other) { return equal(other, item); });
}

}  // namespace mixtral::jinja
