#pragma once

#include "io/json.h"
#include "model/config.h"

namespace mixtral {

/// The configuration that a params.json of Mistral's own format says (mistral-inference, args.py).
/// Absent rope_theta is 1e6. Throws Error naming the key that is missing, malformed, or asks for
/// what this program does not do.
ModelConfig mistral_config(const Json& params);

}  // namespace mixtral
