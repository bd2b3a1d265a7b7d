#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "constrain/json_schema.h"

namespace mixtral::constrain {
namespace {

constexpr size_t kMostPrefix = 500;

}  // namespace

JsonSchema::Part JsonSchema::arrays(const JsonFacets& facets, const Schemas& schemas) {
  auto& e = expression_;
  // By schema: those of the first items, and of all behind them (null: any).
  struct Contents {
    const Json::Array* first = nullptr;
    const Json* rest = nullptr;
  };
  std::vector<Contents> all;
  size_t listed = 0;
  for (const Json* schema : schemas) {
    Contents c;
    const Json *items = schema->find("items"), *prefix = schema->find("prefixItems");
    if (items && items->is_array()) {  // before draft 2020
      c.first = &items->items();
      c.rest = schema->find("additionalItems");
    } else {
      if (prefix) c.first = &prefix->items();
      c.rest = items;
    }
    if (const Json* more = schema->find("unevaluatedItems");
        more && !(more->is_bool() && more->as_bool()))
      throw Error(fmt::format("{}: unevaluatedItems cannot be kept; use items", schema->where()));
    if (c.first) listed = std::max(listed, c.first->size());
    all.push_back(c);
  }
  if (listed > kMostPrefix)
    throw Error(fmt::format("{}: {} items are listed one by one; at most {} are accepted",
                            schemas[0]->where(), listed, kMostPrefix));
  std::optional<uint64_t> most = facets.most_items;
  const auto item_at = [&](size_t index) -> std::optional<Part> {
    Schemas met;
    for (const Contents& c : all) {
      const Json* schema = c.first && index < c.first->size() ? &(*c.first)[index] : c.rest;
      if (!schema) continue;
      if (schema->is_bool() && !schema->as_bool()) return {};
      if (!schema->is_bool()) met.push_back(schema);
    }
    return part_of(met);
  };
  std::vector<Part> first;
  for (size_t i = 0; i < listed && i < most.value_or(listed); ++i) {
    const auto item = item_at(i);
    if (!item) {
      most = i;
      break;
    }
    first.push_back(*item);
  }
  const auto rest = item_at(listed);
  if (!rest) most = std::min<uint64_t>(most.value_or(listed), listed);
  if (most && facets.least_items > *most) return e.never();
  if (facets.unique && most.value_or(2) > 1)
    throw Error(fmt::format("{}: uniqueItems cannot be kept for more than one item; leave it out",
                            facets.unique->where()));
  const Part comma = e.sequence({e.text(","), json_.space()});
  const Part close = e.sequence({json_.space(), e.text("]")});
  // From the last listed item back: what follows it.
  Part tail = close;
  if (rest && most.value_or(listed + 1) > listed) {
    const uint64_t least = facets.least_items > listed ? facets.least_items - listed : 0;
    const auto more = most ? std::optional(*most - listed) : std::nullopt;
    const auto list = [&](uint64_t from, std::optional<uint64_t> to) {
      return e.repeat(e.sequence({comma, *rest}), from, to);
    };
    if (listed == 0) {
      const Part items = e.sequence(
          {*rest, list(least > 0 ? least - 1 : 0, more ? std::optional(*more - 1) : more), close});
      tail = least > 0 ? items : e.choice({items, e.text("]")});
      return e.sequence({e.text("["), json_.space(), tail});
    }
    tail = e.sequence({list(least, more), close});
  }
  for (size_t i = first.size(); i-- > 0;) {
    std::vector<Part> choices{e.sequence({i == 0 ? e.empty() : comma, first[i], tail})};
    if (i >= facets.least_items) choices.push_back(i == 0 ? e.text("]") : close);
    tail = e.choice(std::move(choices));
  }
  if (first.empty()) tail = e.text("]");
  return e.sequence({e.text("["), json_.space(), tail});
}

}  // namespace mixtral::constrain
