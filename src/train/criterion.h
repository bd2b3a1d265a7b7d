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
};

/// What the routers did with the last micro-batch.
struct RouterFigures {
  std::vector<std::vector<double>> load;  // [L][E]: shares of the assignments, each layer sums to 1
  std::vector<double> entropy;            // [L]: mean entropy of the routing distribution, nats
  int64_t dead = 0;                       // experts, over all layers, that no token went to
};

/// What training minimises, as the loop sees it. Results stay on the device, in one of several
/// rows, until they are read: the loop need not wait for each step.
class Criterion {
 public:
  virtual ~Criterion() = default;

  /// How much a micro-batch counts in the step's mean: its labels, or its pairs.
  virtual int64_t weight(const HostBatch& batch) const = 0;
  /// How many rows of results there are.
  virtual int64_t rows() const = 0;

  /// Clears a row.
  virtual void begin(Context& ctx, int64_t row) = 0;
  /// Adds a micro-batch's part to a row and, in training, to the parameters' gradients.
  virtual void add_gradients(Context& ctx, const HostBatch& batch, const StepSize& step,
                             int64_t row) = 0;
  virtual void add_losses(Context& ctx, const HostBatch& batch, const StepSize& step,
                          int64_t row) = 0;
  /// Waits for the device and reads a row.
  virtual Figures read(Context& ctx, int64_t row, const StepSize& step) = 0;
  virtual RouterFigures read_routers(Context& ctx) = 0;
};

}  // namespace mixtral
