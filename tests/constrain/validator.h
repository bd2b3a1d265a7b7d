#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "io/json.h"
#include "text/pattern.h"
#include "text/unicode.h"

namespace mixtral::constrain {

/// Checks values against JSON schemas in the plainest way, as a second opinion for tests. It knows
/// the keywords that the tests use.
class Validator {
 public:
  explicit Validator(const Json& root) : root_(root) {}

  bool valid(const Json& value, const Json& schema) const {
    if (schema.is_bool()) return schema.as_bool();
    for (const auto& [name, rule] : schema.members())
      if (!keeps(value, name, rule, schema)) return false;
    return true;
  }

 private:
  static bool is_type(const Json& value, const std::string& type) {
    if (type == "null") return value.is_null();
    if (type == "boolean") return value.is_bool();
    if (type == "number") return value.is_number();
    if (type == "integer")
      return value.is_number() && value.as_double() == std::floor(value.as_double());
    if (type == "string") return value.is_string();
    if (type == "array") return value.is_array();
    return type == "object" && value.is_object();
  }
  static bool equal(const Json& a, const Json& b) {
    if (a.is_number() && b.is_number()) return a.as_double() == b.as_double();
    if (a.kind() != b.kind()) return false;
    if (a.is_string()) return a.as_string() == b.as_string();
    if (a.is_bool()) return a.as_bool() == b.as_bool();
    if (a.is_array()) return std::ranges::equal(a.items(), b.items(), equal);
    if (a.is_object())
      return std::ranges::equal(a.members(), b.members(), [](const auto& x, const auto& y) {
        return x.first == y.first && equal(x.second, y.second);
      });
    return true;
  }
  static bool finds(const std::string& pattern, const std::string& text) {
    const Pattern compiled(pattern, "test");
    size_t begin = 0, end = 0;
    return Pattern::Matches(compiled, text).next(begin, end);
  }
  static bool listed(const Json& schema, const std::string& name) {
    const Json* properties = schema.find("properties");
    return properties && properties->find(name);
  }

  bool keeps(const Json& value, const std::string& name, const Json& rule,
             const Json& schema) const {
    if (name == "type" && rule.is_string()) return is_type(value, rule.as_string());
    if (name == "type")
      return std::ranges::any_of(rule.items(),
                                 [&](const Json& t) { return is_type(value, t.as_string()); });
    if (name == "const") return equal(value, rule);
    if (name == "enum")
      return std::ranges::any_of(rule.items(), [&](const Json& v) { return equal(v, value); });
    const auto fits = [&](const Json& s) { return valid(value, s); };
    if (name == "allOf") return std::ranges::all_of(rule.items(), fits);
    if (name == "anyOf") return std::ranges::any_of(rule.items(), fits);
    if (name == "oneOf") return std::ranges::count_if(rule.items(), fits) == 1;
    if (name == "$ref") {
      const std::string& place = rule.as_string();
      if (place == "#") return valid(value, root_);
      return valid(value, root_.at("$defs").at(place.substr(std::string("#/$defs/").size())));
    }
    if (value.is_number()) {
      const double number = value.as_double();
      if (name == "minimum") return number >= rule.as_double();
      if (name == "maximum") return number <= rule.as_double();
      if (name == "exclusiveMinimum") return number > rule.as_double();
      if (name == "exclusiveMaximum") return number < rule.as_double();
      if (name == "multipleOf") return std::fmod(number, rule.as_double()) == 0;
    }
    if (value.is_string()) {
      const auto length = static_cast<int64_t>(count_characters(value.as_string()));
      if (name == "minLength") return length >= rule.as_int();
      if (name == "maxLength") return length <= rule.as_int();
      if (name == "pattern") return finds(rule.as_string(), value.as_string());
    }
    if (value.is_array()) {
      const auto& items = value.items();
      if (name == "minItems") return static_cast<int64_t>(items.size()) >= rule.as_int();
      if (name == "maxItems") return static_cast<int64_t>(items.size()) <= rule.as_int();
      const Json* prefix = schema.find("prefixItems");
      const size_t first = prefix ? prefix->items().size() : 0;
      for (size_t i = 0; i < items.size(); ++i) {
        if (name == "prefixItems" && i < first && !valid(items[i], rule.items()[i])) return false;
        if (name == "items" && i >= first && !valid(items[i], rule)) return false;
      }
    }
    if (value.is_object()) {
      const auto& members = value.members();
      if (name == "minProperties") return static_cast<int64_t>(members.size()) >= rule.as_int();
      if (name == "maxProperties") return static_cast<int64_t>(members.size()) <= rule.as_int();
      if (name == "required")
        return std::ranges::all_of(rule.items(),
                                   [&](const Json& key) { return value.find(key.as_string()); });
      for (const auto& [key, member] : members) {
        if (name == "properties" && rule.find(key) && !valid(member, rule.at(key))) return false;
        bool matched = false;
        if (const Json* patterns = schema.find("patternProperties"))
          for (const auto& [pattern, s] : patterns->members())
            if (finds(pattern, key)) {
              matched = true;
              if (name == "patternProperties" && !valid(member, s)) return false;
            }
        if (name == "additionalProperties" && !matched && !listed(schema, key) &&
            !valid(member, rule))
          return false;
      }
    }
    return true;
  }

  const Json& root_;
};

}  // namespace mixtral::constrain
