#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <tuple>

#include "cuda/scratch.h"
#include "ops/attention.h"

namespace mixtral::cuda {

/// Attention by cuDNN, which is loaded when it is first wanted: bf16, heads up to 128 wide, any
/// window, sequences of one length, a multiple of 64. (Its ragged layout needs room for every
/// sequence at the longest one's length in a backward pass that has the same bits every time; own
/// kernels do those.)
class CudnnAttention {
 public:
  CudnnAttention();
  ~CudnnAttention();

  /// "cuDNN 9.19.0", or why it is not used and what to install.
  const std::string& description();

  /// Computes the op, or returns false when cuDNN is not there or does not take it.
  bool forward(const ops::Attention& op, Scratch& scratch, cudaStream_t stream);
  bool backward(const ops::AttentionBackward& op, Scratch& scratch, cudaStream_t stream);

 private:
  struct Library;
  struct Plan;
  /// What a plan depends on: whether it is a gradient, sequences, their length, heads, window,
  /// statistics wanted, scale.
  using Key = std::tuple<bool, int64_t, int64_t, int, int, int, int, int, int64_t, bool, double>;

  bool available();
  Plan* plan_for(const Key& key);

  std::string description_;
  std::unique_ptr<Library> library_;
  bool tried_ = false;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

/// to[b, g, s, i, t] = from[(b · inner_sequences + s) · length + t, g · inner_heads + i]:
/// statistics [N, H] in the order in which cuDNN reads parts of the sequences and heads.
void arrange_statistics(const float* from, int64_t sequences, int64_t inner_sequences,
                        int64_t length, int64_t heads, int64_t inner_heads, float* to,
                        cudaStream_t stream);

}  // namespace mixtral::cuda
