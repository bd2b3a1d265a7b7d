#include "constrain/number_range.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <vector>

namespace mixtral::constrain {
namespace {

using Part = Expression::Part;

constexpr size_t kMostDigits = 15;   // of an unbounded integer: a double holds every such integer
constexpr size_t kExactDigits = 15;  // of a decimal number: a double keeps so many

// By value, of numbers without leading zeros.
int compare_digits(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return a.size() < b.size() ? -1 : 1;
  return a.compare(b);
}

std::string plus_one(std::string digits) {
  for (auto d = digits.rbegin(); d != digits.rend(); ++d) {
    if (*d != '9') {
      ++*d;
      return digits;
    }
    *d = '0';
  }
  return "1" + digits;
}

std::string minus_one(std::string digits) {  // of a number above 0
  for (auto d = digits.rbegin(); d != digits.rend(); ++d) {
    if (*d != '0') {
      --*d;
      break;
    }
    *d = '9';
  }
  if (digits.size() > 1 && digits[0] == '0') digits.erase(0, 1);
  return digits;
}

class Writer {
 public:
  explicit Writer(Expression& expression) : expression_(expression) {}

  // Natural numbers from low to high; without high, as many digits as are allowed.
  Part naturals(const std::string& low, const std::optional<std::string>& high) {
    if (high && compare_digits(low, *high) > 0) return expression_.never();
    std::vector<Part> choices;
    const size_t most = high ? high->size() : std::max(kMostDigits, low.size() + 2);
    for (size_t length = low.size(); length <= most; ++length) {
      const std::string first = length == low.size() ? low : "1" + std::string(length - 1, '0');
      const std::string last = high && length == high->size() ? *high : std::string(length, '9');
      if (first[0] == '1' && last == std::string(length, '9') &&
          first.find_first_not_of('0', 1) == std::string::npos && !high) {
        choices.push_back(expression_.sequence(
            {digit('1', '9'), expression_.repeat(digit('0', '9'), length - 1, most - 1)}));
        break;
      }
      choices.push_back(same_length(first, last, 0, {true, true}));
    }
    return expression_.choice(std::move(choices));
  }

  // Numbers not below 0 from low to high.
  Part magnitudes(const Bound& low, const std::optional<Bound>& high) {
    const std::string& first = low.value.whole;
    if (high && first == high->value.whole)
      return expression_.sequence({expression_.text(first), fraction(first, &low, &*high)});
    std::vector<Part> choices;
    choices.push_back(
        expression_.sequence({expression_.text(first), fraction(first, &low, nullptr)}));
    if (high) {
      const std::string& last = high->value.whole;
      if (compare_digits(first, last) > 0) return expression_.never();
      const Part between = naturals(plus_one(first), minus_one(last));
      choices.push_back(expression_.sequence({between, fraction(last, nullptr, nullptr)}));
      choices.push_back(
          expression_.sequence({expression_.text(last), fraction(last, nullptr, &*high)}));
    } else {
      const Part above = naturals(plus_one(first), {});
      choices.push_back(expression_.sequence({above, fraction(first, nullptr, nullptr)}));
    }
    return expression_.choice(std::move(choices));
  }

  Part digit(char first, char last) {
    if (first > last) return expression_.never();
    return expression_.chars(CharSet({{first, last}}));
  }

 private:
  // Whether the digits so far are those of a bound.
  struct Tight {
    bool low = false, high = false;
  };

  // Numbers of as many digits as the two have, from digit `at` on.
  Part same_length(const std::string& low, const std::string& high, size_t at, Tight tight) {
    if (at == low.size()) return expression_.empty();
    if (!tight.low && !tight.high) {
      const size_t left = low.size() - at;
      return expression_.repeat(digit('0', '9'), left, left);
    }
    const char a = tight.low ? low[at] : '0', b = tight.high ? high[at] : '9';
    if (tight.low && tight.high && a == b)
      return expression_.sequence({digit(a, a), same_length(low, high, at + 1, tight)});
    std::vector<Part> choices;
    if (tight.low)
      choices.push_back(
          expression_.sequence({digit(a, a), same_length(low, high, at + 1, {true, false})}));
    if (tight.high)
      choices.push_back(
          expression_.sequence({digit(b, b), same_length(low, high, at + 1, {false, true})}));
    const char first = tight.low ? static_cast<char>(a + 1) : a;
    const char last = tight.high ? static_cast<char>(b - 1) : b;
    choices.push_back(
        expression_.sequence({digit(first, last), same_length(low, high, at + 1, {})}));
    return expression_.choice(std::move(choices));
  }

  struct Fraction {
    const Bound *low, *high;
    size_t most;  // digits
  };

  // What may follow the whole part: nothing, or a point and digits.
  Part fraction(const std::string& whole, const Bound* low, const Bound* high) {
    const size_t room = kExactDigits - std::min(kExactDigits - 1, whole.size());
    Fraction f{.low = low, .high = high, .most = room};
    for (const Bound* bound : {low, high})
      if (bound) f.most = std::max(f.most, bound->value.fraction.size() + 1);
    const Tight tight{low != nullptr, high != nullptr};
    std::vector<Part> choices{
        expression_.sequence({expression_.text("."), fraction_digits(f, 0, tight)})};
    if (may_end(f, 0, tight)) choices.push_back(expression_.empty());
    return expression_.choice(std::move(choices));
  }

  static bool may_end(const Fraction& f, size_t at, Tight tight) {
    if (tight.low && (at < f.low->value.fraction.size() || f.low->strict)) return false;
    return !tight.high || at < f.high->value.fraction.size() || !f.high->strict;
  }

  Part fraction_digits(const Fraction& f, size_t at, Tight tight) {
    if (!tight.low && !tight.high)
      return expression_.repeat(digit('0', '9'), at == 0 ? 1 : 0, f.most - at);
    std::vector<Part> choices;
    if (at > 0 && may_end(f, at, tight)) choices.push_back(expression_.empty());
    if (at < f.most) {
      const auto digit_of = [&](const Bound* bound) {
        return at < bound->value.fraction.size() ? bound->value.fraction[at] : '0';
      };
      const char a = tight.low ? digit_of(f.low) : '0', b = tight.high ? digit_of(f.high) : '9';
      const auto then = [&](char first, char last, Tight next) {
        if (first <= last)
          choices.push_back(
              expression_.sequence({digit(first, last), fraction_digits(f, at + 1, next)}));
      };
      if (tight.low && tight.high && a == b) {
        then(a, a, tight);
      } else if (a <= b) {
        if (tight.low) then(a, a, {true, false});
        if (tight.high) then(b, b, {false, true});
        then(tight.low ? static_cast<char>(a + 1) : a, tight.high ? static_cast<char>(b - 1) : b,
             {});
      }
    }
    return expression_.choice(std::move(choices));
  }

  Expression& expression_;
};

// The range's numbers not below 0, and the sizes of those below it.
struct Halves {
  bool has_positive = false, has_negative = false;
  NumberRange positive, negative;
};

Halves split(const NumberRange& range) {
  Halves halves;
  const auto below_zero = [](const std::optional<Bound>& bound) {
    return bound && bound->value.negative;
  };
  const auto size = [](Bound bound) {
    bound.value.negative = false;
    return bound;
  };
  if (!below_zero(range.high)) {
    halves.has_positive = true;
    halves.positive = {below_zero(range.low) || !range.low ? Bound{} : *range.low, range.high};
  }
  if (!range.low || below_zero(range.low)) {
    halves.has_negative = true;
    halves.negative.low = below_zero(range.high) ? size(*range.high) : Bound{.strict = true};
    if (range.low) halves.negative.high = size(*range.low);
  }
  return halves;
}

}  // namespace

Decimal Decimal::of(double value) {
  std::array<char, 1100> buffer;
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed);
  std::string text(buffer.data(), end.ptr);
  Decimal decimal;
  if (text[0] == '-') {
    text.erase(0, 1);
    decimal.negative = true;
  }
  const size_t point = text.find('.');
  decimal.whole = text.substr(0, point);
  if (point != std::string::npos) decimal.fraction = text.substr(point + 1);
  decimal.fraction.erase(decimal.fraction.find_last_not_of('0') + 1);
  if (decimal.is_zero()) decimal.negative = false;
  return decimal;
}

Decimal Decimal::of(int64_t value) {
  std::string digits = fmt::format("{}", value);
  if (value < 0) digits.erase(0, 1);
  return {.negative = value < 0, .whole = digits};
}

int compare(const Decimal& a, const Decimal& b) {
  if (a.negative != b.negative) return a.negative ? -1 : 1;
  int order = compare_digits(a.whole, b.whole);
  if (order == 0) order = a.fraction.compare(b.fraction);
  return a.negative ? -order : order;
}

Part add_integers(Expression& expression, const NumberRange& range) {
  Writer writer(expression);
  const Halves halves = split(range);
  const auto naturals = [&](const NumberRange& sizes) -> Part {
    std::string low = sizes.low->value.whole;
    if (sizes.low->strict || !sizes.low->value.fraction.empty()) low = plus_one(low);
    if (!sizes.high) return writer.naturals(low, {});
    std::string high = sizes.high->value.whole;
    if (sizes.high->strict && sizes.high->value.fraction.empty()) {
      if (high == "0") return expression.never();
      high = minus_one(high);
    }
    return writer.naturals(low, high);
  };
  std::vector<Part> choices;
  if (halves.has_positive) choices.push_back(naturals(halves.positive));
  if (halves.has_negative)
    choices.push_back(expression.sequence({expression.text("-"), naturals(halves.negative)}));
  return expression.choice(std::move(choices));
}

Part add_numbers(Expression& expression, const NumberRange& range) {
  Writer writer(expression);
  if (!range.low && !range.high) {
    const Part digit = writer.digit('0', '9');
    const Part whole =
        expression.choice({expression.text("0"),
                           expression.sequence({writer.digit('1', '9'),
                                                expression.repeat(digit, 0, kMostDigits - 1)})});
    const Part fraction =
        expression.sequence({expression.text("."), expression.repeat(digit, 1, kMostDigits)});
    const Part exponent = expression.sequence(
        {expression.chars(CharSet::of("eE")),
         expression.optional(expression.chars(CharSet::of("+-"))), expression.repeat(digit, 1, 2)});
    return expression.sequence({expression.optional(expression.text("-")), whole,
                                expression.optional(fraction), expression.optional(exponent)});
  }
  const Halves halves = split(range);
  std::vector<Part> choices;
  if (halves.has_positive)
    choices.push_back(writer.magnitudes(*halves.positive.low, halves.positive.high));
  if (halves.has_negative)
    choices.push_back(expression.sequence(
        {expression.text("-"), writer.magnitudes(*halves.negative.low, halves.negative.high)}));
  return expression.choice(std::move(choices));
}

}  // namespace mixtral::constrain
