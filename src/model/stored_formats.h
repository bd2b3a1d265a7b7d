#pragma once

#include <functional>
#include <map>
#include <string>

#include "io/tensor_source.h"
#include "model/config.h"
#include "ops/weight_format.h"

namespace mixtral {

/// The formats that weights are kept in where it is not the model's own type: of attention's
/// projections and the head by their names, of a layer's w1, w2 and w3 by that of expert 0.
using ParameterFormats = std::map<std::string, ops::WeightFormat, std::less<>>;

/// The formats in which attention's and the experts' projections and the head can be kept as they
/// stand in the files: where it is the same for all of a layer's experts, and `allowed` takes it.
ParameterFormats stored_formats(const TensorSource& tensors, const ModelConfig& config,
                                const std::function<bool(ops::WeightFormat)>& allowed);

}  // namespace mixtral
