#include "serve/fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/nearest.h"
#include "base/printable.h"
#include "serve/api_error.h"

namespace mixtral::serve {
namespace {

constexpr std::string_view kBody = "request body";

/// What a value is, in words for an error.
std::string found(const Json& value) {
  switch (value.kind()) {
    case Json::Kind::null:
      return "null";
    case Json::Kind::boolean:
      return value.as_bool() ? "true" : "false";
    case Json::Kind::integer:
      return std::to_string(value.as_int());
    case Json::Kind::number:
      return fmt::format("{}", value.as_double());
    case Json::Kind::string:
      return fmt::format("the text '{}'", printable(value.as_string()));
    case Json::Kind::array:
      return "an array";
    case Json::Kind::object:
      return "an object";
  }
  return "";
}

}  // namespace

Json parse_body(std::string_view body) {
  try {
    Json json = Json::parse(body, kBody, {.bytes = uint64_t{1} << 30, .depth = 128});
    if (!json.is_object())
      throw ApiError(400, fmt::format("{}: expected a JSON object, found {}", kBody, found(json)));
    return json;
  } catch (const ApiError&) {
    throw;
  } catch (const Error& error) {
    throw ApiError(400, error.what());
  }
}

const Json::Array& array_of(const Json& value, const std::string& path) {
  if (!value.is_array()) throw bad_field(path, "expected an array");
  return value.items();
}

std::string element(const std::string& path, size_t index) {
  return fmt::format("{}[{}]", path, index);
}

Fields::Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (!object.is_object())
    throw bad_field(path_.empty() ? std::string(kBody) : path_,
                    "expected an object, found " + found(object));
}

std::string Fields::path_of(std::string_view name) const {
  return path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name);
}

const Json* Fields::take(std::string_view name) {
  known_.emplace(name);
  const Json* value = object_.find(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

const Json& Fields::need(std::string_view name) {
  const Json* value = take(name);
  if (value == nullptr) throw bad_field(path_of(name), "is missing; the request needs it");
  return *value;
}

std::optional<bool> Fields::boolean(std::string_view name) {
  const Json* value = take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_bool())
    throw bad_field(path_of(name), "expected true or false, found " + found(*value));
  return value->as_bool();
}

std::optional<int64_t> Fields::integer(std::string_view name, int64_t least, int64_t most) {
  const Json* value = take(name);
  if (value == nullptr) return std::nullopt;
  const auto refuse = [&] {
    return bad_field(path_of(name), fmt::format("expected a whole number from {} to {}, found {}",
                                                least, most, found(*value)));
  };
  if (!value->is_number()) throw refuse();
  if (!value->is_integer()) {
    const double number = value->as_double();
    if (number != std::floor(number) || std::abs(number) > 0x1p53) throw refuse();
  }
  const int64_t number = value->as_int();
  if (number < least || number > most) throw refuse();
  return number;
}

std::optional<double> Fields::number(std::string_view name, double least, double most) {
  const Json* value = take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || !(value->as_double() >= least && value->as_double() <= most))
    throw bad_field(path_of(name), fmt::format("expected a number from {} to {}, found {}", least,
                                               most, found(*value)));
  return value->as_double();
}

std::optional<std::string> Fields::text(std::string_view name, size_t most_bytes) {
  const Json* value = take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string())
    throw bad_field(path_of(name), "expected a text, found " + found(*value));
  if (value->as_string().size() > most_bytes)
    throw bad_field(path_of(name), fmt::format("expected a text of at most {} bytes, found {}",
                                               most_bytes, value->as_string().size()));
  return value->as_string();
}

std::string Fields::need_text(std::string_view name) {
  need(name);
  return *text(name);
}

void Fields::ignore(std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) known_.emplace(name);
}

void Fields::finish() const {
  for (const auto& [name, value] : object_.members()) {
    if (known_.contains(name)) continue;
    const std::vector<std::string> known(known_.begin(), known_.end());
    const std::string close = name.size() < 64 ? nearest(name, known) : "";
    const std::string field = path_of(printable(name));
    throw bad_field(field, close.empty()
                               ? "there is no such field, or it is not supported; leave it out"
                               : fmt::format("there is no such field; did you mean {}?", close));
  }
}

}  // namespace mixtral::serve
