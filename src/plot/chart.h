#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace mixtral {

/// A colour, each part from 0 to 1.
using Color = std::array<double, 3>;

/// A curve. Points that are no finite numbers leave a gap.
struct Curve {
  enum class Style { line, faint, thin, marked };  // marked: a line with a dot at each point

  std::string label;  // in the legend; empty: not there
  Color color{};
  Style style = Style::line;
  std::vector<std::pair<double, double>> points;
};

/// A grid of shades: how the values of several rows change with x.
struct HeatMap {
  std::vector<double> x;                    // where each column stands
  std::vector<std::vector<double>> values;  // [row][column]
  std::vector<std::string> row_labels;      // beside the first row of a group; empty: none there
  std::vector<std::string> fine_labels;     // beside each row, where there is room; or empty
  double neutral = 0, extreme = 1;          // the value that is white, the one that is darkest
  std::string low_label, neutral_label, extreme_label;  // beside the key: 0, neutral, extreme
};

/// One pair of axes with what is drawn between them.
struct Panel {
  std::string key;  // what it shows, in a word
  std::string title, x_label, y_label;
  std::vector<Curve> curves;
  HeatMap heat;  // instead of curves, where it has rows
  /// The share of the x range, from the left, that need not fit between the y limits: a loss falls
  /// from so high at first that it would press all that follows flat.
  double ignored_start = 0;
  bool from_zero = false;  // whether the y axis begins at 0
  bool wide = false;       // takes the page's whole width
  double height = 0;       // otherwise than the chart's panel_height
};

/// A page of panels.
struct Chart {
  std::string title, subtitle;
  std::vector<Panel> panels;
  int columns = 1;
  double panel_width = 900, panel_height = 520;
};

/// Draws a chart, as SVG or PNG by the path's extension. Throws Error for another one, or when the
/// file cannot be written. The file appears whole or not at all.
void draw_chart(const Chart& chart, const std::filesystem::path& path);

/// The same as text of `width` by `height` characters a panel, for a terminal.
std::string chart_as_text(const Chart& chart, int width = 100, int height = 20);

/// Colours that people with any colour vision can tell apart (Okabe and Ito 2008).
Color palette(size_t i);
/// A colour for item i of n in an order, such as layers: dark to light.
Color sequential_color(size_t i, size_t n);

/// Round numbers in [low, high], about `count` of them.
std::vector<double> axis_ticks(double low, double high, int count);
/// "0.25", "1.5k", "2M"
std::string axis_label(double value);

}  // namespace mixtral
