#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "io/tensor_source.h"
#include "model/expert_sizes.h"

namespace mixtral {

/// The experts' weights of a model that was made with Options::stream_experts in the host's memory,
/// in pages that are locked for copies to a device. Each expert's product stands there as in its
/// place on the device (cut_expert), in plain rows.
class HostExperts {
 public:
  /// Takes the memory, by all threads, and locks it. The values are undefined: load or draw them
  /// next. Throws Error where the system does not lock so much.
  HostExperts(Backend& backend, Mixtral& model);

  /// Reads every expert from a model's files, which must have passed check_weights(), by all
  /// threads. What has to be packed or reordered goes by way of the device, one expert at a time.
  /// Throws Error as load_weights().
  void load(Mixtral& model, const TensorSource& tensors);
  /// Draws them on the device: the numbers that nn::initialise draws of experts that are all there.
  void draw(Mixtral& model, const nn::Initialisation& how);

  const ExpertSizes& sizes() const { return sizes_; }
  /// Where an expert's product begins, and how many bytes it has.
  std::byte* data(int64_t layer, nn::ExpertProduct product, int64_t expert) const;
  int64_t bytes(int64_t layer, nn::ExpertProduct product) const;

 private:
  /// One expert's parameters of a product, in memory at `data`.
  static std::vector<nn::Parameter> parameters(const nn::StreamedExperts& streamed, int64_t expert,
                                               void* data);
  /// Fills an expert's product by way of the device: `fill` puts numbers into parameters there.
  void fill_by_device(const nn::StreamedExperts& streamed, int64_t expert,
                      const std::function<void(std::vector<nn::Parameter>&)>& fill);

  Backend& backend_;
  ExpertSizes sizes_;
  std::vector<std::array<int64_t, nn::kExpertProducts>> bytes_;  // [L], of one expert
  std::vector<Buffer> memory_;                                   // [L]
  std::vector<std::unique_ptr<LockedPages>> locked_;             // of memory_: go first
  Buffer room_;                                                  // on the device, of one product
  std::unique_ptr<Fence> filled_;                                // behind what was put there
  std::unique_ptr<CopyLane> lane_;
};

}  // namespace mixtral
