#include "plot/chart_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace mixtral {

std::vector<double> axis_ticks(double low, double high, int count) {
  const double range = high - low;
  if (!(range > 0) || count < 1) return {low};
  const double raw = range / count;
  const double magnitude = std::pow(10, std::floor(std::log10(raw)));
  double step = magnitude * 10;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * magnitude >= raw * 0.999) {
      step = factor * magnitude;
      break;
    }
  }
  std::vector<double> ticks;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i)
    ticks.push_back(i == 0 ? 0 : i * step);
  return ticks;
}

std::string axis_label(double value) {
  const double size = std::abs(value);
  // Rounded as a whole, so that 0.30000000000000004 is 0.3.
  if (size >= 1e6) return fmt::format("{:.4g}M", value / 1e6);
  if (size >= 1e4) return fmt::format("{:.4g}k", value / 1e3);
  return fmt::format("{:.4g}", value);
}

Color palette(size_t i) {
  static constexpr std::array<Color, 7> kColors{{{0.00, 0.45, 0.70},
                                                 {0.84, 0.37, 0.00},
                                                 {0.00, 0.62, 0.45},
                                                 {0.80, 0.47, 0.65},
                                                 {0.90, 0.62, 0.00},
                                                 {0.34, 0.71, 0.91},
                                                 {0.35, 0.35, 0.35}}};
  return kColors[i % kColors.size()];
}

Color sequential_color(size_t i, size_t n) {
  // A walk through a few stops of a dark-to-light map.
  static constexpr std::array<Color, 5> kStops{{{0.19, 0.07, 0.38},
                                                {0.21, 0.31, 0.60},
                                                {0.10, 0.53, 0.58},
                                                {0.36, 0.72, 0.42},
                                                {0.86, 0.75, 0.15}}};
  const double place = n > 1 ? 4.0 * static_cast<double>(i) / static_cast<double>(n - 1) : 1;
  const auto stop = std::min<size_t>(static_cast<size_t>(place), 3);
  const double share = place - static_cast<double>(stop);
  Color color;
  for (size_t c = 0; c < 3; ++c)
    color[c] = kStops[stop][c] * (1 - share) + kStops[stop + 1][c] * share;
  return color;
}

namespace detail {

Limits find_limits(const Panel& panel) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Limits limits{kInfinity, -kInfinity, kInfinity, -kInfinity};
  if (!panel.heat.values.empty()) {
    for (const double x : panel.heat.x) {
      limits.left = std::min(limits.left, x);
      limits.right = std::max(limits.right, x);
    }
    limits.bottom = 0;
    limits.top = static_cast<double>(panel.heat.values.size());
  } else {
    for (const Curve& curve : panel.curves)
      for (const auto& [x, y] : curve.points) {
        limits.left = std::min(limits.left, x);
        limits.right = std::max(limits.right, x);
      }
    const double counted = limits.left + panel.ignored_start * (limits.right - limits.left);
    for (const Curve& curve : panel.curves)
      for (const auto& [x, y] : curve.points) {
        if (!std::isfinite(y) || x < counted) continue;
        limits.bottom = std::min(limits.bottom, y);
        limits.top = std::max(limits.top, y);
      }
    if (panel.from_zero) limits.bottom = std::min(limits.bottom, 0.0);
    if (limits.top > limits.bottom) {
      const double margin = 0.05 * (limits.top - limits.bottom);
      limits.top += margin;
      if (!panel.from_zero) limits.bottom -= margin;
    }
  }
  if (!std::isfinite(limits.left)) limits.left = limits.right = 0;
  // Without a finite value the top is minus infinity, also where the bottom is zero by wish.
  if (!std::isfinite(limits.bottom) || !std::isfinite(limits.top)) limits.bottom = limits.top = 0;
  if (!(limits.right > limits.left)) limits.right = limits.left + 1;
  if (!(limits.top > limits.bottom)) {
    const double half = std::max(0.5 * std::abs(limits.top), 0.5);
    limits.bottom = panel.from_zero ? 0 : limits.bottom - half;
    limits.top += half;
  }
  return limits;
}

}  // namespace detail
}  // namespace mixtral
