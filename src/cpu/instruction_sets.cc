#include "cpu/instruction_sets.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <hwy/highway.h>
#include <hwy/targets.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

#include "base/advice.h"

namespace mixtral::cpu {
namespace {

constexpr std::array<std::pair<std::string_view, int64_t>, 3> kSets{
    {{"avx2", HWY_AVX2}, {"avx512", HWY_AVX3}, {"neon", HWY_NEON}}};

std::atomic<bool> limited{false};

}  // namespace

std::vector<std::string_view> instruction_sets() {
  std::vector<std::string_view> names;
  for (const auto& [name, target] : kSets)
    if ((hwy::SupportedTargets() & HWY_TARGETS & target) != 0) names.push_back(name);
  return names;
}

void limit_instructions(std::string_view set) {
  const auto names = instruction_sets();
  if (std::ranges::find(names, set) == names.end())
    throw AdvisedUsageError(
        fmt::format("‹device cpu:{}›: this processor has no such instruction set; expected {}", set,
                    names.empty() ? "cpu" : fmt::format("cpu:{}", fmt::join(names, " or cpu:"))));
  const auto* const found = std::ranges::find(kSets, set, [](const auto& s) { return s.first; });
  hwy::DisableTargets(found->second - 1);  // lower bits are newer sets
  limited = true;
}

bool may_use_extensions() { return !limited; }

}  // namespace mixtral::cpu
