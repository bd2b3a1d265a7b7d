#pragma once

#include <cstdint>

namespace mixtral::cuda_plan {

/// What a GPU answers as a Backend.
inline constexpr int64_t kSliceElements = int64_t{1} << 26;
inline constexpr int64_t kPageTokens = 64;
inline constexpr int64_t kPromptTokens = 2048;
inline constexpr int64_t kLonePromptTokens = 8192;

/// Bytes in use as soon as a GPU is opened: what a CUDA context was seen to hold on an H100 and an
/// H200, and the products' workspace.
inline constexpr int64_t kOpenedBytes = int64_t{560} << 20;

}  // namespace mixtral::cuda_plan
