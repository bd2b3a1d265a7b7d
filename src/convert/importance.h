#pragma once

#include <map>
#include <span>
#include <vector>

#include "model/tensor_names.h"

namespace mixtral {

/// How much an error in each column of a matrix matters: the mean square of the activations that
/// the column is multiplied by, on text of the user's. Absent where nothing was gathered.
using Importance = std::map<TensorId, std::vector<float>>;

inline std::span<const float> importance_of(const Importance& importance, const TensorId& id) {
  const auto found = importance.find(id);
  return found == importance.end() ? std::span<const float>() : std::span(found->second);
}

}  // namespace mixtral
