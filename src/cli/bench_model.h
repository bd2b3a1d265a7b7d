#pragma once

#include "cli/common.h"
#include "model/mixtral.h"

namespace mixtral {

/// How a benchmark of generation opens its model: in the shape that a configuration says, with the
/// weights of its files or with random ones.
struct BenchModel {
  bool reads = false;  // weights of files, in the formats that they are stored in
  Precision precision;
  Mixtral::Options options;
};

/// The precision and formats that the flags ask for. `cut`: the configuration has other layers than
/// the files. Throws UsageError where the device lacks what is asked for.
BenchModel choose_bench_model(const CommonOptions& common, const ModelSource& source,
                              const ModelConfig& config, const Backend& backend, bool cut,
                              int64_t context);

/// Reads the weights, or draws them.
void fill_bench_model(const CommonOptions& common, const ModelSource& source,
                      const BenchModel& chosen, Backend& backend, Mixtral& model);

/// Floating-point operations of prefill: `prompts` prompts of `context` tokens each, after `depth`
/// cached tokens. Attention is causal. The last layer computes keys and values of every token; the
/// rest of that layer, and the head, are computed for each prompt's last token alone
/// (Block::forward_last).
double reading_flops(const ModelConfig& c, int64_t depth, int64_t context, int64_t prompts);
/// Floating-point operations of decoding `tokens` tokens of one sequence, one after another. The
/// first of them attends to `prompt` keys.
double writing_flops(const ModelConfig& c, int64_t prompt, int64_t tokens);

}  // namespace mixtral
