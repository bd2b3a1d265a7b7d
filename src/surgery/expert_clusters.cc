#include "surgery/expert_clusters.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace mixtral {
namespace {

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

}  // namespace

std::vector<std::vector<size_t>> cluster(const std::vector<std::vector<double>>& points,
                                         size_t count) {
  CHECK(count >= 1 && count <= points.size());
  std::vector<std::vector<double>> between(points.size(), std::vector<double>(points.size()));
  for (size_t i = 0; i < points.size(); ++i)
    for (size_t j = 0; j < points.size(); ++j) between[i][j] = distance(points[i], points[j]);
  const auto mean = [&](const std::vector<size_t>& a, const std::vector<size_t>& b) {
    double sum = 0;
    for (const size_t i : a)
      for (const size_t j : b) sum += between[i][j];
    return sum / static_cast<double>(a.size() * b.size());
  };
  std::vector<std::vector<size_t>> groups;
  groups.reserve(points.size());
  for (size_t i = 0; i < points.size(); ++i) groups.push_back({i});
  while (groups.size() > count) {
    size_t first = 0, second = 1;
    double least = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < groups.size(); ++i)
      for (size_t j = i + 1; j < groups.size(); ++j)
        if (const double own = mean(groups[i], groups[j]); own < least) {
          least = own;
          first = i;
          second = j;
        }
    groups[first].insert(groups[first].end(), groups[second].begin(), groups[second].end());
    std::ranges::sort(groups[first]);
    groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(second));
  }
  std::ranges::sort(groups);
  return groups;
}

}  // namespace mixtral
