#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cli/common.h"
#include "infer/speculation.h"

namespace mixtral {

/// The flags of speculative decoding.
struct SpeculationFlags {
  std::optional<int64_t> tokens;
  std::string draft_model;

  void add_to(cli::App& command);
  /// Throws UsageError where they do not go together.
  void apply(OpenOptions& open) const;
};

/// "352 draft tokens, 301 accepted (86%): 2.31 times as fast as without"; empty: there were none.
std::string in_words(const SpeculationCounts& counts);

}  // namespace mixtral
