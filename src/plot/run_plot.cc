#include "plot/run_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "base/error.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kIgnoredStart = 0.03;  // of the steps, when a loss plot's limits are chosen
constexpr size_t kHeatColumns = 160;
constexpr double kHeatRow = 12;  // height

using Points = std::vector<std::pair<double, double>>;

Points points(const std::vector<MetricsLine>& lines,
              const std::function<double(const MetricsLine&)>& value) {
  Points result;
  for (const MetricsLine& line : lines)
    result.emplace_back(static_cast<double>(line.step), value(line));
  return result;
}

Points validation_points(const std::vector<MetricsLine>& lines) {
  Points result;
  for (const MetricsLine& line : lines)
    if (line.val_loss) result.emplace_back(static_cast<double>(line.step), *line.val_loss);
  return result;
}

/// The mean of the points around each one, over about a thirtieth of the curve. Where the curve
/// begins, steeply, only as many on either side as there are before: nothing is shifted.
Points smoothed(const Points& raw) {
  const auto count = static_cast<int64_t>(raw.size());
  Points result;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t before = std::min(count / 60, i);
    double sum = 0;
    int64_t finite = 0;
    for (int64_t j = i - before; j <= std::min(i + before, count - 1); ++j) {
      const double y = raw[static_cast<size_t>(j)].second;
      if (!std::isfinite(y)) continue;
      sum += y;
      ++finite;
    }
    result.emplace_back(raw[static_cast<size_t>(i)].first,
                        finite > 0 ? sum / static_cast<double>(finite) : kNaN);
  }
  return result;
}

double last_finite(const Points& curve) {
  for (auto point = curve.rbegin(); point != curve.rend(); ++point)
    if (std::isfinite(point->second)) return point->second;
  return kNaN;
}

std::string validation_label(const Points& validation) {
  const auto best =
      std::ranges::min_element(validation, {}, [](const auto& point) { return point.second; });
  const double last = validation.back().second;
  if (best->second == last) return fmt::format("validation {:.4g}", last);
  return fmt::format("validation {:.4g} (best {:.4g} at {})", last, best->second,
                     static_cast<int64_t>(best->first));
}

void add_losses(Panel& panel, const PlottedRun& run, const std::string& prefix, const Color& train,
                const Color& validation, bool raw) {
  const Points losses = points(run.lines, [](const MetricsLine& l) { return l.train_loss; });
  const Points smooth = smoothed(losses);
  if (raw)
    panel.curves.push_back(
        {.label = "", .color = train, .style = Curve::Style::faint, .points = losses});
  panel.curves.push_back({.label = fmt::format("{}training {:.4g}", prefix, last_finite(smooth)),
                          .color = train,
                          .style = raw ? Curve::Style::line : Curve::Style::thin,
                          .points = smooth});
  const Points checks = validation_points(run.lines);
  if (checks.empty()) return;
  panel.curves.push_back({.label = prefix + validation_label(checks),
                          .color = validation,
                          .style = Curve::Style::marked,
                          .points = checks});
}

Panel loss_panel() {
  return {.key = "loss",
          .title = "",
          .x_label = "step",
          .y_label = "loss (nats a token)",
          .curves = {},
          .heat = {},
          .ignored_start = kIgnoredStart,
          .from_zero = false};
}

/// The largest share of a layer's assignments that one expert has, relative to an even split.
double imbalance(const std::vector<double>& load) {
  return *std::ranges::max_element(load) * static_cast<double>(load.size());
}

double mean(const std::vector<double>& values) {
  return values.empty() ? kNaN
                        : std::accumulate(values.begin(), values.end(), 0.0) /
                              static_cast<double>(values.size());
}

/// One curve a run of some figure of each line.
Panel simple_panel(const std::vector<PlottedRun>& runs, std::string key, std::string title,
                   const std::function<double(const MetricsLine&)>& value) {
  Panel panel;
  panel.key = std::move(key);
  panel.title = std::move(title);
  panel.x_label = "step";
  panel.from_zero = true;
  for (size_t i = 0; i < runs.size(); ++i)
    panel.curves.push_back({.label = runs.size() > 1 ? runs[i].name : "",
                            .color = palette(i),
                            .style = Curve::Style::thin,
                            .points = points(runs[i].lines, value)});
  return panel;
}

/// One curve a layer.
Panel layer_panel(const PlottedRun& run, std::string key, std::string title, size_t layers,
                  const std::function<double(const RouterFigures&, size_t)>& value) {
  Panel panel;
  panel.key = std::move(key);
  panel.title = std::move(title);
  panel.x_label = "step";
  panel.from_zero = true;
  for (size_t layer = 0; layer < layers; ++layer) {
    const bool labelled = layers <= 8 || layer == 0 || layer + 1 == layers;
    panel.curves.push_back({.label = labelled ? fmt::format("layer {}", layer) : "",
                            .color = sequential_color(layer, layers),
                            .style = Curve::Style::thin,
                            .points = points(run.lines, [&](const MetricsLine& line) {
                              return line.router && layer < line.router->load.size()
                                         ? value(*line.router, layer)
                                         : kNaN;
                            })});
  }
  return panel;
}

size_t layers_of(const PlottedRun& run) {
  size_t layers = 0;
  for (const MetricsLine& line : run.lines)
    if (line.router) layers = std::max(layers, line.router->load.size());
  return layers;
}

size_t experts_of(const PlottedRun& run) {
  for (const MetricsLine& line : run.lines)
    if (line.router && !line.router->load.empty()) return line.router->load.front().size();
  return 0;
}

/// The entropy of a router that chooses uniformly.
std::string even_entropy(const PlottedRun& run) {
  return fmt::format("even: {:.2f}", std::log(static_cast<double>(experts_of(run))));
}

Panel entropy_panel(const PlottedRun& run, const std::string& prefix) {
  return layer_panel(
      run, "entropy",
      fmt::format("{}Router entropy of a token (nats; {})", prefix, even_entropy(run)),
      layers_of(run), [](const RouterFigures& router, size_t layer) {
        return layer < router.entropy.size() ? router.entropy[layer] : kNaN;
      });
}

/// Shades of each expert's load over time; nothing for a run whose metrics have none.
void add_load_panel(std::vector<Panel>& panels, const PlottedRun& run, const std::string& title) {
  std::vector<const MetricsLine*> lines;
  for (const MetricsLine& line : run.lines)
    if (line.router && !line.router->load.empty()) lines.push_back(&line);
  if (lines.empty()) return;
  Panel panel;
  panel.key = "load";
  panel.title = title;
  panel.x_label = "step";
  panel.wide = true;
  HeatMap& map = panel.heat;
  const auto& first = lines.front()->router->load;
  const size_t experts = first.front().size();
  map.neutral = 1 / static_cast<double>(experts);
  map.extreme = std::min(1.0, 3 * map.neutral);
  map.values.resize(first.size() * experts);
  map.row_labels.resize(first.size() * experts);
  for (size_t layer = 0; layer < first.size(); ++layer)
    map.row_labels[layer * experts] = fmt::format("layer {}", layer);
  for (size_t row = 0; row < map.values.size(); ++row)
    map.fine_labels.push_back(fmt::format("{}", row % experts));
  map.low_label = "0%";
  map.neutral_label = fmt::format("even: {:.4g}%", 100 * map.neutral);
  map.extreme_label =
      fmt::format("{:.4g}%{}", 100 * map.extreme, map.extreme < 1 ? " or more" : "");
  panel.height = std::clamp(kHeatRow * static_cast<double>(map.values.size()) + 90, 300.0, 1000.0);
  const size_t columns = std::min(kHeatColumns, lines.size());
  for (size_t c = 0; c < columns; ++c) {
    // The mean of the lines that fall into this column.
    const size_t begin = c * lines.size() / columns, end = (c + 1) * lines.size() / columns;
    const size_t middle = (begin + end) / 2;
    map.x.push_back(static_cast<double>(lines[middle]->step));
    for (size_t row = 0; row < map.values.size(); ++row) {
      double sum = 0;
      for (size_t i = begin; i < end; ++i) {
        const auto& load = lines[i]->router->load;
        // Lines of one file may be of different models.
        const bool there = row / experts < load.size() && row % experts < load.front().size();
        sum += there ? load[row / experts][row % experts] : kNaN;
      }
      map.values[row].push_back(sum / static_cast<double>(end - begin));
    }
  }
  panels.push_back(std::move(panel));
}

std::string summary(const PlottedRun& run) {
  if (run.lines.empty()) return "no steps yet";
  const MetricsLine& last = run.lines.back();
  std::string text = fmt::format("{} steps, {} tokens", axis_label(static_cast<double>(last.step)),
                                 axis_label(static_cast<double>(last.tokens)));
  if (last.seconds >= 1) {
    const auto seconds = static_cast<int64_t>(last.seconds);
    text += seconds < 120    ? fmt::format(", {} s", seconds)
            : seconds < 7200 ? fmt::format(", {:.1f} minutes", last.seconds / 60)
                             : fmt::format(", {:.1f} hours", last.seconds / 3600);
  }
  return text;
}

}  // namespace

PlottedRun load_run(const fs::path& path) {
  const bool is_directory = fs::is_directory(path);
  const fs::path file = is_directory ? path / "metrics.jsonl" : path;
  if (!fs::exists(file))
    throw Error(
        fmt::format("{}: expected a run directory with metrics.jsonl in it, or a metrics "
                    "file",
                    path.string()));
  const fs::path whole = fs::weakly_canonical(path);
  PlottedRun run{.name = (is_directory ? whole : whole.parent_path()).filename().string(),
                 .lines = read_metrics(file)};
  if (run.lines.empty())
    throw Error(fmt::format("{} has no lines yet: nothing to plot", file.string()));
  return run;
}

Chart loss_chart(const PlottedRun& run) {
  Panel panel = loss_panel();
  add_losses(panel, run, "", palette(0), palette(1), true);
  return {.title = run.name, .subtitle = summary(run), .panels = {std::move(panel)}};
}

Chart comparison_chart(const std::vector<PlottedRun>& runs) {
  Chart chart;
  chart.columns = 2;
  chart.panel_width = 620;
  chart.panel_height = 360;
  for (const PlottedRun& run : runs) chart.title += (chart.title.empty() ? "" : " · ") + run.name;
  if (runs.size() == 1) chart.subtitle = summary(runs[0]);

  Panel losses = loss_panel();
  losses.title = "Loss";
  losses.y_label = "";
  for (size_t i = 0; i < runs.size(); ++i) {
    const bool alone = runs.size() == 1;
    add_losses(losses, runs[i], alone ? "" : runs[i].name + ": ", palette(i),
               alone ? palette(1) : palette(i), alone);
  }
  chart.panels.push_back(std::move(losses));
  chart.panels.push_back(
      simple_panel(runs, "lr", "Learning rate", [](const auto& l) { return l.lr; }));
  chart.panels.push_back(
      simple_panel(runs, "speed", "Tokens a second", [](const auto& l) { return l.tok_per_s; }));
  Panel norms =
      simple_panel(runs, "norm", "Gradient norm", [](const auto& l) { return l.grad_norm; });
  norms.ignored_start = kIgnoredStart;
  chart.panels.push_back(std::move(norms));

  size_t layers = 0;
  for (const PlottedRun& run : runs) layers = std::max(layers, layers_of(run));
  if (layers == 0) return chart;
  const std::string balance = "Busiest expert's load (1: even split)";
  const std::string shares = "each expert's share of its layer's assignments";
  if (runs.size() == 1) {
    chart.panels.push_back(layer_panel(
        runs[0], "balance", balance, layers,
        [](const RouterFigures& router, size_t layer) { return imbalance(router.load[layer]); }));
    chart.panels.push_back(entropy_panel(runs[0], ""));
    add_load_panel(chart.panels, runs[0], "E" + shares.substr(1));
    return chart;
  }
  chart.panels.push_back(
      simple_panel(runs, "balance", balance + ", mean of layers", [](const MetricsLine& line) {
        if (!line.router) return kNaN;
        std::vector<double> values;
        for (const auto& load : line.router->load) values.push_back(imbalance(load));
        return mean(values);
      }));
  chart.panels.push_back(simple_panel(
      runs, "entropy", "Router entropy of a token (nats), mean of layers",
      [](const MetricsLine& line) { return line.router ? mean(line.router->entropy) : kNaN; }));
  for (const PlottedRun& run : runs)
    if (layers_of(run) > 0) chart.panels.push_back(entropy_panel(run, run.name + ": "));
  for (const PlottedRun& run : runs) add_load_panel(chart.panels, run, run.name + ": " + shares);
  return chart;
}

void draw_loss(const fs::path& run) {
  const Chart chart = loss_chart(load_run(run));
  draw_chart(chart, run / "loss.svg");
  draw_chart(chart, run / "loss.png");
}

}  // namespace mixtral
