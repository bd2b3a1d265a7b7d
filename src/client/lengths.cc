#include "client/lengths.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

#include "base/advice.h"
#include "base/numbers.h"
#include "base/printable.h"

namespace mixtral::client {
namespace {

constexpr int64_t kMost = int64_t{1} << 20;

/// A standard normal number (Box and Muller 1958).
double normal(RandomStream& random) {
  const double radius = std::sqrt(-2 * std::log(1 - random.uniform()));
  return radius * std::cos(2 * std::numbers::pi * random.uniform());
}

}  // namespace

Lengths Lengths::parse(std::string_view text, const std::string& setting) {
  const auto bad = [&] {
    return setting_error(setting,
                         fmt::format("expected N, LEAST-MOST or lognormal:MEDIAN:SIGMA[:MOST] in "
                                     "tokens, at most {}, found {}",
                                     kMost, printable(text)));
  };
  const auto in_range = [](std::optional<int64_t> n) { return n && *n >= 1 && *n <= kMost; };
  Lengths lengths;
  constexpr std::string_view kLognormal = "lognormal:";
  if (text.starts_with(kLognormal)) {
    const std::string_view numbers = text.substr(kLognormal.size());
    const size_t colon = numbers.find(':');
    if (colon == numbers.npos) throw bad();
    const size_t second = numbers.find(':', colon + 1);
    const auto median = parse_number(numbers.substr(0, colon));
    const auto sigma = parse_number(numbers.substr(colon + 1, second - colon - 1));
    const auto most = second == numbers.npos ? kMost : parse_integer(numbers.substr(second + 1));
    if (!in_range(most) || !median || !sigma ||
        !(*median >= 1 && *median <= static_cast<double>(kMost)) || !(*sigma > 0 && *sigma <= 4))
      throw bad();
    lengths.median_ = *median;
    lengths.sigma_ = *sigma;
    lengths.most_ = *most;
    return lengths;
  }
  const size_t dash = text.find('-');
  const auto least = parse_integer(text.substr(0, dash));
  const auto most = dash == text.npos ? least : parse_integer(text.substr(dash + 1));
  if (!in_range(least) || !in_range(most) || *most < *least) throw bad();
  lengths.least_ = *least;
  lengths.most_ = *most;
  return lengths;
}

int64_t Lengths::draw(RandomStream& random) const {
  if (median_ > 0) {
    const double length = median_ * std::exp(sigma_ * normal(random));
    return static_cast<int64_t>(std::clamp(std::round(length), 1.0, static_cast<double>(most_)));
  }
  return least_ + static_cast<int64_t>(random.below(static_cast<uint64_t>(most_ - least_ + 1)));
}

double Lengths::mean() const {
  if (median_ > 0) return median_ * std::exp(sigma_ * sigma_ / 2);
  return 0.5 * static_cast<double>(least_ + most_);
}

}  // namespace mixtral::client
