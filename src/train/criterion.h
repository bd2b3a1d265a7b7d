#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/batch.h"
#include "ops/context.h"

namespace mixtral {

/// What an optimizer step, or an evaluation, is made of: the denominators of its means.
struct StepSize {
  int64_t weight = 0;   // of all its micro-batches, see Criterion::weight
  int64_t batches = 0;  // micro-batches
};

/// The numbers of one step or evaluation.
struct Figures {
  double loss = 0;           // the whole objective
  double cross_entropy = 0;  // mean over labels (for other objectives: their own main loss)
  double aux = 0, z = 0;     // the router's losses, without coefficients
  std::vector<std::pair<std::string, double>> more;  // what else the objective reports
  double squared_norm = 0;  // of the step's gradients, where squared_norm(row) was written
};

/// What the routers did with the last micro-batch.
struct RouterFigures {
  std::vector<std::vector<double>> load;  // [L][E]: shares of the assignments, each layer sums to 1
  std::vector<double> entropy;            // [L]: mean entropy of the routing distribution, nats
  int64_t dead = 0;                       // experts, over all layers, that no token went to
};

/// A micro-batch of an optimizer step, where the step's work reads it.
struct StepBatch {
  const HostBatch* host = nullptr;  // null in work that is recorded, which must not depend on it
  Batch batch;                      // the same on the device
  Tensor label_scale;               // [1] statistics: 1 / StepSize::weight; 0 if that is 0
};

/// What reading a result waits for: all work, or what was issued before Backend::mark().
enum class Wait { for_all, for_mark };

/// What training minimises, as the loop sees it. Results stay on the device, in one of several
/// rows, until they are read: the loop need not wait for each step.
class Criterion {
 public:
  virtual ~Criterion() = default;

  /// How much a micro-batch counts in the step's mean: its labels, or its pairs.
  virtual int64_t weight(const HostBatch& batch) const = 0;
  /// Throws Error when the model cannot take a micro-batch.
  virtual void check(const HostBatch& batch) const = 0;
  /// How many rows of results there are.
  virtual int64_t rows() const = 0;
  /// Whether add_gradients does nothing but issue work that follows from the shapes alone, so that
  /// a recording of it serves every step of the same shapes.
  virtual bool recordable() const { return true; }

  /// Clears a row.
  virtual void begin(Context& ctx, int64_t row) = 0;
  /// Adds a micro-batch's part to a row and to the parameters' gradients, in one backward pass. Of
  /// `step`, what is recordable uses the number of batches only.
  virtual void add_gradients(Context& ctx, const StepBatch& batch, const StepSize& step,
                             int64_t row) = 0;
  /// The same of a micro-batch that is not on the device yet.
  void add_gradients(Context& ctx, const HostBatch& batch, const StepSize& step, int64_t row);
  /// Adds a micro-batch's losses to a row.
  virtual void add_losses(Context& ctx, const HostBatch& batch, const StepSize& step,
                          int64_t row) = 0;
  /// Copies a row's results to another row, behind the work issued so far.
  virtual void keep(Context& ctx, int64_t from, int64_t to) = 0;
  /// Where the squared norm of a step's gradients stands, for whoever computes it: [1] f64.
  virtual Tensor squared_norm(int64_t row) const = 0;

  /// Copies a row to the host. figures() and routers() are of the row fetched last.
  virtual void fetch(Context& ctx, int64_t row, Wait wait) = 0;
  virtual Figures figures(const StepSize& step) const = 0;
  virtual RouterFigures routers() const = 0;
  /// Waits for all work and reads a row.
  Figures read(Context& ctx, int64_t row, const StepSize& step);
};

/// What StepBatch::label_scale holds.
double label_scale(const StepSize& step);

}  // namespace mixtral
