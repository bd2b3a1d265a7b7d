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
  explicit ThreadPool(int threads = 0);
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
  void take_items(int thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  int64_t count_ = 0;
  const std::function<void(int64_t, int)>* body_ = nullptr;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

/// Physical cores this process may run on (its affinity mask), at least 1.
int available_cores();

}  // namespace mixtral
