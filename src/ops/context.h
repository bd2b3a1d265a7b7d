#pragma once

#include <span>
#include <utility>

#include "ops/backend.h"
#include "ops/profiler.h"

namespace mixtral {

/// What a computation needs: a device, room for activations, and how to compute. Passed by
/// reference; `run` is the only place where work is issued.
class Context {
 public:
  Context(Backend& backend, Arena& arena, Dtype dtype, Profiler* profiler = nullptr)
      : backend_(backend), arena_(arena), dtype_(dtype), profiler_(profiler) {}

  Backend& backend() { return backend_; }
  Arena& arena() { return arena_; }
  /// The type of activations.
  Dtype dtype() const { return dtype_; }
  /// The type of statistics beside them.
  Dtype statistics() const { return ops::statistics_dtype(dtype_); }
  /// How linear layers round the operands of their products (the router always takes them exact).
  ops::Operands operands() const { return operands_; }
  void set_operands(ops::Operands operands) { operands_ = operands; }

  /// What holds for one micro-batch of training (TrainingScope).
  struct Training {
    /// What the masks of dropout are drawn from ([1] i64, on the device), another value for every
    /// batch. Forward and backward of a batch see the same one. Empty: nothing is dropped.
    Tensor dropout_seed;
    /// Whether a step's gradients hold nothing yet: those that one product writes whole
    /// (nn::Parameter::one_product) are then assigned, whatever stands there, instead of added to.
    bool fresh_gradients = false;
  };
  const Tensor& dropout_seed() const { return training_.dropout_seed; }
  bool fresh_gradients() const { return training_.fresh_gradients; }

  /// A tensor from the arena, of the activations' type unless another is named.
  Tensor allocate(Shape shape) { return arena_.allocate(shape, dtype_); }
  Tensor allocate(Shape shape, Dtype dtype) { return arena_.allocate(shape, dtype); }

  template <class Op>
  void run(const Op& op) {
    check(op);
    if (!profiler_) {
      backend_.run(op);
      return;
    }
    profiler_->begin();
    backend_.run(op);
    profiler_->end(ops::describe(op), cost(op));
  }

  /// Products of the same x, rows and offsets.
  void run_all(std::span<const ops::GroupedMatmul> products) {
    if (profiler_) {
      for (const ops::GroupedMatmul& product : products) run(product);
      return;
    }
    for (const ops::GroupedMatmul& product : products) check(product);
    backend_.run_all(products);
  }

 private:
  Backend& backend_;
  Arena& arena_;
  Dtype dtype_;
  ops::Operands operands_ = ops::Operands::exact;
  Training training_;
  Profiler* profiler_;
  friend class TrainingScope;
};

/// A micro-batch of training, from construction to destruction.
class TrainingScope {
 public:
  TrainingScope(Context& ctx, const Context::Training& training)
      : ctx_(ctx), before_(std::exchange(ctx.training_, training)) {}
  ~TrainingScope() { ctx_.training_ = before_; }
  TrainingScope(const TrainingScope&) = delete;
  TrainingScope& operator=(const TrainingScope&) = delete;

 private:
  Context& ctx_;
  Context::Training before_;
};

}  // namespace mixtral
