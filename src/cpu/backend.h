#pragma once

#include <span>
#include <vector>

#include "base/threads.h"
#include "cpu/expected_weights.h"
#include "cpu/integer_matmul.h"
#include "cpu/matmul.h"
#include "cpu/scratch.h"
#include "ops/host_backend.h"

namespace mixtral::cpu {

/// The processor: threads and SIMD kernels, chosen at run time for the instruction sets it has. The
/// same inputs give the same bits with any number of threads and any batch around a row.
class CpuBackend final : public HostBackend {
 public:
  explicit CpuBackend(int threads = 0)
      : expected_(threads > 0 ? threads : available_cores()),
        pool_(expected_.threads(), [this](int thread) { expected_.fetch(thread); }) {}
  std::string name() const override { return "cpu"; }
  std::string description() const override;  // "AMD EPYC, 2 threads, AVX3_ZEN4"
  DeviceKind kind() const override { return DeviceKind::cpu; }
  using Backend::computes_directly;
  bool computes_directly(const ops::GroupedMatmul& op) const override;
  ops::WeightLayout preferred_layout(ops::WeightFormat format, const Shape& shape) const override;

  void run(const ops::GroupedMatmul&) override;
  void run_all(std::span<const ops::GroupedMatmul> products) override;
  void run(const ops::GroupedMatmulInput&) override;
  void run(const ops::GroupedMatmulWeight&) override;
  void run(const ops::RmsNorm&) override;
  void run(const ops::RmsNormBackward&) override;
  void run(const ops::Rope&) override;
  void run(const ops::Attention&) override;
  void run(const ops::AttentionBackward&) override;
  void run(const ops::CacheAppend&) override;
  void run(const ops::CopyPage&) override;
  void run(const ops::CachedAttention&) override;
  void run(const ops::Route&) override;
  void run(const ops::RouteBackward&) override;
  void run(const ops::RouterStatistics&) override;
  void run(const ops::BalanceLoss&) override;
  void run(const ops::GatherRows&) override;
  void run(const ops::CombineRows&) override;
  void run(const ops::SwiGlu&) override;
  void run(const ops::SwiGluBackward&) override;
  void run(const ops::GroupedMatmulSwiGlu& op) override {
    run(op.product());
    run(op.activation());
  }
  void run(const ops::SortByAdapter&) override;
  void run(const ops::Embedding&) override;
  void run(const ops::EmbeddingBackward&) override;
  void run(const ops::CrossEntropy&) override;
  void run(const ops::SegmentSum&) override;
  void run(const ops::Sample&) override;
  void run(const ops::Advance&) override;
  void run(const ops::SquaredNorm&) override;
  void run(const ops::AdamW&) override;
  void run(const ops::Fill&) override;
  void run(const ops::Convert&) override;
  void run(const ops::AddScaled&) override;
  void run(const ops::RandomNormal&) override;
  void run(const ops::Dropout&) override;
  void run(const ops::Quantize&) override;
  void run(const ops::Dequantize&) override;

 private:
  /// Part of a group's product: some rows, and the bundles [begin, end) of outputs.
  struct IntegerItem {
    size_t product;
    int64_t group, row, rows, begin, end;
  };
  /// Several products of one x: all of one group, or one alone.
  void multiply_integers(std::span<const ops::GroupedMatmul> products);

  ExpectedWeights expected_;
  ThreadPool pool_;
  Scratch scratch_{pool_.size()};
  Scratch shared_{1};  // one block for all threads of an op
  Products products_{pool_, scratch_};
  std::vector<IntegerItem> integer_items_;
  std::vector<ExpectedWeights::Place> places_;
  // The best that the processor has; null: none. Asking it takes a virtual machine microseconds.
  const IntegerKernels* const integer_kernels_ = integer_kernels();
  const IntegerKernels* const narrow_integer_kernels_ = narrow_integer_kernels();
};

}  // namespace mixtral::cpu
