#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/weight.h"

namespace mixtral::nn {

/// The products of an expert, in the order in which they are computed.
enum class ExpertProduct : uint8_t { gate_up, down };
inline constexpr int kExpertProducts = 2;

/// Where experts' weights are that are not all in memory (StreamedExperts multiplies by them). A
/// pass over a layer says what it needs, and then, for each product, holds one expert at a time.
class ExpertStore {
 public:
  virtual ~ExpertStore() = default;

  /// A pass over the layer begins, and uses these experts, in ascending order. What an earlier pass
  /// over the layer left undone is forgotten.
  virtual void need(int64_t layer, std::span<const int32_t> experts) = 0;
  /// The layer is likely to need these experts next, the likeliest first.
  virtual void expect(int64_t layer, std::span<const int32_t> experts) = 0;
  /// The needed experts in the order in which a product comes by them soonest.
  virtual std::vector<int32_t> order(int64_t layer, ExpertProduct product) = 0;
  /// Waits until a needed expert's weights are in the device's memory, where they stay until they
  /// are given back. One weight [1, O, I] a parameter of the projection. Throws Error where they
  /// could not be read.
  virtual std::span<const ops::Weight> hold(int64_t layer, ExpertProduct product,
                                            int32_t expert) = 0;
  /// Once the work that was issued so far is done, the weights may go.
  virtual void give_back(int64_t layer, ExpertProduct product, int32_t expert) = 0;
};

}  // namespace mixtral::nn
