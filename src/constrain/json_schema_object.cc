#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/printable.h"
#include "constrain/char_automaton.h"
#include "constrain/json_schema.h"
#include "constrain/regex.h"

namespace mixtral::constrain {
namespace {

using Part = Expression::Part;

constexpr size_t kMostMembers = 2000;
constexpr size_t kMostPatterns = 4;
constexpr uint64_t kMostCounted = 1000;

bool is_false(const Json* schema) { return schema && schema->is_bool() && !schema->as_bool(); }

}  // namespace

std::vector<std::string> JsonSchema::listed_names(const Schemas& schemas) const {
  std::vector<std::string> names;
  std::set<std::string, std::less<>> known;
  const auto add = [&](const std::string& name) {
    if (known.insert(name).second) names.push_back(name);
  };
  for (const Json* schema : schemas)
    if (const Json* properties = schema->find("properties"))
      for (const auto& [name, value] : properties->members()) add(name);
  for (const Json* schema : schemas)
    if (const Json* required = schema->find("required"))
      for (const Json& name : required->items()) add(name.as_string());
  return names;
}

// What the value of a listed member has to meet; nothing where there must be no such member.
std::optional<JsonSchema::Schemas> JsonSchema::value_of(const Schemas& schemas,
                                                        const std::string& name) {
  Schemas met;
  for (const Json* schema : schemas) {
    bool known = false;
    const auto add = [&](const Json& value) {
      known = true;
      if (!value.is_bool() || !value.as_bool()) met.push_back(&value);
    };
    if (const Json* properties = schema->find("properties"))
      if (const Json* value = properties->find(name)) add(*value);
    if (const Json* patterns = schema->find("patternProperties"))
      for (const auto& [pattern, value] : patterns->members())
        if (language(*schema, pattern, RegexMatch::part).accepts(name)) add(value);
    const Json* others = schema->find("additionalProperties");
    if (!known && others) add(*others);
  }
  if (std::ranges::any_of(met, is_false)) return {};
  return met;
}

// A member whose name is not among `names`; nothing where there must be none.
std::optional<Part> JsonSchema::extra_members(const Schemas& schemas,
                                              const std::vector<std::string>& names) {
  struct Pattern {
    const Json* schema;
    const std::string* expression;
    const Json* value;
  };
  std::vector<Pattern> patterns;
  bool says_others = false, lists = !names.empty();
  for (const Json* schema : schemas) {
    if (const Json* own = schema->find("patternProperties"))
      for (const auto& [expression, value] : own->members())
        patterns.push_back({schema, &expression, &value});
    if (schema->find("additionalProperties")) says_others = true;
    if (schema->find("properties")) lists = true;
    if (const Json* more = schema->find("unevaluatedProperties")) {
      if (!more->is_bool())
        throw Error(
            fmt::format("{}: unevaluatedProperties can be kept only as true or false; use "
                        "additionalProperties",
                        schema->where()));
      lists = lists || !more->as_bool();
    }
  }
  if (patterns.size() > kMostPatterns)
    throw Error(fmt::format("{}: {} patternProperties together; at most {} can be kept",
                            schemas[0]->where(), patterns.size(), kMostPatterns));
  std::vector<std::shared_ptr<const Network>> networks;
  networks.reserve(patterns.size());
  for (const Pattern& pattern : patterns)
    networks.push_back(
        language(*pattern.schema, *pattern.expression, RegexMatch::part).shared_network());
  const auto listed =
      names.empty() ? nullptr : network_of([&](Expression& e) { return e.words(names); });
  // Names that match just these patterns, by their bits.
  std::vector<Part> choices;
  for (uint32_t chosen = 0; chosen < (uint32_t{1} << patterns.size()); ++chosen) {
    // Who lists members, or patterns of them, and does not speak of others means that there are
    // none.
    if (chosen == 0 && !says_others && (lists || !patterns.empty())) continue;
    Schemas met;
    for (const Json* schema : schemas) {
      bool known = false;
      for (size_t i = 0; i < patterns.size(); ++i) {
        if (patterns[i].schema != schema || (chosen >> i & 1) == 0) continue;
        known = true;
        met.push_back(patterns[i].value);
      }
      const Json* others = schema->find("additionalProperties");
      if (!known && others) met.push_back(others);
    }
    if (std::ranges::any_of(met, is_false)) continue;
    std::erase_if(met, [](const Json* schema) { return schema->is_bool(); });
    Part name = json_.string();
    if (listed || !patterns.empty()) {
      TextConditions conditions;
      conditions.matched.push_back(
          network_of([](Expression& e) { return e.repeat(e.chars(CharSet::all()), 0); }));
      for (size_t i = 0; i < patterns.size(); ++i)
        ((chosen >> i & 1) != 0 ? conditions.matched : conditions.refused).push_back(networks[i]);
      if (listed) conditions.refused.push_back(listed);
      name = json_.quoted(add_conditions(
          expression_, conditions, [&](const CharSet& set) { return json_.character(set); },
          "names of other properties"));
    }
    choices.push_back(expression_.sequence({name, json_.colon(), part_of(met)}));
  }
  const Part part = expression_.choice(std::move(choices));
  if (part == expression_.never()) return {};
  return part;
}

Part JsonSchema::objects(const JsonFacets& facets, const Schemas& schemas) {
  const std::vector<std::string> names = listed_names(schemas);
  if (names.size() > kMostMembers)
    throw Error(fmt::format("{}: {} properties; at most {} are accepted", schemas[0]->where(),
                            names.size(), kMostMembers));
  std::set<std::string, std::less<>> required;
  for (const Json* schema : schemas)
    if (const Json* own = schema->find("required"))
      for (const Json& name : own->items()) required.insert(name.as_string());
  std::vector<Member> members;
  uint64_t needed = 0;
  for (const std::string& name : names) {
    const auto value = value_of(schemas, name);
    const bool is_needed = required.contains(name);
    if (!value && is_needed) return expression_.never();
    if (!value) continue;
    members.push_back(
        {.part = expression_.sequence({json_.text(name), json_.colon(), part_of(*value)}),
         .required = is_needed});
    needed += is_needed ? 1 : 0;
  }
  Extras extras{.part = extra_members(schemas, names)};
  const uint64_t optional = members.size() - needed;
  if (const auto most = facets.most_members; most && (extras.part || optional + needed > *most)) {
    if (needed > *most) return expression_.never();
    if (needed == *most) {
      std::erase_if(members, [](const Member& member) { return !member.required; });
      extras.part.reset();
    } else if (optional > 0 || *most > kMostCounted) {
      throw Error(fmt::format("{}: maxProperties {} cannot be kept beside optional properties",
                              schemas[0]->where(), *most));
    } else {
      extras.most = *most - needed;
    }
  }
  bool may_be_empty = true;
  if (facets.least_members > needed) {
    if (!extras.part && facets.least_members >= members.size()) {
      if (facets.least_members > members.size()) return expression_.never();
      for (Member& member : members) member.required = true;
    } else if (facets.least_members == 1) {
      may_be_empty = false;
    } else {
      throw Error(
          fmt::format("{}: minProperties {} cannot be kept beside optional properties, whose "
                      "names might be written twice",
                      schemas[0]->where(), facets.least_members));
    }
  }
  if (!extras.part && members.empty())
    return expression_.sequence({expression_.text("{"), json_.space(), expression_.text("}")});
  return this->members(members, extras, may_be_empty);
}

// Two chains of rules. `first[i]` writes the first member of the object, one of those from i on,
// and then all that follows. `then[i]` continues after a member before i.
Part JsonSchema::members(const std::vector<Member>& members, const Extras& extras,
                         bool may_be_empty) {
  auto& e = expression_;
  const Part comma = e.sequence({e.text(","), json_.space()});
  const Part close = e.sequence({json_.space(), e.text("}")});
  const auto rule = [&](Part part) {
    const Rule made = e.add_rule("members of an object");
    e.define(made, part);
    return e.call(made);
  };
  // Behind the listed ones.
  Part first = e.never(), then = close;
  if (extras.part && extras.most) {
    for (uint64_t i = 0; i < *extras.most; ++i) {
      first = rule(e.sequence({*extras.part, then}));
      then = rule(e.choice({e.sequence({comma, first}), close}));
    }
  } else if (extras.part) {
    const Rule loop = e.add_rule("members of an object");
    then = e.call(loop);
    first = rule(e.sequence({*extras.part, then}));
    e.define(loop, e.choice({e.sequence({comma, first}), close}));
  }
  bool all_optional = true;
  for (auto member = members.rbegin(); member != members.rend(); ++member) {
    const Part taken = e.sequence({member->part, then});
    first = rule(member->required ? taken : e.choice({taken, first}));
    all_optional = all_optional && !member->required;
    then = rule(e.choice({e.sequence({comma, first}), all_optional ? close : e.never()}));
  }
  const Part empty = all_optional && may_be_empty ? e.text("}") : e.never();
  return e.sequence({e.text("{"), json_.space(), e.choice({first, empty})});
}

}  // namespace mixtral::constrain
