#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/tensor_names.h"
#include "open/model_source.h"

namespace mixtral {

/// A share of an expert of one of the models that a model is made of.
struct ExpertShare {
  size_t source = 0;  // which of ModelEdit::sources
  int64_t expert = 0;
  double weight = 1;
};

/// How an expert is made: the sum of its shares, and noise where it is a further copy.
struct ExpertRecipe {
  std::vector<ExpertShare> shares;
  bool noisy = false;

  /// Whether it is one expert as it was.
  bool is_copy() const { return shares.size() == 1 && shares.front().weight == 1 && !noisy; }
};

struct LayerEdit {
  std::vector<ExpertRecipe> experts;  // [E]
  /// The router's matrix [E, D]. Empty: each row is made of the sources' rows as its expert is.
  std::vector<double> router;
};

/// A model made of others' experts. What is no expert and no router is the first source's.
struct ModelEdit {
  std::string operation;                    // in words, for the receipt
  std::vector<const ModelSource*> sources;  // of the same shape but for the number of experts
  ModelConfig config;                       // of the result
  std::vector<LayerEdit> layers;
  /// To `noise_share` of a noisy expert's numbers, noise is added, normal with a deviation of
  /// `noise` times the root mean square of the matrix (of the router: of the row).
  double noise = 0, noise_share = 1;
  uint64_t seed = 1;
  std::string router_words;  // how routers that are given came about

  /// A source tensor that goes into a tensor of the result, with its weight in the sum.
  struct Origin {
    size_t source = 0;
    TensorId id;
    double weight = 1;
  };
  std::vector<Origin> origins(const TensorId& id) const;
  /// What was done to them, in words; empty where the tensor is as it was.
  std::string words(const TensorId& id) const;
};

}  // namespace mixtral
