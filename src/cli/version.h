#pragma once

namespace mixtral {
inline constexpr const char* kVersion = "0.1.0";
}  // namespace mixtral
