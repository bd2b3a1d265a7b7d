#pragma once

#include <cstdint>

namespace mixtral::ops {

/// Levels of iq4_nl and iq4_xs (ggml-common.h, kvalues_iq4nl).
inline constexpr int8_t kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};

}  // namespace mixtral::ops
