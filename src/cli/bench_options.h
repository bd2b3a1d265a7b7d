#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/common.h"
#include "model/config.h"

namespace mixtral {

/// The flags of bench.
struct BenchOptions {
  CommonOptions common;
  std::string work, model = "small", targets = "q_proj,v_proj,gate", optimizer_state = "fp32",
                    graph = "auto";
  std::optional<int64_t> layers;
  int64_t context = 256, batch_size = 4, accumulation = 1, steps = 10, warmup = 3, tokens = 64,
          batch = 1, depth = 0, speculate = 0, rank = 16, keep_layers = 0;
  bool recompute = false, profile = false;

  bool trains() const { return work == "pretrain" || work == "finetune" || work == "ops"; }
};

/// Refuses flags between `bench` and the name of a work that defines its own flags, as in
/// `bench --steps 3 serve`. Throws UsageError.
void refuse_flags_in_front(const cli::App& bench, std::string_view work);

/// --prompt-tokens and --max-tokens, as client::Lengths reads them.
void add_length_options(cli::App& command, std::string& prompts, std::string& answers);

/// Tokens of the vocabulary, drawn from `seed`.
std::vector<int32_t> random_tokens(const ModelConfig& config, int64_t count, uint64_t seed);

}  // namespace mixtral
