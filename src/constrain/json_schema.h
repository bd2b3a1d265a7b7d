#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "constrain/expression.h"
#include "constrain/json_facets.h"
#include "constrain/json_text.h"
#include "constrain/regex.h"

namespace mixtral::constrain {

/// Writes a JSON schema as an expression. What a value has to meet is always a list of schemas, all
/// at once: allOf and $ref add to the list, anyOf and oneOf make a choice of lists, and a property
/// or item of several schemas has all that they say of it. Each list is one rule, so that recursive
/// schemas end.
class JsonSchema {
 public:
  using Part = Expression::Part;
  using Rule = Expression::Rule;

  /// All three must outlive this.
  JsonSchema(const Json& root, Expression& expression, JsonText& json)
      : root_(root), expression_(expression), json_(json) {}
  /// The values that are valid. Throws Error as compile_json_schema().
  Part write();

 private:
  // A schema of a list, which of its choices were made already, and whether what it brings in is in
  // the list.
  struct Item {
    const Json* schema = nullptr;
    bool chose_any = false, chose_one = false, is_expanded = false;
    friend auto operator<=>(const Item&, const Item&) = default;
  };
  using Items = std::vector<Item>;
  using Schemas = std::vector<const Json*>;

  Part part_of(const Items& items);
  Part part_of(const Schemas& schemas);
  Part build(const Items& items);
  bool expand(const Items& items, Items& expanded);
  bool expand(const Item& item, std::vector<const Json*>& path, Items& expanded);
  const Json& target(const Json& reference) const;
  std::optional<Part> choose(const Items& items);
  void check_disjoint(const Items& items, const Json& one_of);

  Part types(const JsonFacets& facets, const Schemas& schemas);
  Part values(const JsonFacets& facets, const Schemas& schemas);
  bool fits(const Json& value, const JsonFacets& facets, const Schemas& schemas);
  Part integers(const JsonFacets& facets);
  Part strings(const JsonFacets& facets, const Json& owner);
  Part arrays(const JsonFacets& facets, const Schemas& schemas);

  // json_schema_object.cc
  struct Member {
    Part part = 0;  // the name, the colon and the value
    bool required = false;
  };
  struct Extras {
    std::optional<Part> part;      // any member that is not listed
    std::optional<uint64_t> most;  // of them
  };
  Part objects(const JsonFacets& facets, const Schemas& schemas);
  std::vector<std::string> listed_names(const Schemas& schemas) const;
  std::optional<Schemas> value_of(const Schemas& schemas, const std::string& name);
  std::optional<Part> extra_members(const Schemas& schemas, const std::vector<std::string>& names);
  Part members(const std::vector<Member>& members, const Extras& extras, bool may_be_empty);
  /// The texts that match an expression. `owner` is the schema that has it, for errors.
  const Grammar& language(const Json& owner, const std::string& expression, RegexMatch match);

  const Json& root_;
  Expression& expression_;
  JsonText& json_;
  std::map<Items, Rule> rules_;
  std::vector<std::pair<Rule, Items>> waiting_;
  std::set<const Json*> checked_;
  std::map<std::pair<std::string, RegexMatch>, Grammar> languages_;
};

/// The schema that a name like "#/$defs/a" points to, or null.
const Json* find_pointer(const Json& root, std::string_view pointer);

/// What one_of.cc needs to know beside two schemas.
struct OneOfContext {
  const Json& root;
  JsonTypes types = JsonType::all;  // by the schemas around both
  std::vector<std::string> names;   // properties that those list
};
/// Whether no value that is made for one of the schemas is valid by the other, as far as types,
/// enumerated values and required properties show it.
bool are_disjoint(const Json& a, const Json& b, const OneOfContext& context);

}  // namespace mixtral::constrain
