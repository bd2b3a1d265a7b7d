#pragma once

#include <string_view>
#include <vector>

namespace mixtral::cpu {

/// The instruction sets that kernels can be limited to here, the oldest first: "avx2" and "avx512"
/// (without VNNI and products of bf16 pairs), or "neon" (without dot products).
std::vector<std::string_view> instruction_sets();

/// Has every kernel of this process use that set and nothing newer, from now on: for tests and
/// measurement. Call it before anything is computed. Throws UsageError where the set is not one of
/// instruction_sets().
void limit_instructions(std::string_view set);

/// Whether kernels may use what processors have beside a set: VNNI, products of bf16 pairs, dot
/// products.
bool may_use_extensions();

}  // namespace mixtral::cpu
