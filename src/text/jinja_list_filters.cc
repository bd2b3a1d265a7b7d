// Filters that work on lists and dictionaries.
#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_interpreter.h"
#include "text/unicode.h"

namespace mixtral::jinja {
namespace {

/// item.a.b of "a.b"; numbers are indices. What is undefined on the way is `otherwise`, if given.
Value at_path(Interpreter& run, Value item, const Value& path,
              const std::optional<Value>& otherwise = std::nullopt) {
  const auto step = [&](const Value& key) {
    item = run.item(item, key);
    if (item.is(Value::Kind::undefined) && otherwise) item = *otherwise;
  };
  if (!path.is(Value::Kind::string)) {
    step(path);
    return item;
  }
  std::string_view rest = path.text();
  while (true) {
    const std::string_view part = rest.substr(0, rest.find('.'));
    const bool index = !part.empty() && part.size() < 10 &&
                       part.find_first_not_of("0123456789") == std::string_view::npos;
    step(index ? Value::of(std::stoi(std::string(part))) : Value::of(std::string(part)));
    if (part.size() == rest.size()) return item;
    rest.remove_prefix(part.size() + 1);
  }
}

Value folded(const Value& value, bool case_sensitive) {
  return !case_sensitive && value.is(Value::Kind::string) ? Value::of(to_lower(value.text()))
                                                          : value;
}

bool given_true(const std::optional<Value>& value) { return value && truth(*value); }
std::optional<Value> unless_none(const std::optional<Value>& value) {
  return value && !value->is(Value::Kind::none) ? value : std::nullopt;
}

Value to_list(Interpreter& run, const Value& value, Arguments&) {
  if (value.is(Value::Kind::string)) run.reserve(value.text().size() * sizeof(Value));
  return run.list(iterate(value));
}

Value count(Interpreter&, const Value& value, Arguments&) { return Value::of(length(value)); }

Value first(Interpreter&, const Value& value, Arguments&) {
  if (value.is(Value::Kind::iterator)) {
    Value::List& list = value.items();
    return list.read < list.items.size() ? list.items[list.read++]
                                         : Value::undefined("there is no first item");
  }
  const std::vector<Value> items = iterate(value);
  return items.empty() ? Value::undefined("there is no first item") : items.front();
}

Value last(Interpreter&, const Value& value, Arguments&) {
  if (value.is(Value::Kind::iterator)) throw RenderError("'generator' object is not reversible");
  const std::vector<Value> items = iterate(value);
  return items.empty() ? Value::undefined("there is no last item") : items.back();
}

Value reverse(Interpreter& run, const Value& value, Arguments&) {
  std::vector<Value> items = iterate(value);
  std::ranges::reverse(items);
  if (!value.is(Value::Kind::string)) return run.list(std::move(items), Value::Kind::iterator);
  std::string text;
  for (const Value& item : items) text += item.text();
  return run.text(std::move(text));
}

Value join(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"d", "attribute"}, "join");
  const std::string between = a[0] ? to_text(*a[0]) : "";
  const auto path = unless_none(a[1]);
  std::string text;
  bool begun = false;
  for (const Value& item : iterate(value)) {
    if (begun) text += between;
    begun = true;
    text += to_text(path ? at_path(run, item, *path) : item);
    run.reserve(text.size() / 64);
  }
  return run.text(std::move(text));
}

std::vector<Value> sorted(Interpreter& run, const Value& value, const std::optional<Value>& path,
                          bool case_sensitive, bool reverse) {
  std::vector<std::pair<std::vector<Value>, Value>> keyed;
  for (const Value& item : iterate(value)) {
    std::vector<Value> keys;
    if (!path) {
      keys.push_back(folded(item, case_sensitive));
    } else if (!path->is(Value::Kind::string)) {
      keys.push_back(folded(at_path(run, item, *path), case_sensitive));
    } else {
      for (std::string_view rest = path->text(); true;) {
        const std::string_view part = rest.substr(0, rest.find(','));
        keys.push_back(folded(at_path(run, item, Value::of(std::string(part))), case_sensitive));
        if (part.size() == rest.size()) break;
        rest.remove_prefix(part.size() + 1);
      }
    }
    keyed.emplace_back(std::move(keys), item);
  }
  run.spend(keyed.size());
  // Sorted by hand: a comparison may throw, which std::sort survives.
  std::ranges::stable_sort(keyed, [&](const auto& x, const auto& y) {
    for (size_t i = 0; i < x.first.size(); ++i) {
      const int order = compare(x.first[i], y.first[i]);
      if (order != 0) return reverse ? order > 0 : order < 0;
    }
    return false;
  });
  std::vector<Value> items;
  items.reserve(keyed.size());
  for (auto& [keys, item] : keyed) items.push_back(std::move(item));
  return items;
}

Value sort(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"reverse", "case_sensitive", "attribute"}, "sort");
  return run.list(sorted(run, value, unless_none(a[2]), given_true(a[1]), given_true(a[0])));
}

Value unique(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"case_sensitive", "attribute"}, "unique");
  const auto path = unless_none(a[1]);
  std::vector<Value> items;
  const Value seen = Value::dict();
  for (const Value& item : iterate(value)) {
    const Value key = folded(path ? at_path(run, item, *path) : item, given_true(a[0]));
    run.spend(key.is(Value::Kind::string) ? 1 : 1 + seen.members().items.size() / 16);
    if (seen.find(key) != nullptr) continue;
    seen.set(key, Value::none());
    items.push_back(item);
  }
  return run.list(std::move(items), Value::Kind::iterator);
}

Value extreme(Interpreter& run, const Value& value, Arguments& given, int sign) {
  const auto a = bind(given, {"case_sensitive", "attribute"}, sign < 0 ? "min" : "max");
  const auto path = unless_none(a[1]);
  const auto key = [&](const Value& item) {
    return folded(path ? at_path(run, item, *path) : item, given_true(a[0]));
  };
  std::optional<Value> best;
  for (const Value& item : iterate(value))
    if (!best || compare(key(item), key(*best)) * sign > 0) best = item;
  return best.value_or(Value::undefined("there is no item in an empty sequence"));
}

Value minimum(Interpreter& run, const Value& value, Arguments& given) {
  return extreme(run, value, given, -1);
}
Value maximum(Interpreter& run, const Value& value, Arguments& given) {
  return extreme(run, value, given, 1);
}

Value sum(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"attribute", "start"}, "sum");
  const auto path = unless_none(a[0]);
  Value total = a[1].value_or(Value::of(0));
  Expression plus;
  for (const Value& item : iterate(value)) {
    const Value next = path ? at_path(run, item, *path) : item;
    if (!next.is_number() || !total.is_number()) throw RenderError("sum needs numbers");
    if (total.is_whole() && next.is_whole()) {
      Integer result = 0;
      if (__builtin_add_overflow(total.integer(), next.integer(), &result))
        throw RenderError("a whole number is larger than this program computes with");
      total = Value::of(result);
    } else {
      total = Value::of(total.real() + next.real());
    }
  }
  return total;
}

Value map(Interpreter& run, const Value& value, Arguments& given) {
  std::vector<Value> items;
  if (!truth(value)) return run.list({}, Value::Kind::iterator);  // of 0 and none, too
  if (given.positional.empty()) {
    const auto a = bind(given, {"attribute", "default"}, "map");
    if (!a[0]) throw RenderError("map needs a filter's name or an attribute");
    for (const Value& item : iterate(value))
      items.push_back(at_path(run, item, *a[0], unless_none(a[1])));
    return run.list(std::move(items), Value::Kind::iterator);
  }
  const std::string name = plain_text(given.positional[0]);
  Arguments rest = given;
  rest.positional.erase(rest.positional.begin());
  for (const Value& item : iterate(value)) {
    Arguments each = rest;
    items.push_back(run.filter(name, item, each));
  }
  return run.list(std::move(items), Value::Kind::iterator);
}

/// The items for which a test holds (or does not); of items' attributes where `by_attribute`.
enum class Keep { passing, failing };
enum class By { item, attribute };

Value chosen(Interpreter& run, const Value& value, const Arguments& given, Keep keep, By by) {
  if (!truth(value)) return run.list({}, Value::Kind::iterator);
  Arguments rest = given;
  Value path;
  if (by == By::attribute) {
    if (rest.positional.empty()) throw RenderError("the name of an attribute is missing");
    path = rest.positional[0];
    rest.positional.erase(rest.positional.begin());
  }
  std::string name;
  if (!rest.positional.empty()) {
    name = plain_text(rest.positional[0]);
    rest.positional.erase(rest.positional.begin());
  }
  std::vector<Value> items;
  for (const Value& item : iterate(value)) {
    run.spend();
    const Value subject = by == By::attribute ? at_path(run, item, path) : item;
    Arguments each = rest;
    const bool passes = name.empty() ? truth(subject) : run.test(name, subject, each);
    if (passes == (keep == Keep::passing)) items.push_back(item);
  }
  return run.list(std::move(items), Value::Kind::iterator);
}

Value select(Interpreter& run, const Value& value, Arguments& given) {
  return chosen(run, value, given, Keep::passing, By::item);
}
Value reject(Interpreter& run, const Value& value, Arguments& given) {
  return chosen(run, value, given, Keep::failing, By::item);
}
Value selectattr(Interpreter& run, const Value& value, Arguments& given) {
  return chosen(run, value, given, Keep::passing, By::attribute);
}
Value rejectattr(Interpreter& run, const Value& value, Arguments& given) {
  return chosen(run, value, given, Keep::failing, By::attribute);
}

Value batch(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"linecount", "fill_with"}, "batch");
  const Integer size = a[0] ? whole_number(*a[0]) : 0;
  if (size < 1) throw RenderError("batch needs a size of at least 1");
  std::vector<Value> rows, row;
  for (const Value& item : iterate(value)) {
    if (static_cast<Integer>(row.size()) == size)
      rows.push_back(Value::list(std::exchange(row, {})));
    row.push_back(item);
  }
  if (const auto fill = unless_none(a[1]); fill && !row.empty()) {
    if (size > 1 << 20) throw RenderError("batch: the size is too large");
    row.resize(static_cast<size_t>(size), *fill);
  }
  if (!row.empty()) rows.push_back(run.list(std::move(row)));
  return run.list(std::move(rows), Value::Kind::iterator);
}

Value slice(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"slices", "fill_with"}, "slice");
  const Integer slices = a[0] ? whole_number(*a[0]) : 0;
  if (slices < 1 || slices > 100000) throw RenderError("slice needs 1 to 100000 slices");
  const std::vector<Value> items = iterate(value);
  const size_t n = static_cast<size_t>(slices), each = items.size() / n, more = items.size() % n;
  std::vector<Value> rows;
  size_t at = 0;
  for (size_t i = 0; i < n; ++i) {
    const size_t size = each + (i < more ? 1 : 0);
    std::vector<Value> row(items.begin() + static_cast<std::ptrdiff_t>(at),
                           items.begin() + static_cast<std::ptrdiff_t>(at + size));
    at += size;
    if (const auto fill = unless_none(a[1]); fill && i >= more) row.push_back(*fill);
    rows.push_back(run.list(std::move(row)));
  }
  return run.list(std::move(rows), Value::Kind::iterator);
}

Value groupby(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"attribute", "default", "case_sensitive"}, "groupby");
  if (!a[0]) throw RenderError("groupby needs an attribute");
  const auto otherwise = unless_none(a[1]);
  std::vector<Value> keyed;
  for (const Value& item : iterate(value))
    keyed.push_back(Value::tuple({at_path(run, item, *a[0], otherwise), item}));
  std::vector<Value> groups;
  for (const Value& pair :
       sorted(run, Value::list(std::move(keyed)), Value::of(0), given_true(a[2]), false)) {
    const auto& [key, item] = std::tie(pair.items().items[0], pair.items().items[1]);
    const bool same =
        !groups.empty() && equal(folded(groups.back().items().items[0], given_true(a[2])),
                                 folded(key, given_true(a[2])));
    if (!same) {
      groups.push_back(Value::tuple({key, Value::list({})}));
      groups.back().items().name = "group";
    }
    groups.back().items().items[1].items().items.push_back(item);
  }
  return run.list(std::move(groups));
}

Value dictsort(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"case_sensitive", "by", "reverse"}, "dictsort");
  const std::string by = a[1] ? plain_text(*a[1]) : "key";
  if (by != "key" && by != "value") throw RenderError("dictsort sorts by 'key' or 'value'");
  if (!value.is(Value::Kind::dict)) throw RenderError("dictsort needs a dictionary");
  std::vector<Value> items;
  for (const auto& [key, item] : value.members().items) items.push_back(Value::tuple({key, item}));
  return run.list(sorted(run, Value::list(std::move(items)), Value::of(by == "key" ? 0 : 1),
                         given_true(a[0]), given_true(a[2])));
}

Value items(Interpreter& run, const Value& value, Arguments&) {
  std::vector<Value> pairs;
  if (!value.is(Value::Kind::undefined)) {
    if (!value.is(Value::Kind::dict)) throw RenderError("items needs a dictionary");
    for (const auto& [key, item] : value.members().items)
      pairs.push_back(Value::tuple({key, item}));
  }
  return run.list(std::move(pairs), Value::Kind::iterator);
}

Value attr(Interpreter& run, const Value& value, Arguments& given) {
  const auto a = bind(given, {"name"}, "attr");
  if (!a[0]) throw RenderError("attr needs a name");
  if (value.is(Value::Kind::dict)) {  // only what Python calls an attribute
    const Value method = find_method(value, to_text(*a[0]));
    return method.is(Value::Kind::undefined) ? Value::undefined("there is no such attribute")
                                             : method;
  }
  return run.attribute(value, to_text(*a[0]));
}

struct Named {
  std::string_view name;
  FilterFunction function;
};

constexpr Named kFilters[] = {
    {"list", to_list},
    {"length", count},
    {"count", count},
    {"first", first},
    {"last", last},
    {"reverse", reverse},
    {"join", join},
    {"sort", sort},
    {"unique", unique},
    {"min", minimum},
    {"max", maximum},
    {"sum", sum},
    {"map", map},
    {"select", select},
    {"reject", reject},
    {"selectattr", selectattr},
    {"rejectattr", rejectattr},
    {"batch", batch},
    {"slice", slice},
    {"groupby", groupby},
    {"dictsort", dictsort},
    {"items", items},
    {"attr", attr},
};

}  // namespace

FilterFunction find_list_filter(std::string_view name) {
  const auto* found = std::ranges::find(kFilters, name, &Named::name);
  return found == std::end(kFilters) ? nullptr : found->function;
}

}  // namespace mixtral::jinja
