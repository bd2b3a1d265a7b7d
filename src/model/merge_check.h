#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "model/config.h"

namespace mixtral {

struct MergedFrom {
  std::filesystem::path adapter;
  double weight = 1;
};
struct MergeCheck {
  int64_t tensors = 0, rows = 0;  // that were compared
  double difference = 0;          // the largest, in units of the last place of the merged type
  std::string tensor;             // where it is
};

/// Compares rows of every tensor of a merged model with base + Σ weight · scale · B A, which it
/// computes anew from the files: element by element at the places where PEFT and mlx-lm have them,
/// with none of the code that reads adapters for use. Throws Error when a file lacks a tensor.
MergeCheck check_merged(const std::filesystem::path& base, const std::vector<MergedFrom>& adapters,
                        const std::filesystem::path& merged);

/// The largest difference that rounding explains.
inline constexpr double kMergeRounding = 1.0;

}  // namespace mixtral
