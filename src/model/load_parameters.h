#pragma once

#include <functional>
#include <vector>

#include "io/tensor_source.h"
#include "model/config.h"
#include "nn/parameter.h"

namespace mixtral {

// What load_weights() and HostExperts::load() have in common. The files must have passed
// check_weights().

/// Reads those of the parameters that it can straight from the files to ordinary memory, in which
/// they must be, by all threads. `layout` says in which layout a packed one is to end; it must be
/// in plain rows. The others, which it does not touch, are returned. Throws Error, naming file and
/// tensor, where a number of any is not finite.
std::vector<nn::Parameter*> load_in_memory(
    const nn::ParameterSource& source, const ModelConfig& config, const TensorSource& tensors,
    const std::function<ops::WeightLayout(const nn::Parameter&)>& layout);

/// Throws Error, naming file and tensor, where a number of these parameters is not finite.
void refuse_non_finite(const std::vector<nn::Parameter*>& parameters, const ModelConfig& config,
                       const TensorSource& tensors);

/// Reads parameters on a device, which must be in plain rows, a tensor at a time.
void load_one_by_one(Backend& backend, const std::vector<nn::Parameter*>& parameters,
                     const ModelConfig& config, const TensorSource& tensors);

}  // namespace mixtral
