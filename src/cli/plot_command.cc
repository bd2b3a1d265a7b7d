#include "cli/plot_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "base/messages.h"
#include "plot/run_plot.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPlotExamples =
    "Examples:\n"
    "  mixtral plot runs/first                      writes runs/first/plots.svg\n"
    "  mixtral plot runs/a runs/b --out ab.png      compares two runs\n"
    "  mixtral plot runs/first --ascii              draws in the terminal\n"
    "  mixtral plot runs/first --panels loss,load   leaves out the rest\n";

struct PlotOptions {
  std::vector<std::string> runs;
  std::string out;
  std::vector<std::string> panels;
  bool ascii = false;
  int width = 100, height = 20;
};

/// Where the plot goes if nobody says: into the first run.
fs::path default_path(const PlotOptions& o) {
  const fs::path first(o.runs[0]);
  const fs::path folder = fs::is_directory(first) ? first : first.parent_path();
  return folder / (o.runs.size() == 1 ? "plots.svg" : "comparison.svg");
}

void plot(const PlotOptions& o) {
  std::vector<PlottedRun> runs;
  runs.reserve(o.runs.size());
  for (const std::string& path : o.runs) runs.push_back(load_run(path));
  // Runs of the same name are told apart by their whole paths.
  for (size_t i = 0; i < runs.size(); ++i) {
    const auto same = std::ranges::count(runs, runs[i].name, &PlottedRun::name);
    if (same > 1) runs[i].name = o.runs[i];
  }
  Chart chart = comparison_chart(runs);
  if (!o.panels.empty())
    std::erase_if(chart.panels, [&](const Panel& panel) {
      return std::ranges::find(o.panels, panel.key) == o.panels.end();
    });
  if (chart.panels.empty())
    throw Error(fmt::format("the metrics of {} have nothing for the panels {}; leave out --panels",
                            fmt::join(o.runs, ", "), fmt::join(o.panels, ", ")));
  if (o.ascii) {
    fmt::print("{}", chart_as_text(chart, o.width, o.height));
    if (o.out.empty()) return;
  }
  const fs::path path = o.out.empty() ? default_path(o) : fs::path(o.out);
  draw_chart(chart, path);
  messages::print("wrote {}", path.string());
}

}  // namespace

void add_plot_command(cli::App& app) {
  cli::App* command = app.add_subcommand(
      "plot", "Draw runs: losses, learning rate, speed, gradient norm, and the experts' load");
  command->footer(kPlotExamples);
  auto options = std::make_shared<PlotOptions>();
  command->add_option("runs", options->runs, "Run directories (or metrics.jsonl files)")
      ->required();
  command->add_option("-o,--out", options->out, "A .svg or .png file (default: in the first run)");
  command->add_option("--panels", options->panels, "Draw these only")
      ->delimiter(',')
      ->check(cli::IsMember(std::vector<std::string>(kPanelKeys.begin(), kPanelKeys.end())));
  command->add_flag("--ascii", options->ascii, "Draw with characters on stdout");
  command->add_option("--width", options->width, "Characters a line, with --ascii")
      ->capture_default_str()
      ->check(cli::Range(40, 400));
  command->add_option("--height", options->height, "Lines a panel, with --ascii")
      ->capture_default_str()
      ->check(cli::Range(5, 100));
  command->callback([options] { plot(*options); });
}

}  // namespace mixtral
