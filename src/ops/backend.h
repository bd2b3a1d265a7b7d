#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ops/adapters.h"
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

/// A point in the order of a device's work, for which copies beside that work can wait.
class Fence {
 public:
  virtual ~Fence() = default;
  /// Moves it behind all work that was issued so far. A call of its backend. What fails shows at
  /// the backend's next call.
  virtual void set() noexcept = 0;
};

/// Copies between a device and ordinary memory that run beside the device's work. A lane has one
/// user at a time, whatever others do with its backend meanwhile; it goes before the backend.
class CopyLane {
 public:
  virtual ~CopyLane() = default;
  /// Copies once the work before `after` is done. Returns when the bytes are there for work that is
  /// issued from then on. They cross at full speed where the host's pages are locked.
  virtual void to_device(const void* host, void* device, int64_t bytes, const Fence& after) = 0;
  virtual void to_host(const void* device, void* host, int64_t bytes, const Fence& after) = 0;
};

/// Keeps pages of ordinary memory where they are, as long as it lives.
class LockedPages {
 public:
  virtual ~LockedPages() = default;
};

enum class DeviceKind : uint8_t { reference, cpu, gpu };

/// A device: its memory, and every op. Work is issued in order and may complete later; copies to
/// the host and `synchronize` wait for it.
///
/// Threads: any thread may call a backend, its Programs and its Buffers, but only one at a time.
/// The order of the calls is the order of the work. Different threads may use different backends at
/// the same time, and one thread several in turn, even where they are of one device: none depends
/// on which backend a thread called last. (A GPU's backend makes its device the thread's current
/// one whenever it is called.)
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
  virtual DeviceKind kind() const = 0;
  virtual MemoryInfo memory() const = 0;

  /// Elements of an intermediate that is made a slice at a time (the logits of a loss): enough to
  /// keep the device busy, few enough to be small beside everything else.
  virtual int64_t slice_elements() const { return int64_t{1} << 23; }

  /// Tokens of a page of the key-value cache that suit the device, a power of two: few, so that
  /// little of a sequence's last page is unused; enough for long reads.
  virtual int64_t page_tokens() const { return 16; }
  /// Tokens of prompts that an engine's step reads at most: enough to keep the device busy, few
  /// enough that the sequences beside them are not held up for long.
  virtual int64_t prompt_tokens() const { return 256; }
  /// The same of a step in which no sequence decodes, so that nobody is held up.
  virtual int64_t lone_prompt_tokens() const { return prompt_tokens(); }
  /// Chooses kernels by which a row's results do not depend on the rows beside it: the same bits
  /// for a token in a prompt and decoded, alone and among others. CPUs always compute so; elsewhere
  /// it costs time. For the products, attention over the cache and all else that generation runs.
  virtual void set_batch_invariant(bool) {}
  /// Whether weights of a format can be packed and unpacked here (Quantize, Dequantize).
  virtual bool has_format(ops::WeightFormat) const { return true; }
  /// Whether run(op) takes the op's weight as it is: its format and layout, with so many rows.
  /// Dense weights in plain rows are always taken.
  virtual bool computes_directly(const ops::GroupedMatmul& op) const { return op.weight.dense(); }
  virtual bool computes_directly(const ops::GroupedMatmulInput& op) const {
    return op.weight.dense();
  }
  virtual bool computes_directly(const ops::GroupedMatmulSwiGlu& op) const {
    return computes_directly(op.product());
  }
  /// The layout in which its kernels want a weight of this format and shape [G, O, I].
  virtual ops::WeightLayout preferred_layout(ops::WeightFormat, const Shape&) const {
    return ops::WeightLayout::rows;
  }
  /// Brings a weight of the device's memory into another layout, in its place; false where that has
  /// to be done in the host's memory.
  virtual bool change_layout(const ops::Weight&, ops::WeightLayout) { return false; }
  /// Bytes of intermediate results that the op needs here beside its operands, where they are many
  /// enough to be planned. Reads the op's shapes alone.
  virtual int64_t scratch_bytes(const ops::AttentionBackward&) const { return 0; }

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

  /// Behind no work yet.
  virtual std::unique_ptr<Fence> make_fence();
  virtual std::unique_ptr<CopyLane> make_copy_lane();
  /// Makes whole pages of ordinary memory fit for a lane's full speed; null where no lane gains by
  /// it. They must have been written to. Throws Error where the system does not lock so many.
  virtual std::unique_ptr<LockedPages> lock_pages(void* /*data*/, int64_t /*bytes*/) {
    return nullptr;
  }

  /// Notes the moment at which the work issued so far is done, and returns its number. In a
  /// recording, each replay notes it anew. For profiles.
  virtual int64_t stamp();
  /// Seconds from one noted moment to another. Waits for both.
  virtual double seconds_between(int64_t from, int64_t to);
  /// Numbers begin at 0 again. Recordings with stamps must not be replayed any more.
  virtual void forget_stamps();

  /// Runs `work` once and keeps it for replay: a CUDA graph there, a plain call elsewhere.
  virtual std::unique_ptr<Program> record(std::function<void()> work);

  virtual void run(const ops::GroupedMatmul&) = 0;
  /// Several products of the same x, rows and offsets, one after another or at the same time.
  virtual void run_all(std::span<const ops::GroupedMatmul> products) {
    for (const ops::GroupedMatmul& product : products) run(product);
  }
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
  virtual void run(const ops::SortByAdapter&) = 0;
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

 private:
  std::vector<std::chrono::steady_clock::time_point> stamps_;
};

}  // namespace mixtral
