#pragma once

#include <filesystem>

#include "backends/registry.h"
#include "base/random.h"
#include "model/adapter.h"
#include "model/checkpoint.h"
#include "tests/support/models.h"
#include "text/byte_tokenizer.h"

namespace mixtral::testing {

inline ModelConfig small_served_config() {
  ModelConfig config = minimal_config();
  config.vocab_size = 258;
  config.num_layers = 1;
  config.max_positions = 512;
  config.bos_id = 256;
  config.eos_ids = {257};
  return config;
}

/// Writes a model of random weights, which knows bytes, into a new directory.
inline void save_small_model(const std::filesystem::path& directory, uint64_t seed) {
  const auto backend = make_backend("cpu", 1);
  Mixtral model(*backend, small_served_config(), {});
  nn::initialise(*backend, model.parameters(),
                 {.seed = seed, .deviation = 0.4, .embedding_deviation = 0.4});
  std::filesystem::create_directories(directory);
  save_model(*backend, model, directory, Dtype::f32);
  ByteTokenizer().save(directory);
}

/// Writes an adapter for it whose updates change what is drawn.
inline void save_small_adapter(const std::filesystem::path& directory, uint64_t seed) {
  const auto backend = make_backend("cpu", 1);
  const ModelConfig config = small_served_config();
  Mixtral model(*backend, config, {.trainable = false});
  AdapterFile file = new_adapter({.targets = {"q_proj", "o_proj"}, .rank = 2, .alpha = 8}, config);
  RandomStream random(seed);
  for (AdapterModule& module : file.modules) {
    const TargetShape shape = target_shape(config, module.target);
    for (std::vector<float>* values : {&module.a, &module.b}) {
      const int64_t count =
          shape.groups * module.rank * (values == &module.a ? shape.inputs : shape.rows);
      values->clear();
      for (int64_t i = 0; i < count; ++i)
        values->push_back(static_cast<float>(2 * random.uniform() - 1));
    }
  }
  Adapter adapter(*backend, model, std::move(file), {.trainable = true});
  std::filesystem::create_directories(directory);
  adapter.save(directory);
}

}  // namespace mixtral::testing
