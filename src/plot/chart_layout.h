#pragma once

#include <optional>

#include "plot/chart.h"

namespace mixtral::detail {

/// The numbers that a panel's edges stand for.
struct Limits {
  double left = 0, right = 1, bottom = 0, top = 1;
};

/// Limits that hold a panel's curves or heat map.
Limits find_limits(const Panel& panel);

}  // namespace mixtral::detail
