#pragma once

#include <memory>
#include <string>

#include "ops/backend.h"

namespace mixtral {

/// A backend that computes nothing and whose memory is never touched. Addresses are reserved
/// without access, so a model of terabytes can be "allocated" anywhere; reading one is a defect and
/// ends the program. Running a step on it measures exactly what the step would allocate.
class PlanningBackend final : public Backend {
 public:
  /// What is planned for, where that device is not here.
  struct Device {
    std::string name = "planning";
    DeviceKind kind = DeviceKind::cpu;
    MemoryInfo memory = {};
    int64_t slice_elements = int64_t{1} << 23;
    int64_t page_tokens = 16;
    int64_t prompt_tokens = 256, lone_prompt_tokens = 256;
  };

  /// Answers as `like`, which must outlive it; without, as a processor with this machine's memory.
  explicit PlanningBackend(const Backend* like = nullptr);
  explicit PlanningBackend(Device device);

  int64_t allocated() const { return allocated_; }  // bytes held now
  int64_t peak() const { return peak_; }            // the most that were held at once

  void* allocate(int64_t bytes) override;
  void free(void* data, int64_t bytes) noexcept override;
  std::string name() const override { return device_.name; }
  std::string description() const override { return "planning: computes nothing"; }
  DeviceKind kind() const override { return device_.kind; }
  MemoryInfo memory() const override { return device_.memory; }
  int64_t slice_elements() const override { return device_.slice_elements; }
  int64_t page_tokens() const override { return device_.page_tokens; }
  int64_t prompt_tokens() const override { return device_.prompt_tokens; }
  int64_t lone_prompt_tokens() const override { return device_.lone_prompt_tokens; }
  bool has_format(ops::WeightFormat format) const override {
    return !like_ || like_->has_format(format);
  }
  bool computes_directly(const ops::GroupedMatmul& op) const override { return direct(op); }
  bool computes_directly(const ops::GroupedMatmulInput& op) const override { return direct(op); }
  bool computes_directly(const ops::GroupedMatmulSwiGlu& op) const override { return direct(op); }
  int64_t scratch_bytes(const ops::AttentionBackward&) const override;
  void upload(const Tensor&, const Tensor&) override {}
  void download(const Tensor& device, const Tensor& host) override;  // zeros
  void synchronize() override {}

  void run(const ops::GroupedMatmul&) override {}
  void run(const ops::GroupedMatmulInput&) override {}
  void run(const ops::GroupedMatmulWeight&) override {}
  void run(const ops::RmsNorm&) override {}
  void run(const ops::RmsNormBackward&) override {}
  void run(const ops::Rope&) override {}
  void run(const ops::Attention&) override {}
  void run(const ops::AttentionBackward&) override {}
  void run(const ops::CacheAppend&) override {}
  void run(const ops::CopyPage&) override {}
  void run(const ops::CachedAttention&) override {}
  void run(const ops::Route&) override {}
  void run(const ops::RouteBackward&) override {}
  void run(const ops::RouterStatistics&) override {}
  void run(const ops::BalanceLoss&) override {}
  void run(const ops::GatherRows&) override {}
  void run(const ops::CombineRows&) override {}
  void run(const ops::SwiGlu&) override {}
  void run(const ops::SwiGluBackward&) override {}
  void run(const ops::GroupedMatmulSwiGlu&) override {}
  void run(const ops::SortByAdapter&) override {}
  void run(const ops::Embedding&) override {}
  void run(const ops::EmbeddingBackward&) override {}
  void run(const ops::CrossEntropy&) override {}
  void run(const ops::SegmentSum&) override {}
  void run(const ops::Sample&) override {}
  void run(const ops::Advance&) override {}
  void run(const ops::SquaredNorm&) override {}
  void run(const ops::AdamW&) override {}
  void run(const ops::Fill&) override {}
  void run(const ops::Convert&) override {}
  void run(const ops::AddScaled&) override {}
  void run(const ops::RandomNormal&) override {}
  void run(const ops::Dropout&) override {}
  void run(const ops::Quantize&) override {}
  void run(const ops::Dequantize&) override {}

 private:
  /// What the device answers once the weight is in the layout that it prefers.
  template <class Op>
  bool direct(Op op) const {
    if (!like_) return Backend::computes_directly(op);
    op.weight.layout = like_->preferred_layout(op.weight.format, op.weight.shape);
    return like_->computes_directly(op);
  }

  const Backend* like_ = nullptr;
  Device device_;
  int64_t allocated_ = 0;
  int64_t peak_ = 0;
};

}  // namespace mixtral
