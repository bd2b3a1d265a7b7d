#pragma once

#include <cstddef>
#include <vector>

namespace mixtral {

/// Groups points until `count` groups are left: the two whose members are closest on average are
/// joined first (average linkage of Euclidean distances). Members ascend, and so do groups by their
/// first members. Ties go to the groups that come first.
std::vector<std::vector<size_t>> cluster(const std::vector<std::vector<double>>& points,
                                         size_t count);

}  // namespace mixtral
