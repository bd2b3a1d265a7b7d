#include "ops/backend.h"

#include <cstring>
#include <utility>

namespace mixtral {
namespace {

class CallAgain : public Program {
 public:
  explicit CallAgain(std::function<void()> work) : work_(std::move(work)) {}
  void replay() override { work_(); }

 private:
  std::function<void()> work_;
};

/// Where work is done when run() returns, there is nothing to wait for.
class NoFence : public Fence {
 public:
  void set() noexcept override {}
};

class PlainLane : public CopyLane {
 public:
  void to_device(const void* host, void* device, int64_t bytes, const Fence&) override {
    std::memcpy(device, host, static_cast<size_t>(bytes));
  }
  void to_host(const void* device, void* host, int64_t bytes, const Fence&) override {
    std::memcpy(host, device, static_cast<size_t>(bytes));
  }
};

}  // namespace

std::unique_ptr<Fence> Backend::make_fence() { return std::make_unique<NoFence>(); }

std::unique_ptr<CopyLane> Backend::make_copy_lane() { return std::make_unique<PlainLane>(); }

int64_t Backend::stamp() {
  synchronize();
  stamps_.push_back(std::chrono::steady_clock::now());
  return static_cast<int64_t>(stamps_.size()) - 1;
}

double Backend::seconds_between(int64_t from, int64_t to) {
  const auto at = [&](int64_t number) { return stamps_.at(static_cast<size_t>(number)); };
  return std::chrono::duration<double>(at(to) - at(from)).count();
}

void Backend::forget_stamps() { stamps_.clear(); }

std::unique_ptr<Program> Backend::record(std::function<void()> work) {
  work();
  return std::make_unique<CallAgain>(std::move(work));
}

}  // namespace mixtral
