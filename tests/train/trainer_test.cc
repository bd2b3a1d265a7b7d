#include "train/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "data/batches.h"
#include "model/checkpoint.h"
#include "tests/support/fixtures.h"
#include "tests/support/source_directory.h"
#include "tests/train/rig.h"
#include "train/corpus_source.h"

namespace mixtral::testing {
namespace {

std::vector<MetricsLine> metrics_of(const Rig& rig) {
  return read_metrics(rig.run.path() / "metrics.jsonl");
}

std::vector<int64_t> steps_of(const std::vector<CheckpointStore::Entry>& entries) {
  std::vector<int64_t> steps;
  for (const auto& entry : entries) steps.push_back(entry.step);
  return steps;
}

// ---- Against transformers and PyTorch

struct Fixture {
  std::string name, device;
};

class AdamWFixture : public ::testing::TestWithParam<Fixture> {};

TEST_P(AdamWFixture, GivesTheReferenceLosses) {
  const fs::path folder = source_directory() / "../shared/fixtures" / GetParam().name;
  if (!fs::exists(folder)) GTEST_SKIP() << folder << " is absent";
  const auto backend = make_backend(GetParam().device, 2);
  const auto model = load_model(*backend, folder, {.trainable = true});
  const Json expected = Json::load(folder / "expected.json");
  const Json& adamw = expected.at("adamw");

  ThreadPool pool(1);
  const Corpus corpus = load_corpus(folder / "data.jsonl", nullptr, {}, pool);
  CorpusSource source(corpus, {.context = model->context(),
                               .rows = corpus.documents(),
                               .packing = Packing::off,
                               .shuffle = false});
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f32);
  LanguageModelCriterion criterion(
      ctx, *model,
      {.objective = {.balance = Objective::Balance::hf,
                     .aux_coefficient = expected.at("router_aux_loss_coef").as_double()}});
  WholeModel whole(*backend, *model, nullptr);
  const Scratch scratch;
  RunDirectory run(scratch.path() / "run", RunDirectory::Open::fresh);
  TrainObserver observer;
  TrainSettings settings;
  settings.schedule = {
      .kind = Schedule::Kind::constant, .peak = adamw.at("lr").as_double(), .iterations = 10};
  settings.optimizer = {.beta1 = adamw.at("betas").items()[0].as_double(),
                        .beta2 = adamw.at("betas").items()[1].as_double(),
                        .eps = adamw.at("eps").as_double(),
                        .weight_decay = adamw.at("weight_decay").as_double(),
                        .clip = adamw.at("clip_norm").as_double()};
  settings.log_every = 1;
  Trainer trainer({.ctx = ctx,
                   .criterion = criterion,
                   .model = whole,
                   .train = source,
                   .run = run,
                   .observer = observer},
                  settings);
  trainer.run();
  const auto lines = read_metrics(run.metrics_path());
  const auto& losses = adamw.at("losses").items();
  ASSERT_EQ(lines.size(), losses.size());
  for (size_t i = 0; i < losses.size(); ++i)
    EXPECT_NEAR(lines[i].loss, losses[i].as_double(), 1e-4) << "step " << i + 1;
  EXPECT_NEAR(lines[0].cross_entropy, expected.at("cross_entropy").as_double(), 1e-5);
  EXPECT_NEAR(lines[0].aux_loss, expected.at("aux_loss").as_double(), 1e-5);
  EXPECT_NEAR(lines[0].grad_norm, expected.at("grad_norm").as_double(), 1e-3);
}

std::vector<Fixture> fixtures() {
  std::vector<Fixture> all;
  for (const char* name : {"gqa", "mha8x2", "headdim", "sliding", "sharded", "tied"})
    for (const char* device : {"ref", "cpu"}) all.push_back({name, device});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Models, AdamWFixture, ::testing::ValuesIn(fixtures()),
                         [](const auto& fixture) {
                           return fixture.param.name + "_" + fixture.param.device;
                         });

// ---- What goes wrong

TEST(Trainer, SkipsAndCountsStepsWhoseGradientIsNotFinite) {
  const Scratch scratch;
  TrainSettings settings = small_settings(12);
  settings.log_every = 1;
  Rig rig(scratch.path() / "run", settings, {});
  rig.spoilt_steps = {3, 4, 9};
  const TrainResult result = rig.trainer->run();
  EXPECT_EQ(result.step, 12);
  EXPECT_EQ(result.skipped, 3);
  EXPECT_EQ(rig.observer.skips, (std::vector<int64_t>{3, 4, 9}));
  const auto lines = metrics_of(rig);
  EXPECT_TRUE(std::isnan(lines[2].grad_norm));
  EXPECT_TRUE(std::isfinite(lines[11].grad_norm));
  EXPECT_EQ(lines[11].skipped, 3);
  EXPECT_TRUE(std::isfinite(result.train_loss));
  EXPECT_LT(lines[11].train_loss, lines[0].train_loss);
  EXPECT_TRUE(rig.trainer->optimizer().values_are_finite(rig.ctx));
}

TEST(Trainer, StopsAfterTooManySkippedStepsInARow) {
  const Scratch scratch;
  TrainSettings settings = small_settings(20);
  settings.max_skipped = 3;
  settings.eval_every = 0;
  Rig rig(scratch.path() / "run", settings, {});
  rig.spoilt_steps = {2, 3, 6, 7, 8, 9, 10};
  try {
    rig.trainer->run();
    FAIL() << "the run went on";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("3 steps in a row, up to step 8"), std::string::npos) << text;
    EXPECT_NE(text.find("step-00000004"), std::string::npos) << text;
    EXPECT_NE(text.find("a lower lr"), std::string::npos) << text;
  }
  EXPECT_EQ(steps_of(rig.run.checkpoints().list()), (std::vector<int64_t>{4}));
}

TEST(Trainer, NeverSavesWeightsThatAreNotFinite) {
  const Scratch scratch;
  TrainSettings settings = small_settings(4);
  Rig rig(scratch.path() / "run", settings, {});
  rig.backend->run(
      ops::Fill{.x = rig.model.store().groups().front().value.slice(0, 1), .value = std::nan("")});
  EXPECT_THROW(rig.trainer->run(), Error);
  EXPECT_TRUE(rig.run.checkpoints().list().empty());
}

// ---- Checkpoints that are kept, and when to stop

TEST(Trainer, KeepsTheLastCheckpointsAndTheBest) {
  const Scratch scratch;
  TrainSettings settings = small_settings(20);
  settings.save_every = 2;
  settings.eval_every = 4;
  settings.keep_last = 2;
  Rig rig(scratch.path() / "run", settings, {});
  const TrainResult result = rig.trainer->run();
  auto& store = rig.run.checkpoints();
  ASSERT_TRUE(result.best && store.best());
  EXPECT_EQ(store.latest()->step, 20);
  EXPECT_EQ(store.best()->step, result.best->step);
  const auto steps = steps_of(store.list());
  for (const int64_t step : {int64_t{18}, int64_t{20}, result.best->step})
    EXPECT_EQ(std::ranges::count(steps, step), 1) << step;
  EXPECT_LE(steps.size(), 3u);
  EXPECT_EQ(find_checkpoint(rig.run.path())->filename(), store.best()->path.filename());
  EXPECT_EQ(result.checkpoint->step, result.best->step);
  EXPECT_TRUE(result.test_loss);
}

TEST(Trainer, StopsWhenValidationNoLongerImproves) {
  const Scratch scratch;
  TrainSettings settings = small_settings(20);
  settings.schedule.peak = settings.schedule.least = 0;  // so it cannot
  settings.eval_every = 2;
  settings.patience = 3;
  Rig rig(scratch.path() / "run", settings, {});
  const TrainResult result = rig.trainer->run();
  EXPECT_EQ(result.reason, TrainResult::Reason::no_improvement);
  EXPECT_EQ(result.step, 8);  // the best at 2, then three without a better one
  EXPECT_EQ(result.best->step, 2);
  EXPECT_EQ(rig.run.checkpoints().latest()->step, 8);
}

TEST(Trainer, RefusesSettingsThatMakeNoSense) {
  for (const auto& spoil : std::vector<std::function<void(TrainSettings&)>>{
           [](auto& s) { s.accumulation = 0; }, [](auto& s) { s.log_every = 0; },
           [](auto& s) { s.keep_last = 0; }, [](auto& s) { s.max_skipped = 0; },
           [](auto& s) { s.optimizer.beta2 = 1; }, [](auto& s) { s.optimizer.eps = 0; },
           [](auto& s) { s.optimizer.clip = -1; }, [](auto& s) { s.schedule.peak = -1; }}) {
    TrainSettings settings = small_settings(4);
    spoil(settings);
    EXPECT_THROW(settings.validate(), UsageError);
  }
}

// ---- Accumulation

/// Hands out given batches in turn.
class ListSource : public BatchSource {
 public:
  explicit ListSource(std::vector<HostBatch> batches) : batches_(std::move(batches)) {}
  std::optional<HostBatch> next() override { return batches_[next_++ % batches_.size()]; }
  void rewind() override { next_ = 0; }
  std::string position() const override { return "{}"; }
  void restore(const Json&) override {}

 private:
  std::vector<HostBatch> batches_;
  size_t next_ = 0;
};

TEST(Trainer, RefusesAStepAndAnEvaluationWithoutALabel) {
  HostBatch learnt, masked;
  learnt.append(std::vector<int32_t>{1, 2, 3});
  masked.append(std::vector<int32_t>{1, 2, 3}, std::vector<int32_t>{-100, -100, -100});
  for (const bool validating : {false, true}) {
    const Scratch scratch;
    TrainSettings settings = small_settings(2);
    settings.accumulation = 1;
    Rig rig(scratch.path() / "run", settings, {});
    ListSource train({validating ? learnt : masked}), validation({masked});
    settings.eval_batches = 1;
    Trainer trainer({.ctx = rig.ctx,
                     .criterion = rig.criterion,
                     .model = rig.whole,
                     .train = train,
                     .validation = &validation,
                     .run = rig.run,
                     .observer = rig.observer},
                    settings);
    try {
      trainer.run();
      ADD_FAILURE() << "a mean over nothing";
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find(validating ? "validation data have no label" : "step 1 has no label"),
                std::string::npos)
          << text;
    }
    EXPECT_TRUE(rig.run.checkpoints().list().empty());
  }
}

TEST(Trainer, NeverSavesWeightsWhoseLossIsNotFinite) {
  for (const bool validating : {false, true}) {
    for (const int64_t steps : {1, 3}) {
      const Scratch scratch;
      TrainSettings settings = small_settings(steps);
      settings.schedule = {.kind = Schedule::Kind::constant,
                           .peak = 1e12,
                           .least = 0,
                           .warmup = 0,
                           .iterations = steps};
      settings.save_every = 1;
      settings.eval_every = 0;
      Rig rig(scratch.path() / "run", settings, {.validation = validating});
      try {
        rig.trainer->run();
        ADD_FAILURE() << "no finite loss, and no error";
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("no finite number"), std::string::npos)
            << error.what();
      }
      EXPECT_TRUE(rig.run.checkpoints().list().empty()) << steps;
    }
  }
}

TEST(Trainer, AccumulatedBatchesOfUnequalLengthEqualOneLargeBatch) {
  const std::vector<std::vector<int32_t>> sequences = {
      {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {11, 12, 13}, {5, 7, 9, 11, 13, 15, 17}, {2, 4}};
  std::vector<HostBatch> small(2);
  HostBatch large;
  for (size_t i = 0; i < sequences.size(); ++i) {
    small[i / 2].append(sequences[i]);
    large.append(sequences[i]);
  }
  std::vector<std::vector<MetricsLine>> runs;
  for (const bool split : {true, false}) {
    const Scratch scratch;
    TrainSettings settings = small_settings(5);
    settings.log_every = 1;
    settings.accumulation = split ? 2 : 1;
    // The balancing loss is each micro-batch's own, so it is left out.
    Rig rig(scratch.path() / "run", settings,
            {.device = "ref",
             .weights = Dtype::f64,
             .compute = Dtype::f64,
             .validation = false,
             .objective = {.balance = Objective::Balance::off}});
    ListSource source(split ? small : std::vector<HostBatch>{large});
    Trainer trainer({.ctx = rig.ctx,
                     .criterion = rig.criterion,
                     .model = rig.whole,
                     .train = source,
                     .run = rig.run,
                     .observer = rig.observer},
                    settings);
    trainer.run();
    runs.push_back(metrics_of(rig));
  }
  ASSERT_EQ(runs[0].size(), 5u);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_NEAR(runs[0][i].loss, runs[1][i].loss, 1e-11) << "step " << i + 1;
    EXPECT_NEAR(runs[0][i].grad_norm, runs[1][i].grad_norm, 1e-11) << "step " << i + 1;
  }
}

class TrainerOn : public ::testing::TestWithParam<std::string> {};

TEST_P(TrainerOn, WritesTheSameWhenStepsAreRecordedAndReadLate) {
  if (!have_device(GetParam())) GTEST_SKIP() << "no GPU";
  std::vector<std::vector<std::string>> metrics, hashes;
  std::vector<int64_t> replayed;
  for (const bool ahead : {false, true}) {
    const Scratch scratch;
    TrainSettings settings = small_settings(17);
    settings.optimizer.bf16_state = true;
    settings.record_steps = settings.read_late = ahead;
    Rig rig(scratch.path() / "run", settings, {.device = GetParam()});
    rig.trainer->run();
    replayed.push_back(rig.trainer->steps().replayed());
    metrics.push_back(timeless_metrics(rig.run.path()));
    hashes.push_back(checkpoint_hashes(last_checkpoint(rig.run.path())));
  }
  EXPECT_EQ(metrics[0], metrics[1]);
  EXPECT_EQ(hashes[0], hashes[1]);
  EXPECT_EQ(replayed[0], 0);
  EXPECT_GE(replayed[1], 10);
}

INSTANTIATE_TEST_SUITE_P(Devices, TrainerOn, ::testing::ValuesIn(devices()));

TEST(Trainer, WritesEveryLineOnceAndInOrderWhenItReadsLate) {
  const Scratch scratch;
  TrainSettings settings = small_settings(11);
  settings.log_every = 1;
  settings.read_late = true;
  Rig rig(scratch.path() / "run", settings, {.device = "ref"});
  rig.spoilt_steps = {4, 11};
  rig.trainer->run();
  const auto lines = metrics_of(rig);
  ASSERT_EQ(lines.size(), 11u);
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].step, static_cast<int64_t>(i) + 1);
    EXPECT_EQ(lines[i].tokens, lines[i].step * 48);
    EXPECT_EQ(std::isfinite(lines[i].grad_norm), lines[i].step != 4 && lines[i].step != 11);
    EXPECT_EQ(lines[i].val_loss.has_value(), lines[i].step % 5 == 0 || lines[i].step == 11);
  }
  EXPECT_EQ(rig.observer.skips, (std::vector<int64_t>{4, 11}));
}

TEST(Trainer, UsesTheSameMemoryInEveryStep) {
  const Scratch scratch;
  Rig rig(scratch.path() / "run", small_settings(2), {});
  rig.trainer->run();
  const int64_t after_two = rig.arena.reserved();
  Rig longer(scratch.path() / "longer", small_settings(15), {});
  longer.trainer->run();
  EXPECT_EQ(longer.arena.reserved(), after_two);
}

}  // namespace
}  // namespace mixtral::testing
