#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "io/json.h"

namespace mixtral {

/// Everything a run must remember between two steps, beside the weights and the optimizer's
/// moments: a checkpoint's state.json. Random numbers are a function of seed and step (or of the
/// data's position), so those are all there is to restore.
struct TrainState {
  static constexpr std::string_view kFileName = "state.json";

  int64_t step = 0;    // steps done
  int64_t tokens = 0;  // trained on
  uint64_t seed = 0;
  int64_t optimizer_steps = 0;
  std::string data = "{}";  // BatchSource::position()

  struct Best {
    int64_t step = 0;
    double val_loss = 0;
  };
  std::optional<Best> best;        // the lowest validation loss so far
  std::optional<double> val_loss;  // the last one
  int64_t evaluations_since_best = 0;
  int64_t skipped = 0;         // steps without an update, since the beginning
  int64_t skipped_in_row = 0;  // up to now

  // Since the last line of the metrics: what its train_loss is the mean of.
  int64_t window_steps = 0;
  double window_loss = 0;
  double train_loss = 0;  // of the last line

  double seconds = 0;  // spent so far

  std::string to_json() const;
  /// Throws Error naming a field that is missing, of another kind, or out of its range.
  static TrainState parse(const Json& json);
};

}  // namespace mixtral
