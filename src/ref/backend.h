#pragma once

#include "ops/host_backend.h"

namespace mixtral::ref {

/// The oracle: every op as scalar loops that read like its formula, computed in f64 whatever the
/// tensors' types (results are rounded once, when they are stored). One thread, no tricks. The
/// other backends are checked against it, and it is checked by finite differences.
class RefBackend : public HostBackend {
 public:
  std::string name() const override { return "ref"; }
  std::string description() const override { return "reference: scalar loops, one thread"; }
  DeviceKind kind() const override { return DeviceKind::reference; }

  void run(const ops::GroupedMatmul&) override;
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
};

}  // namespace mixtral::ref
