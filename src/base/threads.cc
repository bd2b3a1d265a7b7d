#include "base/threads.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <utility>

#include "base/advice.h"
#include "base/error.h"

namespace mixtral {
namespace {

constexpr int kSpins = 20000;  // some hundred microseconds of pauses
constexpr int kMostThreads = 1024;
constexpr int kItemBits = 32;
constexpr uint64_t kItemMask = (uint64_t{1} << kItemBits) - 1;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int read_topology(int cpu, const char* name) {
  std::ifstream in("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/" + name);
  int value = -1;
  in >> value;
  return value;
}

}  // namespace

int available_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) != 0)
    return std::max(1u, std::thread::hardware_concurrency());
  std::set<std::pair<int, int>> cores;  // hyper-threads share one (package, core) pair
  int unknown = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    const int core = read_topology(cpu, "core_id");
    if (core < 0)
      ++unknown;
    else
      cores.emplace(read_topology(cpu, "physical_package_id"), core);
  }
  return std::max(1, static_cast<int>(cores.size()) + unknown);
}

ThreadPool::ThreadPool(int threads, std::function<void(int thread)> idle) : idle_(std::move(idle)) {
  if (threads <= 0) threads = available_cores();
  if (threads > kMostThreads)
    throw AdvisedUsageError("‹threads›: expected at most " + std::to_string(kMostThreads) +
                            ", found " + std::to_string(threads));
  workers_.reserve(static_cast<size_t>(threads - 1));
  for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::wait_a_moment(int thread) {
  if (idle_) idle_(thread);
  pause();
}

void ThreadPool::run_item(int64_t item, int thread) {
  if (!failed_.load(std::memory_order_relaxed)) {
    try {
      (*body_.load(std::memory_order_relaxed))(item, thread);
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
      failed_.store(true, std::memory_order_relaxed);
    }
  }
  done_.fetch_add(1, std::memory_order_release);
}

void ThreadPool::take_items(int thread) {
  while (true) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    const int64_t count = count_.load(std::memory_order_acquire);
    if (count == 0) {  // for_each is between its stores
      pause();
      continue;
    }
    if (static_cast<int64_t>(ticket & kItemMask) >= count) return;
    // If it succeeds, no other loop has begun: count_ and body_ are this ticket's, and stay until
    // the item is done.
    if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel))
      run_item(static_cast<int64_t>(ticket & kItemMask), thread);
  }
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;  // the loop that this thread knows has nothing left
  auto news = [&] { return (ticket_.load() >> kItemBits) != seen; };
  while (!stop_.load(std::memory_order_acquire)) {
    for (int spin = 0; spin < kSpins && !news() && !stop_; ++spin) wait_a_moment(thread);
    if (!news()) {
      std::unique_lock lock(mutex_);
      sleeping_.fetch_add(1);
      wake_.wait(lock, [&] { return news() || stop_; });
      sleeping_.fetch_sub(1);
    }
    if (stop_) return;
    seen = ticket_.load(std::memory_order_acquire) >> kItemBits;
    take_items(thread);
  }
}

void ThreadPool::for_each(int64_t count, const std::function<void(int64_t, int)>& body) {
  if (count <= 0) return;
  if (workers_.empty() || count == 1) {
    for (int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
  CHECK(count <= static_cast<int64_t>(kItemMask));
  // While count_ is 0 nobody takes items: those of the old loop are gone, the new one is not ready.
  count_.store(0, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  const uint64_t loop = (ticket_.load(std::memory_order_relaxed) >> kItemBits) + 1;
  ticket_.store(loop << kItemBits);  // sequentially consistent with sleeping_, which is read below
  body_.store(&body, std::memory_order_relaxed);
  count_.store(count, std::memory_order_release);
  if (sleeping_.load() > 0) {
    {
      const std::lock_guard lock(mutex_);
    }  // who is about to sleep has looked before, or will look
    wake_.notify_all();
  }
  take_items(0);
  for (int spin = 0; done_.load(std::memory_order_acquire) < count; ++spin) {
    if (spin < kSpins)
      wait_a_moment(0);
    else
      std::this_thread::yield();
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::for_ranges(int64_t count, int64_t grain,
                            const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t blocks = (count + grain - 1) / grain;
  if (size() == 1 || blocks == 1) {
    body(0, count);
    return;
  }
  // A few ranges a thread, so that a thread held up by the system does not hold up the loop.
  const int64_t ranges = std::min<int64_t>(blocks, 4L * size());
  for_each(ranges, [&](int64_t i, int) {
    const int64_t begin = blocks * i / ranges * grain;
    const int64_t end = std::min(count, blocks * (i + 1) / ranges * grain);
    if (begin < end) body(begin, end);
  });
}

}  // namespace mixtral
