#pragma once

#include <optional>
#include <string>

#include "constrain/expression.h"

namespace mixtral::constrain {

/// A decimal number, its digits as text: whole without leading zeros ("0" for none), fraction
/// without trailing ones.
struct Decimal {
  bool negative = false;
  std::string whole = "0", fraction = {};

  static Decimal of(double value);
  static Decimal of(int64_t value);
  bool is_zero() const { return whole == "0" && fraction.empty(); }
  friend bool operator==(const Decimal&, const Decimal&) = default;
};
/// Below 0, 0 or above 0, as a is less than, equal to or greater than b.
int compare(const Decimal& a, const Decimal& b);

struct Bound {
  Decimal value;
  bool strict = false;  // the value itself is out
};
struct NumberRange {
  std::optional<Bound> low, high;
};

/// The integers of a range as JSON writes them. Without a bound on a side they have up to 15
/// digits, or two more than the other bound.
Expression::Part add_integers(Expression& expression, const NumberRange& range);
/// The numbers of a range. Where a bound is given they come without exponent, and with so few
/// digits that none is rounded to a strict bound when read as a double. Without bounds, up to 15
/// digits before and behind the point and an exponent of two.
Expression::Part add_numbers(Expression& expression, const NumberRange& range);

}  // namespace mixtral::constrain
