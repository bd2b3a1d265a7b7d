#include "plot/run_plot.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/file.h"
#include "tests/support/files.h"
#include "tests/train/rig.h"

namespace mixtral::testing {
namespace {

PlottedRun made_up_run(int64_t lines) {
  PlottedRun run{.name = "made-up", .lines = {}};
  for (int64_t i = 1; i <= lines; ++i) {
    MetricsLine line;
    line.step = 10 * i;
    line.train_loss = 2 + 6.0 / static_cast<double>(i);
    if (i % 10 == 0) line.val_loss = line.train_loss + 0.1;
    line.lr = 1e-3;
    line.tok_per_s = 1000;
    line.router = RouterFigures{.load = {{0.5, 0.25, 0.25}, {0.2, 0.2, 0.6}}, .entropy = {1, 0.9}};
    run.lines.push_back(line);
  }
  return run;
}

TEST(AxisTicks, AreRoundNumbersWithinTheRange) {
  struct Case {
    double low, high;
    int count;
  };
  for (const Case& c : {Case{0, 1, 5}, Case{1.5, 4.5, 6}, Case{0, 12345, 8}, Case{-3e-4, 2e-4, 4},
                        Case{1e9, 1.0001e9, 5}}) {
    const auto ticks = axis_ticks(c.low, c.high, c.count);
    ASSERT_GE(ticks.size(), 2u) << c.low << " to " << c.high;
    EXPECT_LE(ticks.size(), static_cast<size_t>(2 * c.count + 2));
    const double slack = 1e-6 * (c.high - c.low);
    EXPECT_GE(ticks.front(), c.low - slack);
    EXPECT_LE(ticks.back(), c.high + slack);
    for (size_t i = 1; i < ticks.size(); ++i) EXPECT_GT(ticks[i], ticks[i - 1]);
  }
  EXPECT_EQ(axis_label(0.1 + 0.2), "0.3");
  EXPECT_EQ(axis_label(20000), "20k");
  EXPECT_EQ(axis_label(1.5e6), "1.5M");
}

TEST(Plot, WritesSvgAndPng) {
  const Scratch scratch;
  const std::vector<PlottedRun> one = {made_up_run(100)};
  const fs::path svg = scratch.path() / "a.svg", png = scratch.path() / "a.png";
  draw_chart(comparison_chart(one), svg);
  draw_chart(comparison_chart(one), png);
  EXPECT_NE(read_file(svg).find("<svg"), std::string::npos);
  EXPECT_EQ(read_file(png).substr(1, 3), "PNG");
  EXPECT_THROW(draw_chart(comparison_chart(one), scratch.path() / "a.gif"), UsageError);
  EXPECT_THROW(draw_chart(comparison_chart(one), scratch.path() / "none" / "a.svg"), Error);
}

TEST(Plot, TakesRunsOfAnyLengthAndNumbersThatAreNone) {
  const Scratch scratch;
  for (const int64_t lines : {1, 2, 700}) {
    PlottedRun run = made_up_run(lines);
    run.lines.back().train_loss = std::nan("");
    run.lines.front().router.reset();
    draw_chart(loss_chart(run), scratch.path() / "loss.svg");
    draw_chart(comparison_chart({run, made_up_run(3)}), scratch.path() / "two.svg");
    run.lines.back().router = RouterFigures{.load = {{0.5, 0.5}}, .entropy = {}};
    draw_chart(comparison_chart({run}), scratch.path() / "other-shape.svg");
    EXPECT_FALSE(chart_as_text(comparison_chart({run})).empty());
  }
}

TEST(Plot, HasAPanelForEachKeyOfOneRunAndOfSeveral) {
  const PlottedRun run = made_up_run(20);
  for (const Chart& chart : {comparison_chart({run}), comparison_chart({run, run})}) {
    for (const Panel& panel : chart.panels)
      EXPECT_NE(std::ranges::find(kPanelKeys, panel.key), kPanelKeys.end()) << panel.title;
    for (const std::string_view key : kPanelKeys)
      EXPECT_NE(std::ranges::find(chart.panels, key, &Panel::key), chart.panels.end()) << key;
  }
  const auto loads = std::ranges::count(comparison_chart({run, run}).panels, "load", &Panel::key);
  EXPECT_EQ(loads, 2) << "each run's";
}

TEST(Plot, DrawsInTheTerminal) {
  const std::string text = chart_as_text(comparison_chart({made_up_run(50)}), 80, 12);
  EXPECT_NE(text.find("training 2.1"), std::string::npos) << text;
  EXPECT_NE(text.find("Learning rate"), std::string::npos);
  EXPECT_NE(text.find("layer 1"), std::string::npos);
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = text.find('\n', begin);
    EXPECT_LE(end - begin, 90u) << text.substr(begin, end - begin);
    begin = end + 1;
  }
}

TEST(Plot, SaysWhatIsMissing) {
  const Scratch scratch;
  EXPECT_THROW(load_run(scratch.path()), Error);
  write_file(scratch.path() / "metrics.jsonl", "");
  EXPECT_THROW(load_run(scratch.path()), Error);
  write_file(scratch.path() / "metrics.jsonl", "{\"step\": 1}\n{\"step\": \"two\"}\n");
  try {
    load_run(scratch.path());
    FAIL() << "read";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("metrics.jsonl:2"), std::string::npos);
  }
}

TEST(Plot, NamesTheLineWhoseLoadsAreNoTable) {
  const Scratch scratch;
  const auto said = [&](const std::string& load) {
    write_file(scratch.path() / "metrics.jsonl",
               "{\"step\": 1}\n{\"step\": 2, \"router\": {\"load\": " + load +
                   ", \"entropy\": [], \"dead\": 0}}\n");
    return message_of([&] {
      draw_chart(comparison_chart({load_run(scratch.path())}), scratch.path() / "a.svg");
    });
  };
  EXPECT_EQ(said("[]"), "no error");
  EXPECT_EQ(said("[[0.5, 0.5], [1, 0]]"), "no error");
  for (const auto& [load, says] :
       {std::pair("[[]]", "metrics.jsonl:2: router.load[0]: expected the shares of one or more"),
        std::pair("[[1, 0], [1]]", "metrics.jsonl:2: router.load[1]: expected the shares of 2"),
        std::pair("[[1], []]", "metrics.jsonl:2: router.load[1]: expected the shares of 1 ")})
    EXPECT_NE(said(load).find(says), std::string::npos) << said(load);
}

TEST(Metrics, SurviveWritingAndReading) {
  MetricsLine line = made_up_run(10).lines.back();
  line.grad_norm = 0.1 + 0.2;
  line.more = {{"accuracy", 0.75}};
  line.skipped = 2;
  const MetricsLine again = MetricsLine::parse(Json::parse(line.to_json(), "line"));
  EXPECT_EQ(again.to_json(), line.to_json());
  EXPECT_EQ(again.grad_norm, line.grad_norm);
}

}  // namespace
}  // namespace mixtral::testing
