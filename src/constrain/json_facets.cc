#include "constrain/json_facets.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string_view>

#include "base/error.h"
#include "base/nearest.h"
#include "base/printable.h"
#include "constrain/json_formats.h"

namespace mixtral::constrain {
namespace {

constexpr uint64_t kMostCount = 100'000;
constexpr uint32_t kMostMultiple = 1000;
constexpr size_t kMostValues = 10'000;  // of an enum

struct TypeName {
  std::string_view name;
  JsonTypes types;
};
constexpr std::array<TypeName, 7> kTypeNames = {{{"null", JsonType::null},
                                                 {"boolean", JsonType::boolean},
                                                 {"integer", JsonType::integer},
                                                 {"number", JsonType::number},
                                                 {"string", JsonType::string},
                                                 {"array", JsonType::array},
                                                 {"object", JsonType::object}}};

// A keyword that is kept, and the types that it says something of (0: of any).
struct Keyword {
  std::string_view name;
  JsonTypes about = 0;
};
constexpr std::array<Keyword, 33> kKeywords = {{
    {"type"},
    {"enum"},
    {"const"},
    {"nullable"},
    {"anyOf"},
    {"oneOf"},
    {"allOf"},
    {"$ref"},
    {"minimum", JsonType::number},
    {"maximum", JsonType::number},
    {"exclusiveMinimum", JsonType::number},
    {"exclusiveMaximum", JsonType::number},
    {"multipleOf", JsonType::number},
    {"minLength", JsonType::string},
    {"maxLength", JsonType::string},
    {"pattern", JsonType::string},
    {"format"},
    {"items", JsonType::array},
    {"prefixItems", JsonType::array},
    {"additionalItems", JsonType::array},
    {"minItems", JsonType::array},
    {"maxItems", JsonType::array},
    {"uniqueItems", JsonType::array},
    {"properties", JsonType::object},
    {"required", JsonType::object},
    {"additionalProperties", JsonType::object},
    {"patternProperties", JsonType::object},
    {"minProperties", JsonType::object},
    {"maxProperties", JsonType::object},
    {"unevaluatedProperties", JsonType::object},
    {"unevaluatedItems", JsonType::array},
    {"$defs"},
    {"definitions"},
}};
constexpr std::array<std::string_view, 18> kAnnotations = {
    "title",    "description",      "default",         "example",       "examples",
    "$comment", "deprecated",       "readOnly",        "writeOnly",     "$schema",
    "$anchor",  "contentMediaType", "contentEncoding", "discriminator", "externalDocs",
    "xml",      "$vocabulary",      "$dynamicAnchor"};

uint64_t count_of(const Json& json) {
  const int64_t value = json.as_int();
  if (value < 0 || value > static_cast<int64_t>(kMostCount))
    throw Error(fmt::format("{}: expected a count from 0 to {}, found {}", json.where(), kMostCount,
                            value));
  return static_cast<uint64_t>(value);
}

void raise_to(uint64_t& least, const Json* json) {
  if (json) least = std::max(least, count_of(*json));
}
void lower_to(std::optional<uint64_t>& most, const Json* json) {
  if (json) most = std::min(most.value_or(kMostCount), count_of(*json));
}

Decimal decimal_of(const Json& json) {
  return json.is_integer() ? Decimal::of(json.as_int()) : Decimal::of(json.as_double());
}

enum class Side { low, high };

void narrow(std::optional<Bound>& bound, const Bound& other, Side side) {
  const int order = bound ? compare(other.value, bound->value) : 0;
  const bool tighter = side == Side::low ? order > 0 : order < 0;
  if (!bound || tighter || (order == 0 && other.strict)) bound = other;
}

// minimum and exclusiveMinimum, say; the latter was once a boolean beside the former.
void narrow(std::optional<Bound>& bound, const Json& schema, std::string_view name,
            std::string_view strict_name, Side side) {
  const Json *plain = schema.find(name), *strict = schema.find(strict_name);
  const bool flag = strict && strict->is_bool();
  if (plain) narrow(bound, {decimal_of(*plain), flag && strict->as_bool()}, side);
  if (strict && !flag) narrow(bound, {decimal_of(*strict), true}, side);
}

void gather_multiple(JsonFacets& facets, const Json* json) {
  if (!json) return;
  const bool whole =
      json->is_integer() ||
      json->as_double() ==
          static_cast<double>(static_cast<int64_t>(std::clamp(json->as_double(), -1e15, 1e15)));
  if (!whole || json->as_double() < 1 || json->as_double() > kMostMultiple)
    throw Error(
        fmt::format("{}: only whole numbers from 1 to {} can be kept as multipleOf, found {}",
                    json->where(), kMostMultiple, json->as_double()));
  const auto value = static_cast<uint32_t>(json->as_double());
  const uint64_t both = std::lcm(uint64_t{facets.multiple_of}, uint64_t{value});
  if (both > kMostMultiple)
    throw Error(fmt::format("{}: all multipleOf together make {}; at most {} can be kept",
                            json->where(), both, kMostMultiple));
  facets.multiple_of = static_cast<uint32_t>(both);
  facets.types &= static_cast<JsonTypes>(~JsonType::fraction);
}

void gather_format(JsonFacets& facets, const Json* json) {
  if (!json) return;
  const std::string& name = json->as_string();
  if (name == "float" || name == "double") return;  // OpenAPI's
  if (name == "int32" || name == "int64") {
    const int64_t most = name == "int32" ? INT32_MAX : INT64_MAX;
    narrow(facets.range.low, {Decimal::of(-most - 1)}, Side::low);
    narrow(facets.range.high, {Decimal::of(most)}, Side::high);
    return;
  }
  const char* expression = format_expression(name);
  if (!expression)
    throw Error(fmt::format("{}: the format \"{}\" cannot be kept; expected one of {}",
                            json->where(), printable(name), format_names()));
  facets.formats.emplace_back(expression);
}

void gather_values(JsonFacets& facets, const Json& schema) {
  const auto keep = [&](auto fits) {
    std::vector<const Json*> kept;
    for (const Json* value : *facets.values)
      if (fits(*value)) kept.push_back(value);
    facets.values = std::move(kept);
  };
  if (const Json* all = schema.find("enum")) {
    if (all->items().size() > kMostValues)
      throw Error(fmt::format("{}: {} values; at most {} are accepted", all->where(),
                              all->items().size(), kMostValues));
    if (facets.values) {
      keep([&](const Json& value) {
        return std::ranges::any_of(all->items(),
                                   [&](const Json& v) { return same_value(v, value); });
      });
    } else {
      facets.values.emplace();
      for (const Json& value : all->items()) facets.values->push_back(&value);
    }
  }
  if (const Json* one = schema.find("const")) {
    if (facets.values)
      keep([&](const Json& value) { return same_value(*one, value); });
    else
      facets.values = {one};
  }
}

}  // namespace

JsonTypes type_of(const Json& value) {
  switch (value.kind()) {
    case Json::Kind::null:
      return JsonType::null;
    case Json::Kind::boolean:
      return JsonType::boolean;
    case Json::Kind::integer:
      return JsonType::integer;
    case Json::Kind::number:
      return value.as_double() == std::trunc(value.as_double()) ? JsonType::integer
                                                                : JsonType::fraction;
    case Json::Kind::string:
      return JsonType::string;
    case Json::Kind::array:
      return JsonType::array;
    case Json::Kind::object:
      return JsonType::object;
  }
  return 0;
}

JsonTypes types_of(const Json& schema) {
  const Json* type = schema.find("type");
  if (!type) return JsonType::all;
  const auto one = [](const Json& json) -> JsonTypes {
    const std::string& name = json.as_string();
    for (const TypeName& known : kTypeNames)
      if (known.name == name) return known.types;
    throw Error(
        fmt::format("{}: expected null, boolean, integer, number, string, array or object, "
                    "found \"{}\"",
                    json.where(), printable(name)));
  };
  JsonTypes types = 0;
  if (type->is_array())
    for (const Json& item : type->items()) types |= one(item);
  else
    types = one(*type);
  if (const Json* nullable = schema.find("nullable"); nullable && nullable->as_bool())
    types |= JsonType::null;
  return types;
}

JsonTypes described_types(const Json& schema) {
  JsonTypes about = 0;
  for (const Keyword& keyword : kKeywords)
    if (schema.find(keyword.name)) about |= keyword.about;
  return about;
}

bool same_value(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number())
    return a.is_integer() && b.is_integer() ? a.as_int() == b.as_int()
                                            : a.as_double() == b.as_double();
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Json::Kind::boolean:
      return a.as_bool() == b.as_bool();
    case Json::Kind::string:
      return a.as_string() == b.as_string();
    case Json::Kind::array:
      return std::ranges::equal(a.items(), b.items(), same_value);
    case Json::Kind::object:
      return a.members().size() == b.members().size() &&
             std::ranges::all_of(a.members(), [&](const auto& member) {
               const Json* other = b.find(member.first);
               return other && same_value(member.second, *other);
             });
    default:
      return true;
  }
}

JsonFacets gather_facets(const std::vector<const Json*>& schemas) {
  JsonFacets facets;
  JsonTypes about = 0;
  for (const Json* schema : schemas) {
    facets.types &= types_of(*schema);
    gather_values(facets, *schema);
    narrow(facets.range.low, *schema, "minimum", "exclusiveMinimum", Side::low);
    narrow(facets.range.high, *schema, "maximum", "exclusiveMaximum", Side::high);
    gather_multiple(facets, schema->find("multipleOf"));
    raise_to(facets.least_length, schema->find("minLength"));
    lower_to(facets.most_length, schema->find("maxLength"));
    if (const Json* pattern = schema->find("pattern"))
      facets.patterns.push_back(pattern->as_string());
    gather_format(facets, schema->find("format"));
    raise_to(facets.least_items, schema->find("minItems"));
    lower_to(facets.most_items, schema->find("maxItems"));
    raise_to(facets.least_members, schema->find("minProperties"));
    lower_to(facets.most_members, schema->find("maxProperties"));
    if (const Json* unique = schema->find("uniqueItems"); unique && unique->as_bool())
      facets.unique = unique;
    about |= described_types(*schema);
  }
  // Who writes `properties` without a type means objects.
  if (facets.types == JsonType::all && !facets.values && about != 0) facets.types = about;
  return facets;
}

void check_keywords(const Json& schema, bool is_root) {
  for (const auto& [name, value] : schema.members()) {
    const auto is = [&](const auto& known) { return known == name; };
    const bool kept = std::ranges::any_of(kKeywords, is, &Keyword::name);
    if (kept || std::ranges::any_of(kAnnotations, is) || name.starts_with("x-")) continue;
    if (is_root && (name == "$id" || name == "id")) continue;
    std::vector<std::string_view> names;
    names.reserve(kKeywords.size());
    for (const Keyword& keyword : kKeywords) names.push_back(keyword.name);
    const std::string near = nearest(name, names);
    throw Error(fmt::format("{}: the keyword {} cannot be kept{}", schema.where(), printable(name),
                            near.empty() ? "" : fmt::format("; did you mean {}?", near)));
  }
}

}  // namespace mixtral::constrain
