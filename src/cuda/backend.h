#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cuda/fixed_rows.h"
#include "cuda_plan/attention_part.h"
#include "cuda_plan/figures.h"
#include "ops/backend.h"

struct CUstream_st;

namespace mixtral::cuda {

class CublasLt;
class CudnnAttention;
class Scratch;
class SideCopies;
class Staging;
class Stamps;

/// GPUs that this backend can use (compute capability 9.0), 0 when there is no driver.
int device_count();

/// Opens the index-th of them. Throws Error that says what is missing: a driver, a GPU, a GPU of
/// this architecture, or that many of them.
std::unique_ptr<Backend> make_backend(int index);

/// A Hopper GPU. Ops are launches on one stream, without allocation or host synchronisation once
/// their scratch memory and plans exist; sums have a fixed order, so the same inputs give the same
/// bits on the same card. Activations are f32 or bf16.
class CudaBackend final : public Backend {
 public:
  /// `device` is CUDA's ordinal of the GPU, `index` its number in this program's device names.
  CudaBackend(int device, int index);
  ~CudaBackend() override;

  std::string name() const override;
  std::string description() const override;
  DeviceKind kind() const override { return DeviceKind::gpu; }
  MemoryInfo memory() const override;
  int64_t slice_elements() const override { return cuda_plan::kSliceElements; }
  int64_t page_tokens() const override { return cuda_plan::kPageTokens; }
  int64_t prompt_tokens() const override { return cuda_plan::kPromptTokens; }
  int64_t lone_prompt_tokens() const override { return cuda_plan::kLonePromptTokens; }
  void set_batch_invariant(bool on) override { batch_invariant_ = on; }
  bool has_format(ops::WeightFormat format) const override;
  ops::WeightLayout preferred_layout(ops::WeightFormat format, const Shape& shape) const override;
  bool change_layout(const ops::Weight& weight, ops::WeightLayout layout) override;
  using Backend::computes_directly;
  bool computes_directly(const ops::GroupedMatmul& op) const override;
  int64_t scratch_bytes(const ops::AttentionBackward& op) const override {
    return cuda_plan::scratch_bytes(op);
  }
  void* allocate(int64_t bytes) override;
  void free(void* data, int64_t bytes) noexcept override;
  void upload(const Tensor& host, const Tensor& device) override;
  void download(const Tensor& device, const Tensor& host) override;
  void synchronize() override;
  bool runs_behind() const override { return true; }
  void upload_ahead(const Tensor& host, const Tensor& device) override;
  void mark() override;
  void download_marked(const Tensor& device, const Tensor& host) override;
  std::unique_ptr<Fence> make_fence() override;
  std::unique_ptr<CopyLane> make_copy_lane() override;
  std::unique_ptr<LockedPages> lock_pages(void* data, int64_t bytes) override;
  int64_t stamp() override;
  double seconds_between(int64_t from, int64_t to) override;
  void forget_stamps() override;
  std::unique_ptr<Program> record(std::function<void()> work) override;

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
  void run(const ops::GroupedMatmulSwiGlu&) override;
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
  /// Ops that wait for the next ones, which may be computed with them in one launch (norm_few.h,
  /// rope.h). Each reads what the one before it writes.
  struct Waiting {
    std::optional<ops::CombineRows> combine;
    std::optional<ops::RmsNorm> norm;
    std::optional<ops::GroupedMatmul> router;
    std::optional<ops::Route> route;
    std::optional<ops::Rope> rope;
    std::optional<FixedRows> fixed;  // which norm fills, too
  };

  /// Makes this GPU the calling thread's current device.
  void make_current() const;
  /// Does that, and launches what waits. Every call from
  /// outside begins so, but those of ops that join what waits.
  void use_device() const;
  /// Launches what waits, and with it the gathering of one token's rows.
  void launch_waiting(const ops::GatherRows* gather = nullptr) const;
  /// How the last kernel of a call was launched.
  enum class Launch : uint8_t {
    plain,
    chained,  // with `chain` (chain.cuh); it writes neither weights nor a router's offsets
    product,  // as chained, by stream_product: the next kernel begins only when all kernels in
              // front of the product have ended
    append,   // as chained, behind a product: tokens of a cache
  };
  void chained(Launch how = Launch::chained) { last_ = how; }
  bool settled() const { return behind_ != Launch::plain; }  // see stream_product
  /// The scratch memory, for an op that begins.
  Scratch& scratch();

  int device_ = 0, index_ = 0;
  int processors_ = 0;  // streaming multiprocessors
  int64_t opened_ = 0;
  std::string description_;
  CUstream_st* stream_ = nullptr;
  bool recording_ = false;
  bool batch_invariant_ = false;
  mutable Waiting waiting_;
  mutable Launch last_ = Launch::plain;    // of this call
  mutable Launch behind_ = Launch::plain;  // of what is in front of this call
  // The positions and keys of a CacheAppend, while last_ or behind_ tells of it.
  const void *appended_positions_ = nullptr, *appended_keys_ = nullptr;
  std::unique_ptr<Scratch> scratch_;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<SideCopies> side_copies_;
  std::unique_ptr<Stamps> stamps_;
  std::unique_ptr<CublasLt> blas_;
  std::unique_ptr<CudnnAttention> cudnn_;
};

}  // namespace mixtral::cuda
