#include "train/trainer.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>

#include "base/advice.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "model/memory_plan.h"

namespace mixtral {
namespace {

constexpr std::string_view kOptimizerFile = "optimizer.safetensors";
// Results are read at least this often, for the progress display; more often only where a line or
// a checkpoint needs them, because reading waits for the device.
constexpr std::chrono::milliseconds kReadInterval{200};
constexpr std::chrono::seconds kSyncInterval{1};

/// Stream of the seed that the masks of dropout are drawn from; the data has others.
constexpr uint64_t kDropoutStream = uint64_t{3} << 32;

bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

double since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

void TrainSettings::validate() const {
  auto require = [](int64_t value, int64_t least, std::string_view setting) {
    if (value < least)
      throw AdvisedUsageError(
          fmt::format("{}: expected at least {}, found {}", setting, least, value));
  };
  schedule.validate();
  optimizer.validate();
  require(accumulation, 1, "‹grad-accumulation›");
  require(log_every, 1, "‹log-every›");
  require(eval_every, 0, "‹eval-every›");
  require(eval_batches, 0, "‹eval-batches›");
  require(save_every, 0, "‹save-every›");
  require(keep_last, 1, "‹keep-last›");
  require(patience, 0, "‹patience›");
  require(max_skipped, 1, "‹max-skipped›");
}

Trainer::Trainer(const Parts& parts, const TrainSettings& settings)
    : parts_(parts),
      settings_(settings),
      optimizer_(parts.ctx.backend(), parts.model.groups(), settings.optimizer),
      runner_(parts.ctx, parts.criterion, optimizer_, settings.record_steps) {
  state_.seed = settings.seed;
}

void Trainer::require_space() {
  // One more than is kept exists while a checkpoint is being written.
  const int64_t kept = settings_.keep_last + (settings_.keep_best && parts_.validation ? 1 : 0);
  const auto present = static_cast<int64_t>(parts_.run.checkpoints().list().size());
  constexpr int64_t kOtherFiles = int64_t{8} << 20;
  parts_.run.require_space(parts_.model.bytes() + optimizer_.state_bytes() + kOtherFiles,
                           std::max<int64_t>(kept + 1 - present, 1));
}

void Trainer::open_metrics() {
  metrics_.emplace(parts_.run.metrics_path(), state_.step,
                   [&](std::string_view note) { parts_.observer.on_note(note); });
}

void Trainer::resume() {
  CheckpointStore& store = parts_.run.checkpoints();
  const auto entry =
      store.newest_whole([&](std::string_view note) { parts_.observer.on_note(note); });
  if (!entry)
    throw AdvisedError(
        fmt::format("{} has no whole checkpoint to continue from; start the run again "
                    "with ‹overwrite›",
                    store.directory().string()));
  const Json json = Json::load(entry->path / TrainState::kFileName);
  TrainState state = TrainState::parse(json);
  if (state.step != entry->step)
    throw Error(fmt::format("{}: it is of step {}, but stands in the checkpoint of step {}",
                            json.at("step").where(), state.step, entry->step));
  parts_.model.load(entry->path);
  optimizer_.load(parts_.ctx.backend(), parts_.model.parameters(), entry->path / kOptimizerFile,
                  state.optimizer_steps);
  parts_.train.restore(json.at("data"));
  state_ = state;
  seconds_before_ = state.seconds;
  store.set_aside_after(state.step);
  store.mark_latest(state.step);
  if (state.best && settings_.keep_best)
    for (const auto& whole : store.list())
      if (whole.step == state.best->step) store.mark_best(whole.step);
  open_metrics();
  parts_.observer.on_note(fmt::format("continuing from {} (step {} of {})", entry->path.string(),
                                      state.step, settings_.schedule.iterations));
}

void Trainer::stage_step() {
  if (staged_ || state_.step == settings_.schedule.iterations) return;
  Staged staged{.position = parts_.train.position()};
  StepRunner::Step step;
  // A function of seed, step and micro-batch, so that a resumed run drops what this one would.
  RandomStream dropout(settings_.seed, kDropoutStream + static_cast<uint64_t>(state_.step));
  for (int64_t i = 0; i < settings_.accumulation; ++i) {
    auto batch = parts_.train.next();
    CHECK(batch.has_value(), "training data ended");
    staged.tokens += batch->size();
    step.batches.push_back(std::move(*batch));
    step.dropout_seeds.push_back(dropout.next());
  }
  step.lr = settings_.schedule.at(state_.step + 1);
  probe_ = step.batches.front();
  staged.size = runner_.stage(std::move(step));
  if (staged.size.weight == 0)  // the balancing loss alone would be an update, too
    throw AdvisedError(fmt::format(
        "step {} has no label, so there is nothing to learn; give records whose answers are within "
        "‹context›",
        state_.step + 1));
  staged_ = std::move(staged);
}

void Trainer::train_step() {
  stage_step();
  // Rows are used in turn. Row 0 is where every step writes, so that steps can be replayed.
  const int64_t row = next_row_;
  next_row_ = row + 1 < parts_.criterion.rows() ? row + 1 : 1;
  parts_.ctx.backend().mark();
  runner_.run();
  parts_.criterion.keep(parts_.ctx, 0, row);
  ++state_.step;
  state_.tokens += staged_->tokens;
  pending_.push_back(
      {.step = state_.step, .tokens = staged_->tokens, .row = row, .size = staged_->size});
  staged_.reset();
}

void Trainer::read_pending(Wait wait) {
  // The newest step was issued after the mark.
  const size_t count = pending_.size() - (wait == Wait::for_mark && !pending_.empty() ? 1 : 0);
  for (size_t i = 0; i < count; ++i) {
    parts_.criterion.fetch(parts_.ctx, pending_[i].row, wait);
    account(pending_[i]);
  }
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(count));
  last_read_ = Clock::now();
}

void Trainer::account(const Pending& step) {
  last_ = parts_.criterion.figures(step.size);
  last_norm_ = std::sqrt(last_.squared_norm);
  last_step_ = step.step;
  last_tokens_ += step.tokens;
  ++rate_steps_;
  rate_tokens_ += step.tokens;
  if (std::isfinite(last_.loss) && std::isfinite(last_norm_)) {
    state_.skipped_in_row = 0;
    ++state_.window_steps;
    state_.window_loss += last_.cross_entropy;
    return;
  }
  ++state_.skipped;
  ++state_.skipped_in_row;
  parts_.observer.on_skip(step.step, last_.loss, last_norm_);
  if (state_.skipped_in_row < settings_.max_skipped) return;
  throw AdvisedError(fmt::format(
      "{} steps in a row, up to step {}, had a loss or gradient that is no finite number, and "
      "were skipped; {}",
      state_.skipped_in_row, step.step, way_out()));
}

std::string Trainer::way_out() const {
  const auto last = parts_.run.checkpoints().latest();
  return fmt::format("{}; try a lower ‹lr›, a longer ‹warmup›, ‹grad-clip 1›, or ‹dtype fp32›",
                     last ? fmt::format("the last checkpoint is {}", last->path.string())
                          : std::string("nothing was saved"));
}

Figures Trainer::evaluate(BatchSource& source, int64_t batches, std::string_view split) {
  Context& ctx = parts_.ctx;
  CHECK(pending_.empty());
  source.rewind();
  parts_.criterion.begin(ctx, 0);
  StepSize size{.weight = 0, .batches = 1};
  for (int64_t i = 0; batches == 0 || i < batches; ++i) {
    const auto batch = source.next();
    if (!batch) break;
    ctx.arena().reset();
    size.weight += parts_.criterion.weight(*batch);
    parts_.criterion.add_losses(ctx, *batch, size, 0);
  }
  if (size.weight == 0)
    throw AdvisedError(
        fmt::format("the {} data have no label within ‹context›, so there is no loss to "
                    "take; give records whose answers are within it",
                    split));
  const Figures figures = parts_.criterion.read(ctx, 0, size);
  if (!std::isfinite(figures.cross_entropy))
    throw AdvisedError(fmt::format("the {} loss after step {} is no finite number; {}", split,
                                   state_.step, way_out()));
  proven_step_ = state_.step;
  return figures;
}

bool Trainer::probe_is_finite() {
  if (proven_step_ == state_.step) return true;
  Context& ctx = parts_.ctx;
  ctx.arena().reset();
  const StepSize size{.weight = parts_.criterion.weight(probe_), .batches = 1};
  parts_.criterion.begin(ctx, 0);
  parts_.criterion.add_losses(ctx, probe_, size, 0);
  return std::isfinite(parts_.criterion.read(ctx, 0, size).cross_entropy);
}

MetricsLine Trainer::make_line() {
  MetricsLine line;
  line.step = last_step_;
  line.tokens = last_tokens_;
  line.loss = last_.loss;
  line.cross_entropy = last_.cross_entropy;
  if (state_.window_steps > 0)
    state_.train_loss = state_.window_loss / static_cast<double>(state_.window_steps);
  state_.window_steps = 0;
  state_.window_loss = 0;
  line.train_loss = state_.train_loss;
  line.lr = settings_.schedule.at(last_step_);
  line.grad_norm = last_norm_;
  line.aux_loss = last_.aux;
  line.z_loss = last_.z;
  line.more = last_.more;
  line.router = parts_.criterion.routers();
  line.skipped = state_.skipped;
  if (rate_seconds_ > 0) {
    line.tok_per_s = static_cast<double>(rate_tokens_) / rate_seconds_;
    line.it_per_s = static_cast<double>(rate_steps_) / rate_seconds_;
  }
  line.peak_bytes = peak_bytes();
  state_.seconds = seconds_before_ + since(session_start_);
  line.seconds = state_.seconds;
  return line;
}

int64_t Trainer::peak_bytes() {
  peak_bytes_ = std::max(peak_bytes_, peak_memory(parts_.ctx.backend()));
  return peak_bytes_;
}

TrainObserver::Progress Trainer::progress() {
  const int64_t left = settings_.schedule.iterations - last_step_;
  const double seconds = rate_seconds_ > 0 ? rate_seconds_ : 1;
  return {.step = last_step_,
          .iterations = settings_.schedule.iterations,
          .loss = last_.cross_entropy,
          .lr = settings_.schedule.at(last_step_),
          .tok_per_s = static_cast<double>(rate_tokens_) / seconds,
          .it_per_s = static_cast<double>(rate_steps_) / seconds,
          .peak_bytes = peak_bytes(),
          .seconds_left = static_cast<double>(left) * step_seconds_};
}

void Trainer::write_line(const MetricsLine& line, bool evaluated, bool best) {
  metrics_->append(line);
  if (evaluated || Clock::now() - last_sync_ > kSyncInterval) {
    metrics_->sync();
    last_sync_ = Clock::now();
  }
  parts_.observer.on_line(line, progress());
  if (evaluated) parts_.observer.on_evaluation(line, best);
  rate_steps_ = rate_tokens_ = 0;
  rate_seconds_ = 0;
}

void Trainer::count_time() {
  const auto now = Clock::now();
  rate_seconds_ += std::chrono::duration<double>(now - counted_until_).count();
  counted_until_ = now;
}

void Trainer::save(bool best) {
  read_pending(Wait::for_all);
  if (!optimizer_.values_are_finite(parts_.ctx))
    throw AdvisedError(
        fmt::format("after step {} the weights hold a value that is no finite number, so they are "
                    "not saved; try a lower ‹lr› or a longer ‹warmup›",
                    state_.step));
  // The newest update was not measured yet: the next step would be the first to see it.
  if (!probe_is_finite()) {
    const bool last = state_.step == settings_.schedule.iterations;
    const std::string what = fmt::format(
        "after step {} the loss is no finite number, so the weights are not saved", state_.step);
    if (last) throw AdvisedError(fmt::format("{}; {}", what, way_out()));
    parts_.observer.on_note(what);
    return;
  }
  metrics_->sync();
  state_.optimizer_steps = optimizer_.steps();
  state_.data = staged_ ? staged_->position : parts_.train.position();
  state_.seconds = seconds_before_ + since(session_start_);
  const auto entry =
      parts_.run.checkpoints().save(state_.step, [&](const std::filesystem::path& directory) {
        auto sums = parts_.model.save(directory);
        sums[std::string(kOptimizerFile)] = optimizer_.save(
            parts_.ctx.backend(), parts_.model.parameters(), directory / kOptimizerFile);
        write_file(directory / TrainState::kFileName, state_.to_json());
        return sums;
      });
  if (best) parts_.run.checkpoints().mark_best(state_.step);
  parts_.run.checkpoints().prune(settings_.keep_last);
  parts_.observer.on_checkpoint(entry, best);
}

TrainResult Trainer::run() {
  require_space();
  if (!metrics_) open_metrics();
  session_start_ = last_read_ = last_sync_ = Clock::now();
  last_step_ = state_.step;
  last_tokens_ = state_.tokens;
  while (state_.step < settings_.schedule.iterations) {
    const auto start = counted_until_ = Clock::now();
    train_step();
    stage_step();  // while the device works
    if (line_due_) {
      read_pending(Wait::for_mark);
      count_time();
      write_line(make_line(), false, false);
      line_due_ = false;
    }
    const int signal = parts_.stop_signal();
    const int64_t step = state_.step;
    const bool last = step == settings_.schedule.iterations;
    const bool evaluating = parts_.validation && (last || due(step, settings_.eval_every));
    const bool logging = step == 1 || last || evaluating || due(step, settings_.log_every);
    const bool full = static_cast<int64_t>(pending_.size()) == parts_.criterion.rows() - 1;
    const bool showing = Clock::now() - last_read_ > kReadInterval;
    // What the run stops for has its results at once; the others come when the next step is under
    // way, so that the device does not wait for the host.
    const bool stopping_here = last || signal || evaluating || due(step, settings_.save_every);
    const bool late = settings_.read_late && !stopping_here;
    if (logging && late)
      line_due_ = true;
    else if (logging || full || showing || signal)
      read_pending(late ? Wait::for_mark : Wait::for_all);
    count_time();
    const double seconds = since(start);
    step_seconds_ = step_seconds_ > 0 ? 0.95 * step_seconds_ + 0.05 * seconds : seconds;
    if (showing && !logging) parts_.observer.on_progress(progress());

    bool best = false, stopping = false;
    if (logging && !late) {
      MetricsLine line = make_line();
      if (evaluating) {
        const Figures figures = evaluate(*parts_.validation, settings_.eval_batches, "validation");
        line.val_loss = state_.val_loss = figures.cross_entropy;
        for (const auto& [name, value] : figures.more) line.more.emplace_back("val_" + name, value);
        best = !state_.best || *line.val_loss < state_.best->val_loss;
        if (best) state_.best = {.step = step, .val_loss = *line.val_loss};
        state_.evaluations_since_best = best ? 0 : state_.evaluations_since_best + 1;
        stopping = settings_.patience > 0 && state_.evaluations_since_best >= settings_.patience;
      }
      write_line(line, evaluating, best);
    }
    const bool keep = best && settings_.keep_best;
    if (last || signal || stopping || keep || due(step, settings_.save_every)) save(keep);
    if (signal) return finish(TrainResult::Reason::signal, signal);
    if (stopping && !last) return finish(TrainResult::Reason::no_improvement, 0);
  }
  return finish(TrainResult::Reason::finished, 0);
}

TrainResult Trainer::finish(TrainResult::Reason reason, int signal) {
  CheckpointStore& store = parts_.run.checkpoints();
  TrainResult result{.reason = reason,
                     .signal = signal,
                     .step = state_.step,
                     .tokens = state_.tokens,
                     .skipped = state_.skipped,
                     .train_loss = state_.train_loss,
                     .val_loss = state_.val_loss,
                     .best = state_.best,
                     .checkpoint = store.latest()};
  if (reason != TrainResult::Reason::signal) {
    if (const auto best = store.best(); best && settings_.keep_best) {
      if (best->step != state_.step) parts_.model.load(best->path);
      result.checkpoint = best;
    }
    if (parts_.test) {
      const Figures figures = evaluate(*parts_.test, 0, "test");
      result.test_loss = figures.cross_entropy;
      result.test_more = figures.more;
    }
  }
  result.seconds = seconds_before_ + since(session_start_);
  result.peak_bytes = peak_bytes();
  return result;
}

int64_t peak_memory(const Backend& backend) {
  if (backend.kind() == DeviceKind::gpu) {
    const auto memory = backend.memory();
    return memory.total - memory.available;
  }
  struct rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

}  // namespace mixtral
