#include <algorithm>

#include "constrain/json_schema.h"

namespace mixtral::constrain {
namespace {

constexpr int kMostReferences = 50;
constexpr int kMostObjectDepth = 8;

// Follows references. What stands beside one only makes the schema narrower.
const Json* resolve(const Json* schema, const Json& root) {
  for (int i = 0; i < kMostReferences && schema->is_object(); ++i) {
    const Json* reference = schema->find("$ref");
    if (!reference || !reference->is_string()) return schema;
    const Json* next = find_pointer(root, reference->as_string());
    if (!next) return schema;
    schema = next;
  }
  return schema;
}

std::optional<std::vector<const Json*>> values_of(const Json& schema) {
  std::vector<const Json*> values;
  if (const Json* one = schema.find("const")) {
    values.push_back(one);
  } else if (const Json* all = schema.find("enum")) {
    for (const Json& value : all->items()) values.push_back(&value);
  } else {
    return {};
  }
  return values;
}

JsonTypes possible_types(const Json& schema) {
  JsonTypes types = types_of(schema);
  if (const auto values = values_of(schema)) {
    JsonTypes found = 0;
    for (const Json* value : *values) found |= type_of(*value);
    types &= found;
  }
  return types;
}

const Json* property(const Json& schema, const std::string& name) {
  const Json* properties = schema.find("properties");
  return properties ? properties->find(name) : nullptr;
}

std::vector<std::string> required_names(const Json& schema) {
  std::vector<std::string> names;
  if (const Json* required = schema.find("required"))
    for (const Json& name : required->items()) names.push_back(name.as_string());
  return names;
}

bool has_any(const Json& schema, std::initializer_list<std::string_view> names) {
  return std::ranges::any_of(names, [&](auto name) { return schema.find(name) != nullptr; });
}

// Whether objects that are made for the schema never have a member of this name.
bool never_makes(const Json& schema, const std::string& name, const OneOfContext& context) {
  if (property(schema, name) || std::ranges::count(context.names, name)) return false;
  if (has_any(schema, {"allOf", "anyOf", "oneOf", "$ref", "patternProperties"})) return false;
  const Json* others = schema.find("additionalProperties");
  if (others) return others->is_bool() && !others->as_bool();
  return schema.find("properties") != nullptr;
}

// Whether objects with a member of this name are not valid by the schema.
bool refuses(const Json& schema, const std::string& name) {
  const Json* others = schema.find("additionalProperties");
  return !property(schema, name) && others && others->is_bool() && !others->as_bool() &&
         !schema.find("patternProperties");
}

class Comparison {
 public:
  explicit Comparison(const OneOfContext& context) : context_(context) {}

  bool disjoint(const Json& first, const Json& second, int depth) const {
    const Json &a = *resolve(&first, context_.root), &b = *resolve(&second, context_.root);
    if (!a.is_object() || !b.is_object() || depth > kMostObjectDepth) return false;
    const JsonTypes common = made_types(a, depth) & made_types(b, depth);
    if (common == 0) return true;
    const auto left = values_of(a), right = values_of(b);
    if (left && right)
      return std::ranges::none_of(*left, [&](const Json* value) {
        return std::ranges::any_of(*right,
                                   [&](const Json* other) { return same_value(*value, *other); });
      });
    return common == JsonType::object && disjoint_objects(a, b, depth);
  }

 private:
  // Where neither a schema nor those around it name types, only those are made that it describes.
  JsonTypes made_types(const Json& schema, int depth) const {
    const JsonTypes types = possible_types(schema);
    if (depth > 0) return types;
    const JsonTypes about = described_types(schema);
    return types == JsonType::all && context_.types == JsonType::all && about != 0
               ? about
               : types & context_.types;
  }

  bool disjoint_objects(const Json& a, const Json& b, int depth) const {
    bool a_lacks = false, b_lacks = false;  // what the other requires
    for (const auto* schemas : {&a, &b}) {
      const Json &one = *schemas, &other = &one == &a ? b : a;
      for (const std::string& name : required_names(one)) {
        if (refuses(other, name)) return true;
        const Json *mine = property(one, name), *its = property(other, name);
        if (mine && its && disjoint(*mine, *its, depth + 1)) return true;
        if (never_makes(other, name, context_)) (&one == &a ? b_lacks : a_lacks) = true;
      }
    }
    return a_lacks && b_lacks;
  }

  const OneOfContext& context_;
};

}  // namespace

bool are_disjoint(const Json& a, const Json& b, const OneOfContext& context) {
  return Comparison(context).disjoint(a, b, 0);
}

}  // namespace mixtral::constrain
