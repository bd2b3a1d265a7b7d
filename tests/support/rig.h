#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "base/random.h"
#include "ops/backend.h"

namespace mixtral::test {

/// Random normal values with this mean and deviation.
struct Spread {
  double deviation = 1;
  double mean = 0;
};

/// One op on one backend: its operands, each in a block of its own with guard bytes around it, the
/// forward passes that prepare its inputs, and what is known about its gradients. A case of the
/// table (tests/op_cases.h) fills a rig; the runners compare rigs.
///
/// A rig made from a seed draws its operands; one made from another rig takes the values that the
/// other's operands had before its op ran, in the order in which they were made.
class Rig {
 public:
  enum class Role {
    input,    // read, and must not change
    output,   // assigned: not-a-number before
    updated,  // read and changed
    room      // lent to the op, and may hold anything afterwards
  };
  struct Operand {
    std::string name;
    Role role = Role::input;
    Tensor tensor;
    Buffer block;
    std::vector<std::byte> initial;  // before the op ran
  };
  struct Loss {
    Tensor output, cotangent;
  };
  struct Gradient {
    Tensor input, gradient;
    bool accumulated = false;
  };

  Rig(Backend& backend, Dtype dtype, uint64_t seed);
  /// `shift` moves every operand by that many elements from its natural alignment.
  Rig(Backend& backend, const Rig& original, int64_t shift = 0);
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  /// The type of activations, and of statistics beside them.
  Dtype dtype() const { return dtype_; }
  Dtype statistics() const { return ops::statistics_dtype(dtype_); }
  /// Random numbers for whatever a case makes up beside its operands.
  RandomStream& random() { return random_; }

  // Operands. The name is for messages; without a dtype it is that of activations.
  Tensor input(std::string name, Shape shape, Spread spread = {});
  Tensor input(std::string name, Shape shape, Dtype dtype, Spread spread = {});
  Tensor values(std::string name, Shape shape, Dtype dtype, const std::vector<double>& values);
  Tensor indices(std::string name, Shape shape, const std::vector<int32_t>& values);
  Tensor bytes(std::string name, Shape shape, const void* data);
  Tensor output(std::string name, Shape shape) { return output(std::move(name), shape, dtype_); }
  Tensor output(std::string name, Shape shape, Dtype dtype);
  /// Random, and changed by the op.
  Tensor updated(std::string name, Shape shape, Spread spread = {});
  Tensor updated(std::string name, Shape shape, Dtype dtype, Spread spread = {});
  /// Given, and changed by the op.
  Tensor updated_values(std::string name, Shape shape, Dtype dtype,
                        const std::vector<double>& values);
  Tensor updated_indices(std::string name, Shape shape, const std::vector<int32_t>& values);
  /// Written by `prepare`, and an input of the op or a forward pass's output of its own.
  Tensor prepared(std::string name, Shape shape) {
    return prepared(std::move(name), shape, dtype_);
  }
  Tensor prepared(std::string name, Shape shape, Dtype dtype);

  /// Lent to the op for intermediate results.
  Tensor room(std::string name, Shape shape) { return room(std::move(name), shape, dtype_); }
  Tensor room(std::string name, Shape shape, Dtype dtype);

  /// A forward pass, run before the op; done at once in a rig that draws its operands.
  template <class Op>
  void prepare(const Op& op) {
    check(op);
    forward_.push_back([this, op] { backend_.run(op); });
    if (!original_) forward_.back()();
  }

  /// The op under test. The last call of a case.
  template <class Op>
  void run(const Op& op) {
    check(op);
    op_name_ = Op::kName;
    cost_ = cost(op);
    work_ = [this, op] { backend_.run(op); };
    take_initial();
  }

  // Gradients: the forward passes compute L = Σ cotangent · output over the losses (a cotangent of
  // one element counts for every output), and the op under test computes dL/dinput.
  void loss(const Tensor& output, const Tensor& cotangent) {
    losses_.push_back({output, cotangent});
  }
  void gradient(const Tensor& input, const Tensor& gradient, bool accumulated = false) {
    gradients_.push_back({input, gradient, accumulated});
  }

  /// The length of the longest sum behind an output element; tolerances grow with it.
  void set_inner(int64_t inner) { inner_ = inner; }
  /// The size of the terms behind outputs that may cancel to nothing; errors are relative to it
  /// where the outputs are smaller.
  void set_magnitude(double magnitude) { magnitude_ = magnitude; }

  // For the runners.
  Backend& backend() const { return backend_; }
  const std::vector<Operand>& operands() const { return operands_; }
  const std::vector<Loss>& losses() const { return losses_; }
  const std::vector<Gradient>& gradients() const { return gradients_; }
  int64_t inner() const { return inner_; }
  double magnitude() const { return magnitude_; }
  const std::string& op_name() const { return op_name_; }
  const ops::Cost& cost_of_op() const { return cost_; }
  /// Issues the op without waiting for it, as a recording needs.
  void issue() const { work_(); }
  void execute() const {
    work_();
    backend_.synchronize();
  }
  void run_forward() const {
    for (const auto& forward : forward_) forward();
  }
  /// Puts every operand back to what it was before the op ran.
  void restore();
  const Operand& find(const Tensor& tensor) const;
  std::vector<std::byte> download(const Operand& operand) const;
  /// Whether the bytes around an operand are as they were left.
  bool guards_intact(const Operand& operand) const;

 private:
  Tensor add(std::string name, Role role, Shape shape, Dtype dtype,
             const std::function<std::vector<std::byte>(int64_t)>& fill);
  void take_initial();

  Backend& backend_;
  const Rig* original_ = nullptr;
  Dtype dtype_;
  uint64_t seed_ = 0;
  int64_t shift_ = 0;
  RandomStream random_;
  std::vector<Operand> operands_;
  std::vector<std::function<void()>> forward_;
  std::function<void()> work_;
  std::vector<Loss> losses_;
  std::vector<Gradient> gradients_;
  int64_t inner_ = 1;
  double magnitude_ = 0;
  std::string op_name_;
  ops::Cost cost_;
};

/// The elements of a host array of a floating-point or integer type, and back (rounded once or
/// twice; what matters is that all backends are given the same).
std::vector<double> to_doubles(const void* data, Dtype dtype, int64_t count);
std::vector<std::byte> from_doubles(const std::vector<double>& values, Dtype dtype);

/// max |a − b| / max(magnitude, max |b|); infinite where only one is not a number.
double normalised_error(const std::vector<double>& a, const std::vector<double>& b,
                        double magnitude = 0);

/// Compares the outputs of two rigs of one case: empty if each differs by no more than its type and
/// its sums allow (integers not at all), inputs are unchanged and guard bytes intact; else what
/// does not hold. The tolerances are stated at its definition.
std::string difference(const Rig& reference, const Rig& tested);

/// As `difference`, but every output must have the same bits.
std::string bit_difference(const Rig& reference, const Rig& tested);

/// The seed of random inputs: MIXTRAL_TEST_SEED from the environment, or a fixed one.
uint64_t test_seed();

}  // namespace mixtral::test
