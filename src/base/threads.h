#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace mixtral {

/// A fixed team of threads that runs one loop at a time. The caller takes part as thread 0. Workers
/// spin for a short while after a loop before they sleep, because the loops of a decode step follow
/// one another within microseconds.
class ThreadPool {
 public:
  /// `threads` counts the caller; 0 asks for one a physical core that this process may use.
  explicit ThreadPool(int threads = 0) : ThreadPool(threads, nullptr) {}
  /// `idle` is called by threads that wait for a loop or for its end, again and again, with a pause
  /// between. It should take less than a tenth of a microsecond. Threads may call it at the same
  /// time.
  ThreadPool(int threads, std::function<void(int thread)> idle);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(i, thread) for every i in [0, count), items handed out one by one in order of
  /// arrival. Results must not depend on which thread takes an item. An exception from the body is
  /// rethrown here once all threads have stopped. Not reentrant: a body must not call it.
  void for_each(int64_t count, const std::function<void(int64_t i, int thread)>& body);

  /// Calls body(begin, end) on disjoint ranges that cover [0, count), each a multiple of `grain`
  /// long except the last; runs inline when there is only one.
  void for_ranges(int64_t count, int64_t grain,
                  const std::function<void(int64_t begin, int64_t end)>& body);

 private:
  void work(int thread);
  /// What a thread does while it waits.
  void wait_a_moment(int thread);
  /// Runs items of the loop that is under way until none is left to take.
  void take_items(int thread);
  void run_item(int64_t item, int thread);

  const std::function<void(int thread)> idle_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  // The loop's number in the upper half, the next item to take in the lower: a thread takes an item
  // by exchanging both, so that one that comes late can only take items of a loop still under way.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> done_{0};  // items of this loop that were run
  std::atomic<int64_t> count_{0};
  std::atomic<const std::function<void(int64_t, int)>*> body_{nullptr};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false}, failed_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

/// Physical cores this process may run on (its affinity mask), at least 1.
int available_cores();

}  // namespace mixtral
