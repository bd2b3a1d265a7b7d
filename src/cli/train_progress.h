#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "cli/common.h"
#include "cli/terminal.h"
#include "train/dead_experts.h"
#include "train/tensorboard.h"
#include "train/trainer.h"

namespace mixtral {

/// The line that shows a run on a terminal, no wider than `width` columns: the share done as a bar,
/// the step, the loss, the time left and, as far as there is room, speed, learning rate and memory.
std::string status_line(const TrainObserver::Progress& progress, int width,
                        const TerminalStyle& style);

/// Shows a run on stderr: on a terminal one line that is redrawn, elsewhere a line for each line of
/// the metrics; evaluations, checkpoints and trouble get lines of their own. Redraws the run's loss
/// plots at each evaluation.
class TrainProgress : public TrainObserver {
 public:
  /// `common` must outlive this.
  TrainProgress(const CommonOptions& common, std::filesystem::path run);
  ~TrainProgress() override;

  void on_progress(const Progress& progress) override;
  void on_line(const MetricsLine& line, const Progress& progress) override;
  void on_evaluation(const MetricsLine& line, bool best) override;
  void on_checkpoint(const CheckpointStore::Entry& entry, bool best) override;
  void on_skip(int64_t step, double loss, double grad_norm) override;
  void on_note(std::string_view note) override;

  /// From here on, puts each line of the metrics into TensorBoard event files, too. `last_step`: of
  /// the checkpoint that the run goes on from. Throws Error when they cannot be written.
  void log_to_tensorboard(int64_t last_step);
  /// A line that stays.
  void say(std::string_view line);
  /// Redraws the plots; a failure is only noted.
  void draw();

 private:
  const CommonOptions& common_;
  std::filesystem::path run_;
  bool terminal_;
  DeadExpertWatch watch_;
  std::optional<TensorBoardLog> events_;
  void clear();

  TerminalStyle style_;
  int shown_ = 0;  // columns of the line that is redrawn; 0: there is none
};

/// "1:05", "2:03:04"
std::string format_duration(double seconds);

}  // namespace mixtral
