#pragma once

#include "nn/parameter.h"

namespace mixtral::nn {

/// Brings a packed parameter's weight into another layout, in its own memory, byte for byte: going
/// back gives the same bytes. It may go by way of the host, so it is for loading, not for every
/// step. Throws InternalError where the weight has no such layout.
void set_layout(Backend& backend, Parameter& parameter, ops::WeightLayout layout);

/// Brings every packed parameter into the layout that the backend prefers: once, after weights were
/// loaded or drawn.
void use_preferred_layouts(Backend& backend, const ParameterSource& source);

/// Brings every packed parameter back into plain rows, as files have them: before its bytes are
/// read or numbers are written to it.
void use_plain_rows(Backend& backend, const ParameterSource& source);

}  // namespace mixtral::nn
