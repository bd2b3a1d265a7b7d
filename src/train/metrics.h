#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/json.h"
#include "train/criterion.h"

namespace mixtral {

/// One line of metrics.jsonl: what is known at the end of a step, or at an evaluation.
struct MetricsLine {
  int64_t step = 0;          // from 1
  int64_t tokens = 0;        // trained on so far, this step included
  double loss = 0;           // of this step's batch, the whole objective, before the update
  double cross_entropy = 0;  // its main part
  double train_loss = 0;     // mean cross-entropy of the steps since the last line
  std::optional<double> val_loss;
  double lr = 0;
  double grad_norm = 0;  // before clipping
  double aux_loss = 0, z_loss = 0;
  std::optional<RouterFigures> router;
  std::vector<std::pair<std::string, double>> more;  // what else the objective reports
  int64_t skipped = 0;                               // steps without an update so far
  double tok_per_s = 0, it_per_s = 0;                // over the steps since the last line
  int64_t peak_bytes = 0;                            // most memory in use so far
  double seconds = 0;                                // of training since the run began

  /// A JSON object on one line; numbers that are none are null.
  std::string to_json() const;
  static MetricsLine parse(const Json& json);
};

/// RUN/metrics.jsonl, open for appending.
class MetricsLog {
 public:
  using Note = std::function<void(std::string_view)>;

  /// Opens or creates the file, and leaves out the lines of steps after `last_step`, which will be
  /// done again, and a last line that a kill tore. Where other lines cannot be read, `note` is told
  /// of them, and the file as it was stays beside it ("metrics.jsonl.damaged"). Throws Error when
  /// the file is a link or no regular file.
  MetricsLog(std::filesystem::path path, int64_t last_step, const Note& note = {});
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  /// Throws Error when the disk is full or fails.
  void append(const MetricsLine& line);
  /// Makes all lines durable.
  void sync();

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

/// The lines of a metrics file; a last line without an end is left out. Throws Error naming file
/// and line when one is malformed.
std::vector<MetricsLine> read_metrics(const std::filesystem::path& path);

}  // namespace mixtral
