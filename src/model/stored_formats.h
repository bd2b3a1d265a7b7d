#pragma once

#include <functional>
#include <map>
#include <string>

#include "io/tensor_source.h"
#include "model/config.h"
#include "ops/weight_format.h"

namespace mixtral {

/// The formats that parameters are kept in where it is not the model's own type, by the name of
/// each parameter's first part.
using ParameterFormats = std::map<std::string, ops::WeightFormat, std::less<>>;

/// The formats in which attention's and the experts' projections and the head can be kept as they
/// stand in the files: of those parameters all of whose tensors have the same format, one that
/// `allowed` takes.
ParameterFormats stored_formats(const TensorSource& tensors, const ModelConfig& config,
                                const std::function<bool(ops::WeightFormat)>& allowed);

}  // namespace mixtral
