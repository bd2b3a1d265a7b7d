#pragma once

#include "model/config.h"

namespace mixtral::testing {

/// The smallest model that has everything: two layers, grouped kv heads, several experts.
inline ModelConfig minimal_config() {
  ModelConfig config;
  config.vocab_size = 32;
  config.hidden_size = 16;
  config.intermediate_size = 16;
  config.num_layers = 2;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 8;
  config.num_experts = 4;
  config.experts_per_token = 2;
  config.max_positions = 32;
  return config;
}

/// The same with sizes that tell dimensions apart, for what reads and writes files.
inline ModelConfig uneven_config() {
  ModelConfig config = minimal_config();
  config.vocab_size = 12;
  config.hidden_size = 8;
  config.intermediate_size = 6;
  config.head_dim = 4;
  config.num_experts = 3;
  config.max_positions = 16;
  return config;
}

}  // namespace mixtral::testing
