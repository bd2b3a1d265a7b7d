#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "plot/chart_layout.h"

namespace mixtral {
namespace {

using detail::Limits;

constexpr std::string_view kMarks = "*o+x#@%&";
constexpr std::string_view kShades = " .:-=+*#%@";

/// Lines of characters to draw into.
struct Canvas {
  int width = 0;
  std::vector<std::string> rows;

  Canvas(int w, int h)
      : width(w), rows(static_cast<size_t>(h), std::string(static_cast<size_t>(w), ' ')) {}
  void set(int x, int y, char mark) {
    if (x >= 0 && x < width && y >= 0 && y < static_cast<int>(rows.size()))
      rows[static_cast<size_t>(y)][static_cast<size_t>(x)] = mark;
  }
};

void draw_curve(Canvas& canvas, const Limits& limits, const Curve& curve, char mark) {
  const int height = static_cast<int>(canvas.rows.size());
  auto column = [&](double x) {
    return (x - limits.left) / (limits.right - limits.left) * (canvas.width - 1);
  };
  auto row = [&](double y) {
    const double place = (limits.top - y) / (limits.top - limits.bottom) * (height - 1);
    return static_cast<int>(std::lround(std::clamp(place, -1.0, static_cast<double>(height))));
  };
  for (size_t i = 0; i < curve.points.size(); ++i) {
    const auto& [x, y] = curve.points[i];
    if (!std::isfinite(y)) continue;
    canvas.set(static_cast<int>(std::lround(column(x))), row(y), mark);
    if (i + 1 == curve.points.size() || !std::isfinite(curve.points[i + 1].second)) continue;
    // The columns in between, in a straight line.
    const auto& [next_x, next_y] = curve.points[i + 1];
    const double begin = column(x), end = column(next_x);
    for (double c = std::ceil(begin); c < end; ++c)
      canvas.set(static_cast<int>(c), row(y + (next_y - y) * (c - begin) / (end - begin)), mark);
  }
}

void draw_heat(Canvas& canvas, const HeatMap& map) {
  const auto rows = map.values.size(), columns = map.x.size();
  if (columns == 0) return;
  for (size_t r = 0; r < rows && r < canvas.rows.size(); ++r) {
    for (int c = 0; c < canvas.width; ++c) {
      const size_t source = static_cast<size_t>(c) * columns / static_cast<size_t>(canvas.width);
      const double share = map.extreme > 0 ? map.values[r][source] / map.extreme : 0;
      if (!std::isfinite(share)) continue;  // no figure: left blank
      const auto level = static_cast<size_t>(std::clamp(share, 0.0, 1.0) * 9.0);
      canvas.set(c, static_cast<int>(r), kShades[level]);
    }
  }
}

/// Round numbers, each beside the row that is nearest to it.
std::vector<std::string> tick_labels(const Limits& limits, size_t rows) {
  std::vector<std::string> labels(rows);
  const auto last = static_cast<double>(rows - 1);
  for (const double tick : axis_ticks(limits.bottom, limits.top, static_cast<int>(rows / 4) + 1)) {
    const double row = (limits.top - tick) / (limits.top - limits.bottom) * last;
    labels[static_cast<size_t>(std::lround(std::clamp(row, 0.0, last)))] = axis_label(tick);
  }
  return labels;
}

std::string panel_as_text(const Panel& panel, int width, int height) {
  const Limits limits = detail::find_limits(panel);
  const bool is_heat = !panel.heat.values.empty();
  constexpr int kMargin = 10;
  Canvas canvas(std::max(width - kMargin, 10),
                is_heat ? static_cast<int>(panel.heat.values.size()) : height);
  std::string legend;
  size_t mark = 0;
  if (is_heat) {
    draw_heat(canvas, panel.heat);
    legend = fmt::format("  \"{}\": {} to {} ({})\n", kShades, panel.heat.low_label,
                         panel.heat.extreme_label, panel.heat.neutral_label);
  }
  for (const Curve& curve : panel.curves) {
    if (curve.label.empty() && curve.style == Curve::Style::faint) continue;
    const char c = kMarks[mark++ % kMarks.size()];
    draw_curve(canvas, limits, curve, c);
    if (!curve.label.empty()) legend += fmt::format("  {} {}\n", c, curve.label);
  }
  std::string text = panel.title + "\n" + legend;
  const auto labels = is_heat ? panel.heat.row_labels : tick_labels(limits, canvas.rows.size());
  for (size_t r = 0; r < canvas.rows.size(); ++r) {
    std::string label = r < labels.size() ? labels[r] : "";
    if (label.empty() && r < panel.heat.fine_labels.size()) label = panel.heat.fine_labels[r];
    text += fmt::format("{:>{}} |{}\n", label, kMargin - 2, canvas.rows[r]);
  }
  const std::string left = axis_label(limits.left), right = axis_label(limits.right);
  const auto room = static_cast<size_t>(canvas.width);
  text += std::string(kMargin - 1, ' ') + "+" + std::string(room, '-') + "\n";
  std::string axis = std::string(kMargin, ' ') + left;
  const std::string middle = panel.x_label;
  const size_t middle_at = kMargin + room / 2 - std::min(room / 2, middle.size() / 2);
  if (axis.size() < middle_at) axis += std::string(middle_at - axis.size(), ' ') + middle;
  const size_t right_at = kMargin + room - std::min(room, right.size());
  if (axis.size() < right_at) axis += std::string(right_at - axis.size(), ' ');
  return text + axis + right + "\n";
}

}  // namespace

std::string chart_as_text(const Chart& chart, int width, int height) {
  std::string text;
  for (const std::string& line : {chart.title, chart.subtitle})
    if (!line.empty()) text += fmt::format("{}\n", line);
  for (const Panel& panel : chart.panels)
    text += fmt::format("\n{}", panel_as_text(panel, width, height));
  return text;
}

}  // namespace mixtral
