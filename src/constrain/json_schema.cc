#include "constrain/json_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/numbers.h"
#include "base/printable.h"
#include "constrain/char_automaton.h"
#include "constrain/regex.h"
#include "text/unicode.h"

namespace mixtral::constrain {
namespace {

constexpr size_t kMostRules = 5'000;
constexpr size_t kMostSchemas = 1000;  // that one value has to meet
constexpr size_t kMostOneOf = 500;

std::string unescaped(std::string_view token) {
  std::string text;
  for (size_t i = 0; i < token.size(); ++i) {
    if (token[i] == '~' && i + 1 < token.size() && (token[i + 1] == '0' || token[i + 1] == '1')) {
      text += token[++i] == '0' ? '~' : '/';
    } else if (token[i] == '%' && i + 2 < token.size()) {
      const auto digit = [](char c) {
        return std::string_view("0123456789abcdef").find(static_cast<char>(c | 0x20));
      };
      const size_t high = digit(token[i + 1]), low = digit(token[i + 2]);
      if (high > 15 || low > 15) return std::string(token);
      text += static_cast<char>(high * 16 + low);
      i += 2;
    } else {
      text += token[i];
    }
  }
  return text;
}

}  // namespace

const Json* find_pointer(const Json& root, std::string_view pointer) {
  if (!pointer.starts_with('#')) return nullptr;
  pointer.remove_prefix(1);
  const Json* at = &root;
  while (!pointer.empty()) {
    if (pointer[0] != '/') return nullptr;
    const size_t end = std::min(pointer.find('/', 1), pointer.size());
    const std::string name = unescaped(pointer.substr(1, end - 1));
    pointer.remove_prefix(end);
    if (at->is_object()) {
      at = at->find(name);
    } else if (at->is_array()) {
      const auto index = parse_unsigned(name);
      at = index && *index < at->items().size() ? &at->items()[*index] : nullptr;
    } else {
      at = nullptr;
    }
    if (!at) return nullptr;
  }
  return at;
}

JsonSchema::Part JsonSchema::write() {
  const Part root = part_of(Items{{.schema = &root_}});
  while (!waiting_.empty()) {
    const auto [rule, items] = std::move(waiting_.back());
    waiting_.pop_back();
    expression_.define(rule, build(items));
  }
  return root;
}

JsonSchema::Part JsonSchema::part_of(const Schemas& schemas) {
  Items items;
  for (const Json* schema : schemas) items.push_back({.schema = schema});
  return part_of(items);
}

JsonSchema::Part JsonSchema::part_of(const Items& items) {
  if (items.empty()) return json_.any_value();
  const auto [known, is_new] = rules_.try_emplace(items, 0);
  if (is_new) {
    if (rules_.size() > kMostRules)
      throw Error(
          fmt::format("{}: the schema's parts combine in more than {} ways; use fewer anyOf "
                      "beside one another",
                      root_.where(), kMostRules));
    known->second = expression_.add_rule(items[0].schema->where());
    waiting_.emplace_back(known->second, items);
  }
  return expression_.call(known->second);
}

const Json& JsonSchema::target(const Json& reference) const {
  const std::string& pointer = reference.as_string();
  if (!pointer.starts_with('#') || (pointer.size() > 1 && pointer[1] != '/'))
    throw Error(
        fmt::format("{}: expected a place in this schema (\"#\", \"#/$defs/name\"), found "
                    "\"{}\"",
                    reference.where(), printable(pointer)));
  const Json* found = find_pointer(root_, pointer);
  if (!found)
    throw Error(
        fmt::format("{}: there is no \"{}\" in the schema", reference.where(), printable(pointer)));
  return *found;
}

// Adds what allOf and $ref bring in. Returns false where one of them is the schema `false`.
bool JsonSchema::expand(const Items& items, Items& expanded) {
  std::ranges::copy_if(items, std::back_inserter(expanded), &Item::is_expanded);
  for (const Item& item : items) {
    if (std::ranges::find(expanded, item.schema, &Item::schema) != expanded.end()) continue;
    std::vector<const Json*> path;
    if (!expand(item, path, expanded)) return false;
  }
  return true;
}

bool JsonSchema::expand(const Item& item, std::vector<const Json*>& path, Items& expanded) {
  const Json& schema = *item.schema;
  if (schema.is_bool()) return schema.as_bool();
  if (!schema.is_object())
    throw Error(
        fmt::format("{}: expected a schema, which is an object, true or false", schema.where()));
  if (checked_.insert(&schema).second) check_keywords(schema, &schema == &root_);
  if (expanded.size() > kMostSchemas)
    throw Error(
        fmt::format("{}: one value has to meet more than {} schemas", root_.where(), kMostSchemas));
  expanded.push_back({.schema = &schema, .is_expanded = true});
  path.push_back(&schema);
  const auto bring_in = [&](const Json& other) {
    const auto known = std::ranges::find(expanded, &other, &Item::schema);
    const bool is_open = known != expanded.end() && (known->chose_any || known->chose_one);
    if (is_open || std::ranges::count(path, &other) > 0)
      throw Error(
          fmt::format("{}: the schema refers to itself without a value between", schema.where()));
    return known != expanded.end() || expand({.schema = &other}, path, expanded);
  };
  if (const Json* reference = schema.find("$ref"))
    if (!bring_in(target(*reference))) return false;
  if (const Json* all = schema.find("allOf"))
    for (const Json& other : all->items())
      if (!bring_in(other)) return false;
  path.pop_back();
  return true;
}

JsonSchema::Part JsonSchema::build(const Items& items) {
  Items expanded;
  if (!expand(items, expanded)) return expression_.never();
  if (expanded.empty()) return json_.any_value();
  if (const auto choice = choose(expanded)) return *choice;
  Schemas schemas;
  for (const Item& item : expanded) schemas.push_back(item.schema);
  const JsonFacets facets = gather_facets(schemas);
  if (facets.values) return values(facets, schemas);
  const bool says_nothing = facets.types == JsonType::all && facets.formats.empty() &&
                            !facets.range.low && !facets.range.high &&
                            std::ranges::all_of(schemas, [](const Json* schema) {
                              return described_types(*schema) == 0;
                            });
  return says_nothing ? json_.any_value() : types(facets, schemas);
}

// Where a schema has an anyOf or oneOf that is not decided yet: a choice of its branches.
std::optional<JsonSchema::Part> JsonSchema::choose(const Items& items) {
  for (size_t i = 0; i < items.size(); ++i) {
    const Json* any = items[i].chose_any ? nullptr : items[i].schema->find("anyOf");
    const Json* one = any || items[i].chose_one ? nullptr : items[i].schema->find("oneOf");
    const Json* branches = any ? any : one;
    if (!branches) continue;
    if (branches->items().empty())
      throw Error(fmt::format("{}: expected at least one schema", branches->where()));
    if (one) check_disjoint(items, *one);
    std::vector<Part> parts;
    for (const Json& branch : branches->items()) {
      Items chosen = items;
      (any ? chosen[i].chose_any : chosen[i].chose_one) = true;
      chosen.push_back({.schema = &branch});
      parts.push_back(part_of(chosen));
    }
    return expression_.choice(std::move(parts));
  }
  return {};
}

void JsonSchema::check_disjoint(const Items& items, const Json& one_of) {
  OneOfContext context{.root = root_};
  Schemas schemas;
  for (const Item& item : items) {
    schemas.push_back(item.schema);
    context.types &= types_of(*item.schema);
  }
  context.names = listed_names(schemas);
  const auto& branches = one_of.items();
  if (branches.size() > kMostOneOf)
    throw Error(fmt::format("{}: {} schemas; at most {} are accepted", one_of.where(),
                            branches.size(), kMostOneOf));
  for (size_t a = 0; a < branches.size(); ++a)
    for (size_t b = a + 1; b < branches.size(); ++b)
      if (!are_disjoint(branches[a], branches[b], context))
        throw Error(
            fmt::format("{}: oneOf can be kept only where its schemas exclude one another by "
                        "type, by enum or const, or by required properties, which {} and {} "
                        "do not; use anyOf",
                        one_of.where(), a, b));
}

JsonSchema::Part JsonSchema::types(const JsonFacets& facets, const Schemas& schemas) {
  std::vector<Part> choices;
  const auto has = [&](JsonTypes type) { return (facets.types & type) != 0; };
  if (has(JsonType::null)) choices.push_back(expression_.text("null"));
  if (has(JsonType::boolean)) choices.push_back(expression_.words({"true", "false"}));
  if (has(JsonType::fraction))
    choices.push_back(add_numbers(expression_, facets.range));
  else if (has(JsonType::integer))
    choices.push_back(integers(facets));
  if (has(JsonType::string)) choices.push_back(strings(facets, *schemas[0]));
  if (has(JsonType::array)) choices.push_back(arrays(facets, schemas));
  if (has(JsonType::object)) choices.push_back(objects(facets, schemas));
  return expression_.choice(std::move(choices));
}

JsonSchema::Part JsonSchema::values(const JsonFacets& facets, const Schemas& schemas) {
  std::vector<std::string> scalars;
  std::vector<Part> choices;
  for (const Json* value : *facets.values) {
    if (!fits(*value, facets, schemas)) continue;
    if (value->is_array() || value->is_object())
      choices.push_back(json_.value(*value));
    else
      scalars.push_back(scalar_text(*value));
  }
  choices.push_back(expression_.words(scalars));
  return expression_.choice(std::move(choices));
}

// Whether an enumerated value meets what stands beside the enumeration.
bool JsonSchema::fits(const Json& value, const JsonFacets& facets, const Schemas& schemas) {
  const JsonTypes type = type_of(value);
  if ((facets.types & type) == 0) return false;
  if (value.is_number()) {
    const Decimal number =
        value.is_integer() ? Decimal::of(value.as_int()) : Decimal::of(value.as_double());
    const auto outside = [&](const std::optional<Bound>& bound, int side) {
      if (!bound) return false;
      const int order = compare(number, bound->value) * side;
      return order < 0 || (order == 0 && bound->strict);
    };
    if (outside(facets.range.low, 1) || outside(facets.range.high, -1)) return false;
    return facets.multiple_of == 1 || std::fmod(value.as_double(), facets.multiple_of) == 0;
  }
  if (value.is_string()) {
    const std::string& text = value.as_string();
    const size_t length = count_characters(text);
    if (length < facets.least_length || length > facets.most_length.value_or(length)) return false;
    const auto is_in = [&](RegexMatch match) {
      return [&, match](const std::string& expression) {
        return language(*schemas[0], expression, match).accepts(text);
      };
    };
    return std::ranges::all_of(facets.patterns, is_in(RegexMatch::part)) &&
           std::ranges::all_of(facets.formats, is_in(RegexMatch::whole));
  }
  if (!value.is_array() && !value.is_object()) return true;
  for (const Json* schema : schemas)
    for (const std::string_view name :
         {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems",
          "properties", "required", "additionalProperties", "patternProperties", "minProperties",
          "maxProperties"})
      if (schema->find(name))
        throw Error(fmt::format("{}: {} beside enumerated arrays or objects cannot be kept",
                                schema->where(), name));
  return true;
}

const Grammar& JsonSchema::language(const Json& owner, const std::string& expression,
                                    RegexMatch match) {
  const auto known = languages_.find({expression, match});
  if (known != languages_.end()) return known->second;
  try {
    const auto network = network_of([&](Expression& e) {
      return add_regex(e, parse_regex(expression), match,
                       [&](const CharSet& set) { return e.chars(set); });
    });
    return languages_.emplace(std::pair(expression, match), Grammar(network)).first->second;
  } catch (const Error& error) {
    const char* keyword = match == RegexMatch::part ? "pattern" : "format";
    throw Error(fmt::format("{}: {}: {}", owner.where(), keyword, error.what()));
  }
}

JsonSchema::Part JsonSchema::integers(const JsonFacets& facets) {
  if (facets.multiple_of == 1) return add_integers(expression_, facets.range);
  TextConditions conditions{.multiple_of = facets.multiple_of};
  conditions.matched.push_back(
      network_of([&](Expression& e) { return add_integers(e, facets.range); }));
  return add_conditions(
      expression_, conditions, [&](const CharSet& set) { return expression_.chars(set); },
      "multipleOf");
}

JsonSchema::Part JsonSchema::strings(const JsonFacets& facets, const Json& owner) {
  if (facets.most_length && facets.least_length > *facets.most_length) return expression_.never();
  if (facets.patterns.empty() && facets.formats.empty())
    return json_.string(facets.least_length, facets.most_length);
  const CharWriter write = [&](const CharSet& set) { return json_.character(set); };
  TextConditions conditions{.least = facets.least_length, .most = facets.most_length};
  const auto add = [&](const std::vector<std::string>& expressions, RegexMatch match) {
    for (const std::string& expression : expressions)
      conditions.matched.push_back(language(owner, expression, match).shared_network());
  };
  add(facets.patterns, RegexMatch::part);
  add(facets.formats, RegexMatch::whole);
  if (conditions.matched.size() > 1 || facets.least_length > 0 || facets.most_length)
    return json_.quoted(
        add_conditions(expression_, conditions, write, owner.where() + ": pattern and length"));
  // One expression alone needs no automaton, which might be large.
  const bool is_pattern = !facets.patterns.empty();
  return json_.quoted(add_regex(expression_,
                                parse_regex(is_pattern ? facets.patterns[0] : facets.formats[0]),
                                is_pattern ? RegexMatch::part : RegexMatch::whole, write));
}

Grammar compile_json_schema(const Json& schema, const JsonLayout& layout) {
  Expression expression;
  JsonText json(expression, layout);
  const auto root = expression.add_rule("the schema");
  expression.define(root, JsonSchema(schema, expression, json).write());
  return Grammar(expression.compile(root));
}

Grammar compile_json_schema(std::string_view schema, std::string_view source,
                            const JsonLayout& layout) {
  constexpr JsonLimits kLimits{.bytes = uint64_t{1} << 20, .depth = 64, .values = 200'000};
  return compile_json_schema(Json::parse(schema, source, kLimits), layout);
}

Grammar json_object(const JsonLayout& layout) {
  Expression expression;
  const JsonText json(expression, layout);
  const auto root = expression.add_rule("an object");
  expression.define(root, json.any_object());
  return Grammar(expression.compile(root));
}

}  // namespace mixtral::constrain
