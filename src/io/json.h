#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/printable.h"

namespace mixtral {

/// Caps that keep hostile text cheap to refuse.
struct JsonLimits {
  uint64_t bytes = uint64_t{64} << 20;
  int depth = 64;                 // arrays and objects within one another; at most 512
  uint64_t values = 8'000'000;    // of any kind, each of which takes about 100 bytes
  uint64_t items = ~uint64_t{0};  // of one array
};

/// An immutable parsed JSON value; copies share their contents. Parsing is strict (RFC 8259): valid
/// UTF-8 without lone surrogates, no byte order mark, no trailing text, no duplicate keys, limited
/// depth, finite numbers. Every value knows where it stood, so that errors name source and key.
class Json {
 public:
  enum class Kind { null, boolean, integer, number, string, array, object };
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;

  /// `source` names the text in errors ("model/config.json", "train.jsonl:12"). Throws Error
  /// "SOURCE: KEY: not valid JSON: REASON".
  static Json parse(std::string_view text, std::string_view source, const JsonLimits& limits = {});
  /// Parses a whole file, whose path is the source. Throws Error also if it cannot be read.
  static Json load(const std::filesystem::path& path, const JsonLimits& limits = {});

  /// `integer` is a number written without fraction or exponent that fits int64; every other number
  /// is `number`.
  Kind kind() const { return static_cast<Kind>(value_.index()); }
  bool is_null() const { return kind() == Kind::null; }
  bool is_bool() const { return kind() == Kind::boolean; }
  bool is_integer() const { return kind() == Kind::integer; }
  bool is_number() const { return kind() == Kind::integer || kind() == Kind::number; }
  bool is_string() const { return kind() == Kind::string; }
  bool is_array() const { return kind() == Kind::array; }
  bool is_object() const { return kind() == Kind::object; }

  // Each throws Error "SOURCE: KEY: expected a string, found a number" when the kind differs.
  bool as_bool() const;
  /// Also takes a number without a fraction whose size is at most 2^53, such as 1e6 or 5.0.
  int64_t as_int() const;
  double as_double() const;
  const std::string& as_string() const;
  const Array& items() const;     // of an array
  const Object& members() const;  // of an object, in file order

  /// The member of an object, or null when it is absent. Throws Error when this is no object.
  const Json* find(std::string_view key) const;
  /// The same, but throws Error naming the key when it is absent.
  const Json& at(std::string_view key) const;

  /// "SOURCE: a.b[3]", or "SOURCE" for the whole text: what errors about this value begin with.
  std::string where() const;

 private:
  friend class JsonReader;
  // A place in the text: its source, or a key or index under a parent.
  struct Place {
    std::shared_ptr<const Place> parent;
    std::string name;
  };
  using PlacePointer = std::shared_ptr<const Place>;

  // An element of an array shares its array's place and adds its index; anything else has -1.
  Json(PlacePointer place, int64_t index) : place_(std::move(place)), index_(index) {}
  [[noreturn]] void mismatch(std::string_view expected) const;

  // In the order of Kind.
  std::variant<std::monostate, bool, int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const Array>, std::shared_ptr<const Object>>
      value_;
  PlacePointer place_;
  int64_t index_ = -1;
};

}  // namespace mixtral
