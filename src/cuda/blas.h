#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <tuple>

#include "cuda/product.h"

namespace mixtral::cuda {

/// Dense products by cuBLASLt, which is loaded at run time. A plan (descriptors and algorithm) is
/// made once for each shape, type and alignment. Algorithms whose sums depend on the order of
/// atomic additions are excluded.
class CublasLt {
 public:
  /// What every product takes from the scratch memory.
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

  /// Throws Error when the library is not installed.
  CublasLt();
  ~CublasLt();

  /// Computes a product of one group whose operands are both bf16, or all f32. False when cuBLASLt
  /// has no algorithm for it.
  bool multiply(const Product& product, Scratch& scratch, cudaStream_t stream);

 private:
  struct Functions;
  struct Plan;
  using Key = std::tuple<Product::Form, Dtype, Dtype, int64_t, int64_t, int64_t, int64_t, int64_t>;

  Plan& plan_for(const Product& product);

  std::unique_ptr<Functions> functions_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace mixtral::cuda
