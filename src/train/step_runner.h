#pragma once

#include <cstdint>
#include <vector>

#include "ops/recordings.h"
#include "train/criterion.h"
#include "train/optimizer.h"

namespace mixtral {

/// Runs optimizer steps: gradients of all micro-batches, the norm, clipping and the update, as one
/// piece of work. Everything that differs between two steps of the same shapes (tokens, the labels'
/// scale, dropout's seeds, the learning rate) stands in one block on the device, at an address that
/// stays. The rest follows from the shapes, so the work can be recorded once and replayed: shapes
/// that come a second time are recorded, and replayed from the third time on. Others run as they
/// are. Replayed or not, a step has the same bits.
///
/// A recording holds addresses: of the block, and of the context's arena. When one of the two has
/// moved, all recordings are dropped.
class StepRunner {
 public:
  static constexpr size_t kMostPrograms = 4;  // shapes that are remembered; the latest ones

  struct Step {
    std::vector<HostBatch> batches;       // at least one
    std::vector<uint64_t> dropout_seeds;  // one a micro-batch; or empty: nothing is dropped
    double lr = 0;
  };

  /// What is given must outlive this. With `record` off, no step is recorded.
  StepRunner(Context& ctx, Criterion& criterion, Optimizer& optimizer, bool record);
  StepRunner(const StepRunner&) = delete;
  StepRunner& operator=(const StepRunner&) = delete;

  /// Copies the inputs of the step that run() is to do next; the copy overtakes the work under way.
  /// Throws Error when the model cannot take a micro-batch. Returns the step's denominators.
  StepSize stage(Step step);
  /// Issues the staged step. Its results are in the criterion's row 0, until the next one.
  void run();

  int64_t programs() const { return recordings_.recorded(); }  // recordings that are held
  int64_t replayed() const { return recordings_.replayed(); }  // steps that were replays

 private:
  /// The inputs of a step, as tensors in host memory or on the device.
  struct Inputs {
    Tensor schedule;       // [4] f64
    Tensor label_scale;    // [1] statistics
    Tensor dropout_seeds;  // [batches] i64, or empty
    std::vector<Batch> batches;
    int64_t bytes = 0;  // of them all
  };

  Inputs inputs_at(void* base) const;
  void make_room(int64_t bytes);
  void fill(const Inputs& host) const;
  Recordings::Shape shape() const;  // of the staged step
  void issue(const Inputs& inputs, const std::vector<HostBatch>* batches) const;

  Context& ctx_;
  Criterion& criterion_;
  Optimizer& optimizer_;
  bool record_;
  Buffer host_, device_;
  Step step_;
  StepSize size_;
  bool staged_ = false;
  Recordings recordings_;
};

}  // namespace mixtral
