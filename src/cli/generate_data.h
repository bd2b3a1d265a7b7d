#pragma once

#include <cstdint>
#include <string>

#include "cli/common.h"
#include "cli/sampling_options.h"
#include "cli/speculation_options.h"

namespace mixtral {

/// What `generate --data` is given.
struct GenerateDataOptions {
  CommonOptions common;
  SamplingOptions sampling;  // of rows that say nothing else
  SpeculationFlags speculation;
  std::string model, adapter, tokenizer, chat_template;
  std::string data, out;  // out empty: standard output
  int64_t context = 0;    // 0: what the longest row needs
  int64_t parallel = 8;   // rows that are under way at once
  bool resume = false, log_probabilities = false;
};

/// `mixtral generate --data`: continues each row of a file, several at once.
void generate_data(GenerateDataOptions options);

}  // namespace mixtral
