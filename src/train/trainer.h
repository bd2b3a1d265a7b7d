#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "train/batch_source.h"
#include "train/criterion.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/run_directory.h"
#include "train/schedule.h"
#include "train/step_runner.h"
#include "train/train_state.h"

namespace mixtral {

/// How long to train, and how often to do what.
struct TrainSettings {
  Schedule schedule;  // its `iterations` are the run's
  OptimizerSettings optimizer;
  int64_t accumulation = 1;  // micro-batches of an optimizer step
  int64_t log_every = 10;    // steps between lines of the metrics
  int64_t eval_every = 0;    // steps between evaluations; 0: only at the end
  int64_t eval_batches = 0;  // micro-batches of an evaluation; 0: the whole split
  int64_t save_every = 0;    // steps between checkpoints; 0: only at the end
  int64_t keep_last = 2;     // checkpoints kept
  bool keep_best = true;     // save whenever an evaluation is the best so far, and keep that
  int64_t patience = 0;      // stop after so many evaluations without a new best; 0: never
  int64_t max_skipped = 10;  // stop after so many steps in a row without an update
  uint64_t seed = 0;
  // For devices that work on their own; the same bits either way.
  bool record_steps = false;  // record steps whose shapes repeat (StepRunner)
  bool read_late = false;     // read a step's results when the next one is under way

  /// Throws UsageError naming the flag that makes no sense.
  void validate() const;
};

/// What is trained, as far as a checkpoint is concerned: a whole model, or an adapter.
class TrainedModel {
 public:
  virtual ~TrainedModel() = default;

  /// Every parameter; those with a gradient are trained.
  virtual nn::ParameterSource parameters() = 0;
  virtual std::vector<nn::ParameterStore::Group> groups() = 0;
  /// Writes the files that make the directory a model (or an adapter) which other programs read.
  /// Returns the checksums that are known from writing.
  virtual std::map<std::string, FileChecksum> save(const std::filesystem::path& directory) = 0;
  virtual void load(const std::filesystem::path& directory) = 0;
  /// About how many bytes save() writes.
  virtual int64_t bytes() = 0;
};

/// Told what happens, from the thread that trains. Every function may be left as it is.
class TrainObserver {
 public:
  struct Progress {
    int64_t step = 0, iterations = 0;
    double loss = 0;  // cross-entropy of the last step that was read
    double lr = 0;
    double tok_per_s = 0, it_per_s = 0;  // lately
    int64_t peak_bytes = 0;
    double seconds_left = 0;
  };

  virtual ~TrainObserver() = default;
  /// A few times a second at most.
  virtual void on_progress(const Progress&) {}
  /// After a line was written; `progress` is as of then.
  virtual void on_line(const MetricsLine&, const Progress&) {}
  /// After an evaluation, when the metrics hold it.
  virtual void on_evaluation(const MetricsLine&, bool /*best*/) {}
  virtual void on_checkpoint(const CheckpointStore::Entry&, bool /*best*/) {}
  virtual void on_skip(int64_t /*step*/, double /*loss*/, double /*grad_norm*/) {}
  /// A sentence for the user.
  virtual void on_note(std::string_view) {}
};

/// How a run ended.
struct TrainResult {
  enum class Reason { finished, no_improvement, signal };

  Reason reason = Reason::finished;
  int signal = 0;
  int64_t step = 0, tokens = 0, skipped = 0;
  double train_loss = 0;
  std::optional<double> val_loss;  // the last one
  std::optional<TrainState::Best> best;
  std::optional<double> test_loss;
  std::vector<std::pair<std::string, double>> test_more;  // Figures::more
  std::optional<CheckpointStore::Entry> checkpoint;       // the best one, else the last
  double seconds = 0;
  int64_t peak_bytes = 0;  // the most memory in use whenever it was looked at
};

/// The training loop: accumulation, update, schedule, evaluation, checkpoints, and what goes wrong.
/// What is minimised (Criterion), what is trained and saved (TrainedModel) and where data come from
/// (BatchSource) are its parameters, so that pretraining and every kind of fine-tuning share it.
class Trainer {
 public:
  struct Parts {
    Context& ctx;
    Criterion& criterion;
    TrainedModel& model;
    BatchSource& train;
    BatchSource* validation = nullptr;
    BatchSource* test = nullptr;
    RunDirectory& run;
    TrainObserver& observer;
    std::function<int()> stop_signal = [] { return 0; };  // a signal that arrived, or 0
  };

  /// Allocates the optimizer's state. The model's values must be set, unless resume() follows.
  Trainer(const Parts& parts, const TrainSettings& settings);

  /// Continues from the run's newest whole checkpoint, telling the observer of damaged ones. Throws
  /// Error when there is none.
  void resume();

  /// Trains until the last step, a signal, or early stopping; then saves. A finished run ends with
  /// the best checkpoint's weights (when they are kept) and their loss on the test split. Only
  /// weights that give a finite loss are saved. Throws Error when too many steps in a row had to be
  /// skipped, when an evaluation or the last weights give no finite loss, when there is no label to
  /// take a loss of, or when a checkpoint cannot be saved.
  TrainResult run();

  const Optimizer& optimizer() const { return optimizer_; }
  const TrainState& state() const { return state_; }
  const StepRunner& steps() const { return runner_; }

 private:
  using Clock = std::chrono::steady_clock;
  /// A step whose results are on the device.
  struct Pending {
    int64_t step = 0;
    int64_t tokens = 0;  // of this step
    int64_t row = 0;     // of the criterion's results
    StepSize size;
  };
  /// A step whose inputs were drawn and copied, but that did not run.
  struct Staged {
    int64_t tokens = 0;
    StepSize size;
    std::string position;  // of the data, before they were drawn
  };

  void require_space();
  void open_metrics();
  void stage_step();
  void train_step();
  void read_pending(Wait wait);
  void account(const Pending& step);
  Figures evaluate(BatchSource& source, int64_t batches, std::string_view split);
  bool probe_is_finite();
  std::string way_out() const;
  MetricsLine make_line();
  void write_line(const MetricsLine& line, bool evaluated, bool best);
  void count_time();
  void save(bool best);
  TrainObserver::Progress progress();
  int64_t peak_bytes();
  TrainResult finish(TrainResult::Reason reason, int signal);

  Parts parts_;
  TrainSettings settings_;
  Optimizer optimizer_;
  StepRunner runner_;
  TrainState state_;
  std::optional<MetricsLog> metrics_;

  std::optional<Staged> staged_;
  HostBatch probe_;               // of the step that was staged last: its first micro-batch
  int64_t proven_step_ = -1;      // after which an evaluation gave a finite loss
  std::vector<Pending> pending_;  // oldest first
  int64_t next_row_ = 1;          // for the results of the next step
  bool line_due_ = false;         // for the newest pending step
  // Of the last step that was read:
  Figures last_;
  double last_norm_ = 0;
  int64_t last_step_ = 0, last_tokens_ = 0;  // its number, and the tokens up to it
  Clock::time_point last_read_, last_sync_, session_start_;
  Clock::time_point counted_until_;  // by rate_seconds_
  double seconds_before_ = 0;        // of earlier sessions
  // Of the steps that were read since the last line, in this session:
  int64_t rate_steps_ = 0, rate_tokens_ = 0;
  double rate_seconds_ = 0;
  double step_seconds_ = 0;  // a running mean
  int64_t peak_bytes_ = 0;
};

/// The most memory used so far by this process, or on a GPU what is in use of the device now.
int64_t peak_memory(const Backend& backend);

}  // namespace mixtral
