#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "backends/registry.h"
#include "convert/streamed_model.h"
#include "io/model_tensors.h"
#include "surgery/expert_plans.h"
#include "surgery/surgery.h"
#include "tests/support/files.h"
#include "tests/support/fixtures.h"
#include "tests/support/models.h"
#include "tests/support/small_models.h"

namespace mixtral {

inline ModelConfig config_of(int64_t experts, int64_t per_token) {
  ModelConfig config = testing::minimal_config();
  config.num_experts = experts;
  config.experts_per_token = per_token;
  return config;
}

inline HostBatch text_of(const ModelConfig& config) {
  HostBatch text;
  for (int32_t s = 0; s < 3; ++s) {
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 12; ++i)
      ids.push_back((i * i * 7 + s * 11 + 3) % static_cast<int32_t>(config.vocab_size));
    text.append(ids);
  }
  return text;
}

/// A directory for models, and what is done to them.
class Surgery : public ::testing::Test {
 protected:
  std::filesystem::path path(const std::string& name) const { return directory_.path() / name; }

  ModelSource open(const std::string& name, bool dense = false) const {
    return ModelSource::resolve({.model = path(name).string(), .dense = dense});
  }
  std::vector<float> logits(const ModelSource& source) {
    const HostBatch text = text_of(source.config());
    return streamed_logits(*backend_, source.tensors(), source.config(),
                           {text.tokens.begin(), text.tokens.begin() + 12});
  }
  SurgeryResult write(const ModelEdit& edit, const std::string& name,
                      const std::string& type = "") {
    const HostBatch text = text_of(edit.config);
    return write_edited(*backend_, edit,
                        {.to = ModelFormat::hugging_face,
                         .type = TypeChoice(type, ModelFormat::hugging_face, 64),
                         .out = path(name),
                         .threads = 1},
                        &text);
  }
  ExpertStatistics statistics(const ModelSource& source, int64_t output_tokens = 0) {
    return gather_statistics(*backend_, source, text_of(source.config()),
                             {.output_tokens = output_tokens});
  }

  std::unique_ptr<Backend> backend_ = make_backend("cpu", 1);
  TemporaryDirectory directory_;
};

inline double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0, size = 0;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, static_cast<double>(std::abs(a[i] - b[i])));
    size = std::max(size, static_cast<double>(std::abs(a[i])));
  }
  return largest / size;
}

inline std::map<std::string, std::string> bytes_of(const std::filesystem::path& directory) {
  std::map<std::string, std::string> found;
  const ModelTensors tensors(directory);
  for (const std::string& name : tensors.names())
    found[name] = tensors.at(name).type + checksum(tensors.raw(name)).hex();
  return found;
}

inline std::vector<float> values_of(const std::filesystem::path& directory,
                                    const std::string& name) {
  const ModelTensors tensors(directory);
  const auto span = tensors.view(name).span<float>();
  return {span.begin(), span.end()};
}

inline std::string expert_name(int64_t layer, int64_t expert, TensorKind kind = TensorKind::w1) {
  return tensor_name({.kind = kind, .layer = layer, .expert = expert});
}
inline std::string router_name(int64_t layer) {
  return tensor_name({.kind = TensorKind::router, .layer = layer});
}

/// Gives the routers rows of which each is a multiple of the layer's first one.
inline void set_router(testing::Weights& weights, const ModelConfig& config,
                       const std::vector<double>& multiples) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    std::vector<float>& router = weights.at(router_name(layer));
    const auto width = static_cast<size_t>(config.hidden_size);
    const std::vector<float> first(router.begin(), router.begin() + config.hidden_size);
    for (size_t e = 0; e < multiples.size(); ++e)
      for (size_t i = 0; i < width; ++i)
        router[e * width + i] = static_cast<float>(multiples[e] * static_cast<double>(first[i]));
  }
}

inline void copy_expert(testing::Weights& weights, const ModelConfig& config, int64_t from,
                        int64_t to) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer)
    for (const TensorKind kind : {TensorKind::w1, TensorKind::w2, TensorKind::w3})
      weights.at(expert_name(layer, to, kind)) = weights.at(expert_name(layer, from, kind));
}

}  // namespace mixtral
