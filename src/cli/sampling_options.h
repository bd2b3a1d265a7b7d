#pragma once

#include <string>
#include <vector>

#include "cli/command_line.h"
#include "infer/methods.h"

namespace mixtral {

/// The flags that say how tokens are drawn, and what ends a text.
struct SamplingOptions {
  int64_t max_tokens = 256, repeat_last_n = 64;
  float temperature = 0.8f, top_p = 1, min_p = 0, repeat_penalty = 1;
  int32_t top_k = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false;

  void add_to(cli::App& command);
  TextOptions text_options(uint64_t seed, const std::vector<int64_t>& eos_ids) const;
};

}  // namespace mixtral
