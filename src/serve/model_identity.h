#pragma once

#include <string>

#include "open/open_model.h"

namespace mixtral::serve {

/// A text that two models share only where they compute the same: the shape, the types in which
/// weights are held and multiplied, and a checksum of weights and adapter, of which of large
/// tensors only both ends are read. It finds another model, not one who forges it.
std::string model_identity(const ModelSource& source, const OpenOptions& options,
                           const Precision& precision);

}  // namespace mixtral::serve
