#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "ops/backend.h"

namespace mixtral {

/// Recordings of work that is done again and again, by its shape. A recording holds addresses: of
/// the arena that the work allocates from, and of whatever else the work reads and writes. When the
/// arena has moved, all recordings are dropped.
class Recordings {
 public:
  /// All numbers that the work follows from. Work of equal shapes does the same to the same
  /// addresses.
  using Shape = std::vector<int64_t>;

  /// Remembers `most` shapes, the latest ones. `backend` and `arena` must outlive this.
  Recordings(Backend& backend, const Arena& arena, size_t most)
      : backend_(backend), arena_(arena), most_(most) {}

  /// Does the work of a shape. The first time, `direct` is called, after which all memory and plans
  /// that the work needs are there. The second time, `repeatable` is recorded. From the third time
  /// on, the recording is replayed. Both must do the same to the device; `repeatable` must not
  /// depend on anything that differs from one time to the next.
  void run(const Shape& shape, const std::function<void()>& direct,
           std::function<void()> repeatable);
  /// The same where one function serves as both.
  void run(const Shape& shape, const std::function<void()>& work) { run(shape, work, work); }

  /// Drops everything: memory that the work uses, other than the arena, has moved.
  void clear() { known_.clear(); }

  int64_t recorded() const;                       // recordings that are held
  int64_t replayed() const { return replayed_; }  // times that a recording was replayed

 private:
  struct Known {
    Shape shape;
    std::unique_ptr<Program> program;  // none until the shape comes again
    int64_t last_used = 0;
  };

  Backend& backend_;
  const Arena& arena_;
  size_t most_;
  std::vector<Known> known_;
  uint64_t arena_version_ = 0;  // that the recordings were made on
  int64_t clock_ = 0, replayed_ = 0;
};

}  // namespace mixtral
