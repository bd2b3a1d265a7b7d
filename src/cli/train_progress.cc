#include "cli/train_progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/messages.h"
#include "cli/advice.h"
#include "model/memory_plan.h"
#include "plot/run_plot.h"

namespace mixtral {
namespace {

/// "25.3k"
std::string short_number(double value) {
  if (value >= 1e6) return fmt::format("{:.2f}M", value / 1e6);
  if (value >= 1e4) return fmt::format("{:.1f}k", value / 1e3);
  return fmt::format("{:.0f}", value);
}

std::string rate(double it_per_s) {
  if (it_per_s > 0 && it_per_s < 1) return fmt::format("{:.2f} s/it", 1 / it_per_s);
  return fmt::format("{:.{}f} it/s", it_per_s, it_per_s < 10 ? 2 : 1);
}

std::string progress_text(const TrainObserver::Progress& p, double loss) {
  const double share = 100 * static_cast<double>(p.step) / static_cast<double>(p.iterations);
  return fmt::format("step {}/{} ({:.0f}%)  loss {:.4f}  lr {:.2e}  {} tok/s  {}  {}  {} left",
                     p.step, p.iterations, std::floor(share), loss, p.lr, short_number(p.tok_per_s),
                     rate(p.it_per_s), format_bytes(p.peak_bytes), format_duration(p.seconds_left));
}

/// A bar of so many columns.
std::string bar(double share, int columns, const TerminalStyle& style) {
  const int filled = static_cast<int>(share * columns);
  std::string text;
  if (style.colour) text += "\x1b[36m";
  for (int i = 0; i < filled; ++i) text += style.unicode ? "\u2501" : "#";
  if (style.colour) text += "\x1b[2m";
  for (int i = filled; i < columns; ++i) text += style.unicode ? "\u2500" : "-";
  if (style.colour) text += "\x1b[0m";
  return text;
}

}  // namespace

std::string status_line(const TrainObserver::Progress& p, int width, const TerminalStyle& style) {
  constexpr int kLeastBar = 8, kMostBar = 24, kGap = 2;
  const double share = static_cast<double>(p.step) / static_cast<double>(p.iterations);
  // By importance; what no longer fits is left out.
  const std::string fields[] = {fmt::format("{:3.0f}%", std::floor(100 * share)),
                                fmt::format("loss {:.4f}", p.loss),
                                fmt::format("{}/{}", p.step, p.iterations),
                                fmt::format("{} left", format_duration(p.seconds_left)),
                                fmt::format("{} tok/s", short_number(p.tok_per_s)),
                                fmt::format("lr {:.1e}", p.lr),
                                rate(p.it_per_s),
                                format_bytes(p.peak_bytes)};
  const int room = width - 1;  // the last column would make some terminals wrap
  int used = shown_width(fields[0]);
  std::string text;
  // The bar comes after the four fields that everybody looks for.
  int essential = used;
  for (size_t i = 1; i < 4; ++i) essential += kGap + shown_width(fields[i]);
  const int columns = std::min(kMostBar, room - essential - 1);
  if (columns >= kLeastBar) {
    text += " " + bar(share, columns, style);
    used += 1 + columns;
  }
  for (size_t i = 1; i < std::size(fields); ++i) {
    const int more = kGap + shown_width(fields[i]);
    if (used + more > room) break;
    used += more;
    const bool bold = i == 1 && style.colour;
    text += fmt::format("  {}{}{}", bold ? "\x1b[1m" : "", fields[i], bold ? "\x1b[0m" : "");
  }
  return used <= room ? fields[0] + text : "";
}

std::string format_duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::max(seconds, 0.0)));
  if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

TrainProgress::TrainProgress(const CommonOptions& common, std::filesystem::path run)
    : common_(common),
      run_(std::move(run)),
      terminal_(::isatty(STDERR_FILENO) != 0),
      style_(terminal_style(STDERR_FILENO)) {}

TrainProgress::~TrainProgress() {
  if (shown_ > 0) messages::print("");
}

void TrainProgress::clear() {
  if (shown_ == 0) return;
  // In a terminal that has become narrower the line now takes several rows.
  const int rows = (shown_ - 1) / terminal_width(STDERR_FILENO);
  messages::draw(fmt::format("\r{}\x1b[J", rows > 0 ? fmt::format("\x1b[{}A", rows) : ""));
  shown_ = 0;
}

void TrainProgress::say(std::string_view line) {
  if (common_.quiet) return;
  clear();
  messages::line(line);
}

void TrainProgress::log_to_tensorboard(int64_t last_step) {
  const auto metrics = run_ / "metrics.jsonl";
  const bool started = last_step > 0 && std::filesystem::exists(metrics);
  events_.emplace(run_ / "tensorboard", last_step,
                  started ? read_metrics(metrics) : std::vector<MetricsLine>());
}

void TrainProgress::on_progress(const Progress& progress) {
  if (common_.quiet || !terminal_) return;
  clear();
  const std::string line = status_line(progress, terminal_width(STDERR_FILENO), style_);
  messages::draw(line);
  shown_ = shown_width(line);
}

void TrainProgress::on_line(const MetricsLine& line, const Progress& progress) {
  if (events_) events_->append(line);
  if (line.router)
    for (const std::string& warning : watch_.look(line.step, *line.router)) say(warning);
  Progress shown = progress;
  shown.loss = line.train_loss;
  if (terminal_)
    on_progress(shown);
  else
    say(progress_text(shown, line.train_loss));
}

void TrainProgress::on_evaluation(const MetricsLine& line, bool best) {
  // An objective that reports figures of its own is no cross-entropy.
  std::string figures;
  for (const auto& [name, value] : line.more)
    if (name == "val_margin" || name == "val_accuracy")
      figures += fmt::format(", {} {:.4f}", name.substr(4), value);
  if (figures.empty()) figures = fmt::format(", perplexity {:.3f}", std::exp(*line.val_loss));
  say(fmt::format("step {}: validation loss {:.4f}{}{}; training loss {:.4f}", line.step,
                  *line.val_loss, figures, best ? " (best so far)" : "", line.train_loss));
  draw();
}

void TrainProgress::on_checkpoint(const CheckpointStore::Entry& entry, bool) {
  say(fmt::format("saved {}", entry.path.string()));
}

void TrainProgress::on_skip(int64_t step, double loss, double grad_norm) {
  say(fmt::format("step {} was skipped: its loss is {} and its gradient norm {}", step, loss,
                  grad_norm));
}

void TrainProgress::on_note(std::string_view note) { say(in_flags(note)); }

void TrainProgress::draw() {
  try {
    draw_loss(run_);
  } catch (const std::exception& problem) {
    say(fmt::format("the loss plot could not be drawn: {}", problem.what()));
  }
}

}  // namespace mixtral
