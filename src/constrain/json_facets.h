#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "constrain/number_range.h"
#include "io/json.h"

namespace mixtral::constrain {

/// Kinds of JSON values as a set of bits. A whole number is `integer`, any other `fraction`.
using JsonTypes = uint8_t;
struct JsonType {
  static constexpr JsonTypes null = 1, boolean = 2, integer = 4, fraction = 8, string = 16,
                             array = 32, object = 64, number = integer | fraction, all = 127;
};
JsonTypes type_of(const Json& value);
/// The types that a schema's `type` and `nullable` name; all where it has none. Throws Error for
/// what is no type.
JsonTypes types_of(const Json& schema);

/// The types that the schema's keywords say something of; none where they say nothing.
JsonTypes described_types(const Json& schema);

/// Whether the two are the same JSON value: 1 and 1.0 are.
bool same_value(const Json& a, const Json& b);

/// What several schemas that a value has to meet at once say together, but for arrays' and objects'
/// contents and for anyOf and oneOf.
struct JsonFacets {
  JsonTypes types = JsonType::all;
  std::optional<std::vector<const Json*>> values;  // of enum and const
  NumberRange range;
  uint32_t multiple_of = 1;
  uint64_t least_length = 0;
  std::optional<uint64_t> most_length;
  std::vector<std::string> patterns;  // as `pattern` has them
  std::vector<std::string> formats;   // expressions of whole texts
  uint64_t least_items = 0, least_members = 0;
  std::optional<uint64_t> most_items, most_members;
  const Json* unique = nullptr;  // where uniqueItems is true
};

/// Takes in what `schemas`, objects all of them, say. Throws Error naming the keyword.
JsonFacets gather_facets(const std::vector<const Json*>& schemas);

/// Throws Error unless each keyword of `schema` is one that can be kept, or an annotation.
void check_keywords(const Json& schema, bool is_root);

}  // namespace mixtral::constrain
