#include "cli/scoring.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "backends/registry.h"
#include "base/file.h"
#include "eval/evaluate.h"
#include "eval/expert_report.h"
#include "model/checkpoint.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

/// A small model, and rows that fill its positions: batches of more than an arena's least block.
class ScoringTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ModelConfig config = testing::minimal_config();
    config.hidden_size = config.intermediate_size = 64;
    config.max_positions = 512;
    const auto backend = make_backend("cpu", 1);
    Mixtral model(*backend, config, {});
    nn::initialise(*backend, model.parameters(), {.seed = 4, .deviation = 0.1});
    options_.model = (scratch_.path() / "model").string();
    options_.data = (scratch_.path() / "rows.jsonl").string();
    fs::create_directories(options_.model);
    save_model(*backend, model, options_.model, Dtype::f32);
    std::string rows;
    for (int row = 0; row < 20; ++row) {
      rows += "{\"input_ids\": [1";
      for (int i = 1; i < config.max_positions; ++i) rows += fmt::format(", {}", (i * row) % 32);
      rows += "]}\n";
    }
    write_file(options_.data, rows);
    options_.pack = "on";
    options_.common.device = "cpu";
    options_.common.threads = 1;
  }

  /// That what was planned for the batches, and is held for them, is what they took.
  static void expect_enough(const Scoring& s, int64_t reserved) {
    EXPECT_EQ(s.open.arena->reserved(), reserved) << "a batch needed more than was planned";
    EXPECT_GT(s.open.arena->peak(), 0.9 * static_cast<double>(reserved));
  }

  TemporaryDirectory scratch_;
  ScoringOptions options_;
};

TEST_F(ScoringTest, ABatchTakesWhatWasPlannedForIt) {
  for (const Pass pass : {Pass::losses, Pass::routes}) {
    Scoring s = open_scoring(options_, {.pass = pass});
    const int64_t reserved = s.open.arena->reserved();
    Batches batches(s.corpus, s.batches);
    if (pass == Pass::losses)
      evaluate(*s.open.ctx, *s.open.model, batches, options_.objective(s.open.model->config()));
    else
      report_experts(*s.open.ctx, *s.open.model, batches, nullptr, {});
    expect_enough(s, reserved);
  }
}

}  // namespace
}  // namespace mixtral
