#pragma once

#include <cstdint>
#include <vector>

#include "infer/request.h"
#include "model/mixtral.h"

namespace mixtral {

/// How many tokens each expert of each layer has taken.
struct ExpertLoad {
  explicit ExpertLoad(const ModelConfig& config)
      : layers(config.num_layers),
        experts(config.num_experts),
        taken(static_cast<size_t>(layers * experts)) {}

  int64_t layers, experts;
  int64_t tokens = 0;          // that went through the model
  std::vector<int64_t> taken;  // [L, E]; a layer's sum is tokens · k
};

/// Where the tokens of one step of an engine went. The device writes the layers' routes to one
/// place, which stays, so that a recorded step writes there too; the host reads them in one copy.
class StepRoutes {
 public:
  /// Room for steps of up to `most` tokens.
  StepRoutes(Context& ctx, const ModelConfig& config, int64_t most);

  /// Where a pass over so many tokens is to report to. Only tokens' routes are asked for; the
  /// result lives until the next call.
  const Mixtral::RouterReports* prepare(int64_t tokens);
  /// Waits for the pass, and copies what it reported.
  void read();

  /// Counts the tokens that were read; padding does not count.
  void add_to(ExpertLoad& load) const;
  /// The routes of a token of the step. Its weights are the softmax over the chosen experts'
  /// logits, as the router has them.
  TokenRoutes of(int64_t token) const;

 private:
  /// Cuts the reports of so many tokens from a buffer; returns the bytes that they take.
  int64_t cut(void* base, int64_t tokens, Mixtral::RouterReports& reports) const;

  Context& ctx_;
  int64_t layers_, experts_, per_token_, most_, tokens_ = 0, bytes_ = 0;
  Buffer device_buffer_, host_buffer_;
  Mixtral::RouterReports device_, host_;
};

}  // namespace mixtral
