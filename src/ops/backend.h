#pragma once

#include <functional>
#include <memory>
#include <string>

#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/kv_view.h"
#include "ops/matmul.h"
#include "ops/moe.h"
#include "ops/norm.h"
#include "ops/optim.h"
#include "ops/quantize.h"
#include "ops/vocab.h"
#include "tensor/buffer.h"

namespace mixtral {

/// A recorded piece of work that can be done again on the same addresses.
class Program {
 public:
  virtual ~Program() = default;
  virtual void replay() = 0;
};

/// Backend::slice_elements and Backend::page_tokens of a GPU.
inline constexpr int64_t kGpuSliceElements = int64_t{1} << 26;
inline constexpr int64_t kGpuPageTokens = 64;

/// A device: its memory, and every op. Work is issued in order and may complete later; copies to
/// the host and `synchronize` wait for it. One thread at a time may use a backend.
class Backend : public Allocator {
 public:
  struct MemoryInfo {
    int64_t total = 0;      // bytes of the device
    int64_t available = 0;  // bytes that this process could still allocate
    int64_t scratch = 0;    // bytes that ops hold for their intermediate results
    int64_t opened = 0;     // a GPU's: bytes that were in use as soon as it was opened
  };

  virtual std::string name() const = 0;         // "cpu", "ref", "cuda:0"
  virtual std::string description() const = 0;  // the processor, its threads and instruction sets
  virtual MemoryInfo memory() const = 0;

  /// Elements of an intermediate that is made a slice at a time (the logits of a loss): enough to
  /// keep the device busy, few enough to be small beside everything else.
  virtual int64_t slice_elements() const { return int64_t{1} << 23; }

  /// Tokens of a page of the key-value cache that suit the device, a power of two: few, so that
  /// little of a sequence's last page is unused; enough for long reads.
  virtual int64_t page_tokens() const { return 16; }

  /// Copies between a tensor here and one in ordinary memory, of the same type and element count.
  virtual void upload(const Tensor& host, const Tensor& device) = 0;
  virtual void download(const Tensor& device, const Tensor& host) = 0;
  virtual void synchronize() = 0;

  /// Whether work may still be under way when run() has returned.
  virtual bool runs_behind() const { return false; }
  /// As upload: later work sees the bytes, work issued so far does not. But the transfer need not
  /// wait for that work; only a copy on the device does. For what is small beside a device's
  /// memory.
  virtual void upload_ahead(const Tensor& host, const Tensor& device) { upload(host, device); }
  /// Marks this point in the order of work. download_marked copies what was written before the last
  /// mark, and waits for no work issued since, which must not write there.
  virtual void mark() {}
  virtual void download_marked(const Tensor& device, const Tensor& host) { download(device, host); }

  /// Runs `work` once and keeps it for replay: a CUDA graph there, a plain call elsewhere.
  virtual std::unique_ptr<Program> record(std::function<void()> work);

  virtual void run(const ops::GroupedMatmul&) = 0;
  virtual void run(const ops::GroupedMatmulInput&) = 0;
  virtual void run(const ops::GroupedMatmulWeight&) = 0;
  virtual void run(const ops::RmsNorm&) = 0;
  virtual void run(const ops::RmsNormBackward&) = 0;
  virtual void run(const ops::Rope&) = 0;
  virtual void run(const ops::Attention&) = 0;
  virtual void run(const ops::AttentionBackward&) = 0;
  virtual void run(const ops::CacheAppend&) = 0;
  virtual void run(const ops::CopyPage&) = 0;
  virtual void run(const ops::CachedAttention&) = 0;
  virtual void run(const ops::Route&) = 0;
  virtual void run(const ops::RouteBackward&) = 0;
  virtual void run(const ops::RouterStatistics&) = 0;
  virtual void run(const ops::BalanceLoss&) = 0;
  virtual void run(const ops::GatherRows&) = 0;
  virtual void run(const ops::CombineRows&) = 0;
  virtual void run(const ops::SwiGlu&) = 0;
  virtual void run(const ops::SwiGluBackward&) = 0;
  virtual void run(const ops::GroupedMatmulSwiGlu&) = 0;
  virtual void run(const ops::Embedding&) = 0;
  virtual void run(const ops::EmbeddingBackward&) = 0;
  virtual void run(const ops::CrossEntropy&) = 0;
  virtual void run(const ops::SegmentSum&) = 0;
  virtual void run(const ops::Sample&) = 0;
  virtual void run(const ops::Advance&) = 0;
  virtual void run(const ops::SquaredNorm&) = 0;
  virtual void run(const ops::AdamW&) = 0;
  virtual void run(const ops::Fill&) = 0;
  virtual void run(const ops::Convert&) = 0;
  virtual void run(const ops::AddScaled&) = 0;
  virtual void run(const ops::RandomNormal&) = 0;
  virtual void run(const ops::Dropout&) = 0;
  virtual void run(const ops::Quantize&) = 0;
  virtual void run(const ops::Dequantize&) = 0;
};

}  // namespace mixtral
