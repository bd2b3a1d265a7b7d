#pragma once

#include <unistd.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "backends/registry.h"
#include "base/random.h"
#include "tests/support/models.h"
#include "train/language_model.h"
#include "train/model_checkpoint.h"
#include "train/trainer.h"

namespace mixtral::testing {

namespace fs = std::filesystem;

/// In memory where that is possible: tests that save often would wait for the disk.
inline fs::path scratch_parent() {
  return fs::exists("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path();
}

/// A directory that is gone at the end of the test.
class Scratch {
 public:
  explicit Scratch(const fs::path& parent = scratch_parent()) {
    std::string pattern = (parent / "mixtral-train-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~Scratch() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

inline ModelConfig small_model() {
  ModelConfig config = testing::minimal_config();
  config.intermediate_size = 24;
  config.rope_theta = 1e4;
  config.router_aux_loss_coef = 0.02;
  return config;
}

/// Sequences that count upwards by a random stride, in a random order that goes on for ever (or
/// ends after a number of batches).
class CountingSource : public BatchSource {
 public:
  explicit CountingSource(uint64_t seed, int64_t end = 0) : stream_(seed), seed_(seed), end_(end) {}

  std::optional<HostBatch> next() override {
    if (end_ > 0 && handed_ == end_) return std::nullopt;
    ++handed_;
    HostBatch batch;
    for (int s = 0; s < 2; ++s) {
      std::vector<int32_t> sequence;
      auto token = static_cast<int32_t>(stream_.below(32));
      const auto stride = static_cast<int32_t>(1 + stream_.below(3));
      for (int i = 0; i < 12; ++i, token = (token + stride) % 32) sequence.push_back(token);
      batch.append(sequence);
    }
    return batch;
  }
  void rewind() override {
    stream_ = RandomStream(seed_);
    handed_ = 0;
  }
  std::string position() const override {
    return "{\"position\": " + std::to_string(stream_.position()) + "}";
  }
  void restore(const Json& json) override {
    stream_ = RandomStream(seed_, 0, static_cast<uint64_t>(json.at("position").as_int()));
  }

 private:
  RandomStream stream_;
  uint64_t seed_;
  int64_t end_, handed_ = 0;
};

inline TrainSettings small_settings(int64_t iterations) {
  TrainSettings settings;
  settings.schedule = {.kind = Schedule::Kind::cosine,
                       .peak = 1e-2,
                       .least = 1e-3,
                       .warmup = 3,
                       .iterations = iterations};
  settings.accumulation = 2;
  settings.log_every = 3;
  settings.eval_every = 5;
  settings.save_every = 4;
  settings.seed = 7;
  return settings;
}

/// The usual criterion, except that the gradients of chosen steps are spoilt.
class FaultyCriterion : public LanguageModelCriterion {
 public:
  using LanguageModelCriterion::add_gradients;
  using LanguageModelCriterion::LanguageModelCriterion;
  void add_gradients(Context& ctx, const StepBatch& batch, const StepSize& step,
                     int64_t row) override {
    LanguageModelCriterion::add_gradients(ctx, batch, step, row);
    if (spoil && spoil()) ctx.run(ops::Fill{.x = gradient, .value = std::nan("")});
  }
  std::function<bool()> spoil;
  Tensor gradient;
};

/// A small model and everything to train it with, as a process that trains would build it.
struct Rig {
  struct Options {
    std::string device = "cpu";
    Dtype weights = Dtype::f32, compute = Dtype::f32;
    uint64_t seed = 7;
    RunDirectory::Open open = RunDirectory::Open::fresh;
    bool validation = true;
    Objective objective = {};
  };

  Rig(const fs::path& path, const TrainSettings& settings, const Options& options)
      : backend(make_backend(options.device, 2)),
        arena(*backend),
        ctx(*backend, arena, options.compute),
        model(*backend, small_model(),
              {.weights = options.weights, .compute = options.compute, .trainable = true}),
        criterion(ctx, model, {.objective = options.objective}),
        whole(*backend, model, nullptr),
        run(path, options.open) {
    nn::initialise(*backend, model.parameters(),
                   {.seed = options.seed,
                    .deviation = 0.1,
                    .residual_deviation = 0.1,
                    .embedding_deviation = 0.1});
    criterion.gradient = model.store().groups().front().grad.slice(0, 1);
    criterion.spoil = [this] { return spoilt_steps.contains(trainer->state().step + 1); };
    trainer = std::make_unique<Trainer>(
        Trainer::Parts{
            .ctx = ctx,
            .criterion = criterion,
            .model = whole,
            .train = train,
            .validation = options.validation ? &validation : nullptr,
            .test = &test,
            .run = run,
            .observer = observer,
            .stop_signal = [this] { return trainer->state().step == stop_at ? SIGTERM : 0; }},
        settings);
  }

  struct Notes : TrainObserver {
    std::vector<std::string> notes;
    std::vector<int64_t> skips;
    void on_note(std::string_view note) override { notes.emplace_back(note); }
    void on_skip(int64_t step, double, double) override { skips.push_back(step); }
  };

  std::unique_ptr<Backend> backend;
  Arena arena;
  Context ctx;
  Mixtral model;
  FaultyCriterion criterion;
  WholeModel whole;
  CountingSource train{11}, validation{12, 3}, test{13, 3};
  RunDirectory run;
  Notes observer;
  std::set<int64_t> spoilt_steps;
  int64_t stop_at = -1;  // a signal arrives during this step
  std::unique_ptr<Trainer> trainer;
};

/// A run's metrics without what depends on the clock and the machine.
inline std::vector<std::string> timeless_metrics(const fs::path& run) {
  std::vector<std::string> lines;
  for (MetricsLine line : read_metrics(run / "metrics.jsonl")) {
    line.tok_per_s = line.it_per_s = line.seconds = 0;
    line.peak_bytes = 0;
    lines.push_back(line.to_json());
  }
  return lines;
}

/// Checksums of what a checkpoint says about the run's future.
inline std::vector<std::string> checkpoint_hashes(const fs::path& checkpoint) {
  std::vector<std::string> hashes;
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "config.json"})
    hashes.push_back(std::string(name) + " " + checksum_file(checkpoint / name).hex());
  TrainState state = TrainState::parse(Json::load(checkpoint / "state.json"));
  state.seconds = 0;
  hashes.push_back(state.to_json());
  return hashes;
}

inline fs::path last_checkpoint(const fs::path& run) {
  return CheckpointStore(run / "checkpoints").latest()->path;
}

}  // namespace mixtral::testing
