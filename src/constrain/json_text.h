#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "constrain/expression.h"
#include "constrain/grammar.h"
#include "io/json.h"

namespace mixtral::constrain {

/// The parts that JSON text consists of (RFC 8259), with white space in few places and of bounded
/// length.
class JsonText {
 public:
  using Part = Expression::Part;
  JsonText(Expression& expression, const JsonLayout& layout);

  /// After an opening bracket or comma, and before a closing bracket.
  Part space() const { return space_; }
  /// A colon and what may follow it.
  Part colon() const { return colon_; }
  /// `part` between brackets or quotation marks.
  Part quoted(Part part) { return around("\"", part, "\""); }
  Part around(std::string_view open, Part part, std::string_view close);

  /// A string of `least` to `most` characters, with any escapes; no half of a surrogate pair.
  Part string(uint64_t least = 0, std::optional<uint64_t> most = {});
  /// One of the characters within a string, in the one way that needs the fewest escapes.
  Part character(const CharSet& set);
  /// A text in these characters, quoted.
  Part text(std::string_view text);
  /// The value itself; objects with their members in order.
  Part value(const Json& json);

  Part any_value() const { return any_value_; }
  Part any_object() const { return any_object_; }
  Part any_array() const { return any_array_; }
  Part number() const { return number_; }

 private:
  Part make_escape();

  Expression& expression_;
  Part space_, colon_, comma_, escape_, number_, any_value_, any_object_, any_array_;
};

/// A scalar as JSON text in the fewest characters.
std::string scalar_text(const Json& json);

}  // namespace mixtral::constrain
