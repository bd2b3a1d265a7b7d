#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "io/checksum.h"
#include "nn/parameter.h"
#include "ops/context.h"

namespace mixtral {

/// AdamW's constants (ops::AdamW), and how its state is kept.
struct OptimizerSettings {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;  // of the groups that decay: matrices
  double clip = 1;            // the largest global gradient norm; 0: no clipping
  bool bf16_state = false;    // m and v in bf16, rounded stochastically: half of their memory
  uint64_t seed = 0;          // of that rounding

  /// Throws UsageError naming the flag that makes no sense.
  void validate() const;
};

/// Which gradients an update sets to 0: all, or only those to which the next step adds; the others
/// are then left as they are, for a backward pass with Context::fresh_gradients.
enum class Clear : uint8_t { all, added };

/// AdamW over whole parameter groups: one launch each for norm, update and clearing. Where a
/// group's values are bf16, an f32 master copy is kept here and the values are refreshed from it.
class Optimizer {
 public:
  /// `groups` are trained where they are trainable; their values must be set already if they are
  /// bf16 (the master copy is taken from them). m and v start at 0.
  Optimizer(Backend& backend, const std::vector<nn::ParameterStore::Group>& groups,
            const OptimizerSettings& settings);

  /// Updates the parameters by their gradients, then clears these. `squared_norm` [1] f64 receives
  /// the sum of the squares of all gradients before clipping; when it is not finite, nothing but
  /// the step count changes.
  void step(Context& ctx, double lr, const Tensor& squared_norm);

  // The same in parts, for steps that are recorded: what changes from one to the next is in the
  // schedule, which the update reads from the device.
  /// ops::AdamW's schedule for the next step.
  std::array<double, 4> next_schedule(double lr) const;
  /// The work of a step; `schedule` [4] f64 holds what next_schedule() gave.
  void update(Context& ctx, const Tensor& schedule, const Tensor& squared_norm, Clear clear) const;
  /// Says that an update was issued, or replayed.
  void count_step() { ++steps_; }

  int64_t steps() const { return steps_; }
  int64_t state_bytes() const;  // of m, v and master copies
  const OptimizerSettings& settings() const { return settings_; }

  /// Takes the master copies from the parameters' values again, after these were loaded.
  void refresh_masters(Backend& backend) const;
  /// Whether every trained value is a finite number.
  bool values_are_finite(Context& ctx) const;

  /// Writes the state to one safetensors file: m.NAME, v.NAME and, where there is one, master.NAME
  /// for each trained tensor NAME that `parameters` enumerates.
  FileChecksum save(Backend& backend, const nn::ParameterSource& parameters,
                    const std::filesystem::path& path) const;
  /// Reads it back. Master copies of a run that had some, where this one has none, become the f32
  /// values. Throws Error naming file and tensor when something is missing or does not fit.
  void load(Backend& backend, const nn::ParameterSource& parameters,
            const std::filesystem::path& path, int64_t steps);

 private:
  struct Trained {
    nn::ParameterStore::Group group;
    Tensor m, v;    // [n]
    Tensor master;  // [n] f32, or empty
  };
  using StateVisitor = std::function<void(const std::string& name, const Tensor& state)>;
  enum class Masters { own, and_f32_values };

  const Tensor& weights(const Trained& t) const { return t.master ? t.master : t.group.value; }
  /// `masters`: whether values without a master copy are visited as if they were one.
  void for_each_state(const nn::ParameterSource& parameters, const StateVisitor& visit,
                      Masters masters = Masters::own) const;

  OptimizerSettings settings_;
  int64_t steps_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<Trained> trained_;
  Tensor schedule_;  // [4] f64
};

}  // namespace mixtral
