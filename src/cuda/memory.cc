#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/advice.h"
#include "base/error.h"
#include "cuda/scratch.h"
#include "cuda/staging.h"
#include "cuda/status.h"

namespace mixtral::cuda {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kLeastBlock = int64_t{8} << 20;

}  // namespace

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw Error(fmt::format("{}: CUDA failed: {} ({})", what, cudaGetErrorString(status),
                          cudaGetErrorName(status)));
}

Scratch::~Scratch() {
  for (const Block& block : blocks_) cudaFree(block.data);
}

int64_t Scratch::bytes() const {
  int64_t sum = 0;
  for (const Block& block : blocks_) sum += block.bytes;
  return sum;
}

void Scratch::begin() {
  offset_ = taken_ = 0;
  if (recording_ || blocks_.size() <= recorded_ + 1) return;
  // cudaFree waits for all work of the device, so no kernel still uses them.
  for (size_t i = recorded_; i + 1 < blocks_.size(); ++i) cudaFree(blocks_[i].data);
  blocks_.erase(blocks_.begin() + static_cast<int64_t>(recorded_), blocks_.end() - 1);
}

void* Scratch::take_bytes(int64_t bytes) {
  bytes = (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  taken_ += bytes;
  if (blocks_.empty() || offset_ + bytes > blocks_.back().bytes) {
    const int64_t size = std::max(taken_, kLeastBlock);
    void* data = nullptr;
    if (cudaMalloc(&data, static_cast<size_t>(size)) != cudaSuccess) {
      cudaGetLastError();
      throw AdvisedError(fmt::format(
          "out of GPU memory: {} bytes were asked for to hold intermediate results; use a smaller "
          "‹batch-size› or ‹context›",
          size));
    }
    blocks_.push_back({data, size});
    offset_ = 0;
  }
  void* data = static_cast<char*>(blocks_.back().data) + offset_;
  offset_ += bytes;
  return data;
}

Staging::~Staging() {
  for (Slot& slot : slots_) {
    if (slot.done) cudaEventDestroy(slot.done);
    if (slot.data) cudaFreeHost(slot.data);
  }
}

void Staging::create() {
  for (Slot& slot : slots_) {
    void* data = nullptr;
    check_cuda(cudaMallocHost(&data, static_cast<size_t>(kSlotBytes)), "page-locked memory");
    slot.data = static_cast<char*>(data);
    check_cuda(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming), "an event");
  }
}

void Staging::wait(Slot& slot) {
  check_cuda(cudaEventSynchronize(slot.done), "a copy");
  slot.used = 0;
}

Staging::Slot& Staging::next() {
  current_ = (current_ + 1) % kSlots;
  wait(slots_[static_cast<size_t>(current_)]);
  return slots_[static_cast<size_t>(current_)];
}

void Staging::upload(const void* host, void* device, int64_t bytes, cudaStream_t stream) {
  if (!slots_[0].data) create();
  const auto* from = static_cast<const char*>(host);
  auto* to = static_cast<char*>(device);
  while (bytes > 0) {
    Slot* slot = &slots_[static_cast<size_t>(current_)];
    if (slot->used + std::min(bytes, kSlotBytes) > kSlotBytes) slot = &next();
    const int64_t count = std::min(bytes, kSlotBytes - slot->used);
    const auto size = static_cast<size_t>(count);
    std::memcpy(slot->data + slot->used, from, size);
    check_cuda(cudaMemcpyAsync(to, slot->data + slot->used, size, cudaMemcpyHostToDevice, stream),
               "a copy to the device");
    check_cuda(cudaEventRecord(slot->done, stream), "a copy to the device");
    slot->used += (count + 15) / 16 * 16;
    from += count;
    to += count;
    bytes -= count;
  }
}

void Staging::download(const void* device, void* host, int64_t bytes, cudaStream_t stream) {
  if (!slots_[0].data) create();
  const auto* from = static_cast<const char*>(device);
  auto* to = static_cast<char*>(host);
  // One transfer runs ahead of the copy out of the slot before it.
  Slot* arriving = nullptr;
  char* arrived_to = nullptr;
  int64_t arriving_bytes = 0;
  const auto finish = [&] {
    if (!arriving) return;
    check_cuda(cudaEventSynchronize(arriving->done), "a copy from the device");
    std::memcpy(arrived_to, arriving->data, static_cast<size_t>(arriving_bytes));
    arriving->used = 0;
  };
  while (bytes > 0) {
    Slot& slot = next();
    const int64_t count = std::min(bytes, kSlotBytes);
    check_cuda(cudaMemcpyAsync(slot.data, from, static_cast<size_t>(count), cudaMemcpyDeviceToHost,
                               stream),
               "a copy from the device");
    check_cuda(cudaEventRecord(slot.done, stream), "a copy from the device");
    slot.used = kSlotBytes;
    finish();
    arriving = &slot;
    arrived_to = to;
    arriving_bytes = count;
    from += count;
    to += count;
    bytes -= count;
  }
  finish();
}

SideCopies::SideCopies() {
  check_cuda(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "a stream");
  check_cuda(cudaEventCreateWithFlags(&mark_, cudaEventDisableTiming), "an event");
  for (Slot& slot : slots_) {
    check_cuda(cudaEventCreateWithFlags(&slot.arrived, cudaEventDisableTiming), "an event");
    check_cuda(cudaEventCreateWithFlags(&slot.placed, cudaEventDisableTiming), "an event");
  }
}

SideCopies::~SideCopies() {
  cudaStreamSynchronize(copies_);
  for (Slot& slot : slots_) {
    cudaEventDestroy(slot.arrived);
    cudaEventDestroy(slot.placed);
    if (slot.data) cudaFreeHost(slot.data);
    if (slot.landing) cudaFree(slot.landing);
  }
  if (arriving_) cudaFreeHost(arriving_);
  cudaEventDestroy(mark_);
  cudaStreamDestroy(copies_);
}

void SideCopies::grow(Slot& slot, int64_t bytes) {
  // Nothing uses the slot now: its last copy was waited for.
  if (slot.data) cudaFreeHost(slot.data);
  if (slot.landing) cudaFree(slot.landing);
  slot = {.arrived = slot.arrived, .placed = slot.placed};
  bytes = (bytes + bytes / 2 + kAlignment - 1) / kAlignment * kAlignment;
  void *data = nullptr, *landing = nullptr;
  check_cuda(cudaMallocHost(&data, static_cast<size_t>(bytes)), "page-locked memory");
  slot.data = static_cast<char*>(data);
  check_cuda(cudaMalloc(&landing, static_cast<size_t>(bytes)), "an allocation");
  slot.landing = static_cast<char*>(landing);
  slot.bytes = bytes;
}

void SideCopies::upload(const void* host, void* device, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  Slot& slot = slots_[static_cast<size_t>(next_)];
  next_ = (next_ + 1) % kSlots;
  check_cuda(cudaEventSynchronize(slot.placed), "a copy to the device");
  if (slot.bytes < bytes) grow(slot, bytes);
  const auto size = static_cast<size_t>(bytes);
  std::memcpy(slot.data, host, size);
  check_cuda(cudaMemcpyAsync(slot.landing, slot.data, size, cudaMemcpyHostToDevice, copies_),
             "a copy to the device");
  check_cuda(cudaEventRecord(slot.arrived, copies_), "a copy to the device");
  check_cuda(cudaStreamWaitEvent(stream, slot.arrived, 0), "a copy to the device");
  check_cuda(cudaMemcpyAsync(device, slot.landing, size, cudaMemcpyDeviceToDevice, stream),
             "a copy to the device");
  check_cuda(cudaEventRecord(slot.placed, stream), "a copy to the device");
}

void SideCopies::mark(cudaStream_t stream) {
  check_cuda(cudaEventRecord(mark_, stream), "an event");
  marked_ = true;
}

void SideCopies::download(const void* device, void* host, int64_t bytes) {
  if (!arriving_) {
    void* data = nullptr;
    check_cuda(cudaMallocHost(&data, static_cast<size_t>(kArrivingBytes)), "page-locked memory");
    arriving_ = static_cast<char*>(data);
  }
  check_cuda(cudaStreamWaitEvent(copies_, mark_, 0), "a copy from the device");
  const auto* from = static_cast<const char*>(device);
  auto* to = static_cast<char*>(host);
  while (bytes > 0) {
    const int64_t count = std::min(bytes, kArrivingBytes);
    const auto size = static_cast<size_t>(count);
    check_cuda(cudaMemcpyAsync(arriving_, from, size, cudaMemcpyDeviceToHost, copies_),
               "a copy from the device");
    check_cuda(cudaStreamSynchronize(copies_), "a copy from the device");
    std::memcpy(to, arriving_, size);
    from += count;
    to += count;
    bytes -= count;
  }
}

}  // namespace mixtral::cuda
