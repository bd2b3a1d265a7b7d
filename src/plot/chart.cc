#include "plot/chart.h"

#include <cairo-svg.h>
#include <cairo.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/error.h"
#include "base/file.h"
#include "plot/chart_layout.h"

namespace mixtral {
namespace {

using detail::Limits;

constexpr Color kInk{0.13, 0.15, 0.18};
constexpr Color kSoftInk{0.42, 0.45, 0.50};
constexpr Color kGrid{0.90, 0.91, 0.93};
constexpr Color kFrame{0.72, 0.74, 0.78};
constexpr double kFineLabel = 18;  // width

struct Box {
  double left = 0, top = 0, right = 0, bottom = 0;
  double width() const { return right - left; }
  double height() const { return bottom - top; }
};

struct CairoDeleter {
  void operator()(cairo_t* cairo) const { cairo_destroy(cairo); }
  void operator()(cairo_surface_t* surface) const { cairo_surface_destroy(surface); }
};
using Surface = std::unique_ptr<cairo_surface_t, CairoDeleter>;

/// Lines and text on a surface.
class Pen {
 public:
  explicit Pen(cairo_surface_t* surface) : cairo_(cairo_create(surface)) {
    cairo_set_line_join(cairo(), CAIRO_LINE_JOIN_ROUND);
    cairo_set_line_cap(cairo(), CAIRO_LINE_CAP_ROUND);
  }
  cairo_t* cairo() const { return cairo_.get(); }

  void color(const Color& c, double opacity = 1) const {
    cairo_set_source_rgba(cairo(), c[0], c[1], c[2], opacity);
  }
  void line(double x0, double y0, double x1, double y1, double width) const {
    cairo_set_line_width(cairo(), width);
    cairo_move_to(cairo(), x0, y0);
    cairo_line_to(cairo(), x1, y1);
    cairo_stroke(cairo());
  }
  void rectangle(const Box& box) const {
    cairo_rectangle(cairo(), box.left, box.top, box.width(), box.height());
  }
  void dot(double x, double y, double radius) const {
    cairo_arc(cairo(), x, y, radius, 0, 2 * M_PI);
    cairo_fill(cairo());
  }

  void font(double size, bool bold = false) const {
    cairo_select_font_face(cairo(), "DejaVu Sans", CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(cairo(), size);
  }
  double text_width(const std::string& text) const {
    cairo_text_extents_t extents;
    cairo_text_extents(cairo(), text.c_str(), &extents);
    return extents.x_advance;
  }
  /// Text whose baseline starts (align 0), is centred (0.5) or ends (1) at a point.
  void text(const std::string& text, double x, double y, double align = 0) const {
    cairo_move_to(cairo(), x - align * text_width(text), y);
    cairo_show_text(cairo(), text.c_str());
  }
  void upward_text(const std::string& text, double x, double y) const {
    cairo_save(cairo());
    cairo_translate(cairo(), x, y);
    cairo_rotate(cairo(), -M_PI / 2);
    this->text(text, 0, 0, 0.5);
    cairo_restore(cairo());
  }

 private:
  std::unique_ptr<cairo_t, CairoDeleter> cairo_;
};

/// A panel's axes on the page.
class Axes {
 public:
  Axes(const Pen& pen, const Panel& panel, const Box& box)
      : pen_(pen), panel_(panel), limits_(detail::find_limits(panel)), outer_(box) {
    pen_.font(12);
    double label_width = 44;  // at least, so that panels of a column begin at the same place
    if (panel.heat.values.empty()) {
      for (const double tick : y_ticks())
        label_width = std::max(label_width, pen_.text_width(axis_label(tick)));
    } else {
      for (const std::string& label : panel.heat.row_labels)
        label_width = std::max(label_width, pen_.text_width(label));
      if (!panel.heat.fine_labels.empty()) label_width += kFineLabel;
    }
    inner_ = {.left = box.left + label_width + (panel.y_label.empty() ? 16 : 38),
              .top = box.top + (panel.title.empty() ? 10 : 34),
              .right = box.right - 18,
              .bottom = box.bottom - 46};
  }

  void draw() const {
    if (!panel_.title.empty()) {
      pen_.color(kInk);
      pen_.font(14, true);
      pen_.text(panel_.title, inner_.left, outer_.top + 20);
    }
    if (panel_.heat.values.empty()) {
      grid();
      curves();
      legend();
    } else {
      heat();
    }
    frame();
  }

 private:
  double x_at(double value) const {
    return inner_.left + inner_.width() * (value - limits_.left) / (limits_.right - limits_.left);
  }
  double y_at(double value) const {
    return inner_.bottom -
           inner_.height() * (value - limits_.bottom) / (limits_.top - limits_.bottom);
  }
  std::vector<double> x_ticks() const {
    return axis_ticks(limits_.left, limits_.right,
                      std::max(2, static_cast<int>(outer_.width() / 110)));
  }
  std::vector<double> y_ticks() const {
    return axis_ticks(limits_.bottom, limits_.top,
                      std::max(2, static_cast<int>(outer_.height() / 60)));
  }

  void grid() const {
    pen_.font(12);
    for (const double tick : x_ticks()) {
      pen_.color(kGrid);
      pen_.line(x_at(tick), inner_.top, x_at(tick), inner_.bottom, 1);
    }
    for (const double tick : y_ticks()) {
      pen_.color(kGrid);
      pen_.line(inner_.left, y_at(tick), inner_.right, y_at(tick), 1);
      pen_.color(kSoftInk);
      pen_.text(axis_label(tick), inner_.left - 8, y_at(tick) + 4, 1);
    }
  }

  void frame() const {
    pen_.font(12);
    pen_.color(kSoftInk);
    for (const double tick : x_ticks()) {
      pen_.text(axis_label(tick), x_at(tick), inner_.bottom + 18, 0.5);
      pen_.line(x_at(tick), inner_.bottom, x_at(tick), inner_.bottom + 4, 1);
    }
    pen_.text(panel_.x_label, 0.5 * (inner_.left + inner_.right), inner_.bottom + 38, 0.5);
    if (!panel_.y_label.empty())
      pen_.upward_text(panel_.y_label, outer_.left + 14, 0.5 * (inner_.top + inner_.bottom));
    pen_.color(kFrame);
    pen_.line(inner_.left, inner_.bottom, inner_.right, inner_.bottom, 1.2);
    pen_.line(inner_.left, inner_.top, inner_.left, inner_.bottom, 1.2);
  }

  void curves() const {
    cairo_t* cairo = pen_.cairo();
    cairo_save(cairo);
    pen_.rectangle({inner_.left, inner_.top - 3, inner_.right + 4, inner_.bottom + 3});
    cairo_clip(cairo);
    for (const Curve& curve : panel_.curves) {
      const bool faint = curve.style == Curve::Style::faint;
      pen_.color(curve.color, faint ? 0.28 : 1);
      cairo_set_line_width(cairo, faint ? 1 : curve.style == Curve::Style::thin ? 1.4 : 2.2);
      bool open = false;
      for (const auto& [x, y] : curve.points) {
        if (!std::isfinite(y)) {
          open = false;
          continue;
        }
        // What lies far outside is cut off here: huge coordinates upset renderers.
        const double place = std::clamp(y_at(y), inner_.top - 2000, inner_.bottom + 2000);
        open ? cairo_line_to(cairo, x_at(x), place) : cairo_move_to(cairo, x_at(x), place);
        open = true;
      }
      cairo_stroke(cairo);
      if (curve.style != Curve::Style::marked || curve.points.size() > 150) continue;
      for (const auto& [x, y] : curve.points) {
        if (!std::isfinite(y) || y_at(y) < inner_.top - 3) continue;
        pen_.color({1, 1, 1});
        pen_.dot(x_at(x), y_at(y), 4.6);
        pen_.color(curve.color);
        pen_.dot(x_at(x), y_at(y), 3.4);
      }
    }
    cairo_restore(cairo);
  }

  void legend() const {
    constexpr double kLine = 20;
    pen_.font(12);
    double width = 0, count = 0;
    for (const Curve& curve : panel_.curves) {
      if (curve.label.empty()) continue;
      width = std::max(width, pen_.text_width(curve.label));
      ++count;
    }
    if (count == 0) return;
    const Box box = emptiest_corner(width + 50, count * kLine + 10);
    pen_.color({1, 1, 1}, 0.88);
    pen_.rectangle(box);
    cairo_fill(pen_.cairo());
    double y = box.top + 5 + kLine / 2;
    for (const Curve& curve : panel_.curves) {
      if (curve.label.empty()) continue;
      const bool faint = curve.style == Curve::Style::faint;
      pen_.color(curve.color, faint ? 0.4 : 1);
      pen_.line(box.left + 10, y, box.left + 34, y, faint ? 1.4 : 2.4);
      if (curve.style == Curve::Style::marked) pen_.dot(box.left + 22, y, 3.6);
      pen_.color(kInk);
      pen_.text(curve.label, box.left + 42, y + 4);
      y += kLine;
    }
  }

  /// Of the places for a legend of this size, the one that hides the fewest points.
  Box emptiest_corner(double width, double height) const {
    constexpr double kGap = 6;
    const double right = inner_.right - width - kGap, left = inner_.left + kGap;
    const double top = inner_.top + kGap, bottom = inner_.bottom - height - kGap;
    Box best;
    int64_t fewest = -1;
    for (const auto& [x, y] :
         {std::pair{right, top}, {left, top}, {right, bottom}, {left, bottom}}) {
      const Box box{x, y, x + width, y + height};
      int64_t hidden = 0;
      for (const Curve& curve : panel_.curves)
        for (const auto& [px, py] : curve.points) {
          const double cx = x_at(px), cy = y_at(py);
          hidden += cx > box.left && cx < box.right && cy > box.top && cy < box.bottom;
        }
      if (fewest >= 0 && hidden >= fewest) continue;
      fewest = hidden;
      best = box;
    }
    return best;
  }

  void heat() const {
    const HeatMap& map = panel_.heat;
    const double rows = static_cast<double>(map.values.size());
    const double height = inner_.height() / rows;
    cairo_t* cairo = pen_.cairo();
    cairo_save(cairo);
    cairo_set_antialias(cairo, CAIRO_ANTIALIAS_NONE);
    for (size_t r = 0; r < map.values.size(); ++r) {
      const double top = inner_.top + height * static_cast<double>(r);
      for (size_t c = 0; c < map.x.size() && c < map.values[r].size(); ++c) {
        const double left = c == 0 ? inner_.left : x_at(0.5 * (map.x[c - 1] + map.x[c]));
        const double right =
            c + 1 == map.x.size() ? inner_.right : x_at(0.5 * (map.x[c] + map.x[c + 1]));
        pen_.color(shade(map.values[r][c]));
        pen_.rectangle({left, top, right, top + height});
        cairo_fill(cairo);
      }
    }
    cairo_restore(cairo);
    heat_key();
    const bool fine = height >= 9;
    pen_.font(std::min(height, 10.0));
    pen_.color(kSoftInk);
    for (size_t r = 0; fine && r < map.fine_labels.size(); ++r)
      pen_.text(map.fine_labels[r], inner_.left - 8,
                inner_.top + height * (static_cast<double>(r) + 0.5) + 3.5, 1);
    pen_.font(12);
    for (size_t r = 0; r < map.row_labels.size(); ++r) {
      if (map.row_labels[r].empty()) continue;
      const double top = inner_.top + height * static_cast<double>(r);
      pen_.color({1, 1, 1});
      if (r > 0) pen_.line(inner_.left, top, inner_.right, top, 2);
      pen_.color(kSoftInk);
      pen_.text(map.row_labels[r], inner_.left - (map.fine_labels.empty() ? 8 : 8 + kFineLabel),
                top + 12, 1);
    }
  }

  /// What the shades mean: a bar at the right end of the title's line.
  void heat_key() const {
    const HeatMap& map = panel_.heat;
    if (map.extreme_label.empty()) return;
    constexpr double kStep = 4;
    constexpr int kSteps = 15;  // on either side
    pen_.font(12);
    const double baseline = outer_.top + 20;
    double x = inner_.right - pen_.text_width(map.extreme_label);
    pen_.color(kSoftInk);
    pen_.text(map.extreme_label, x, baseline);
    x -= 6 + kSteps * kStep;
    auto bar = [&](double from, double to) {
      cairo_t* cairo = pen_.cairo();
      cairo_save(cairo);
      cairo_set_antialias(cairo, CAIRO_ANTIALIAS_NONE);
      for (int i = 0; i < kSteps; ++i) {
        pen_.color(shade(from + (to - from) * (i + 0.5) / kSteps));
        pen_.rectangle({x + i * kStep, baseline - 10, x + (i + 1) * kStep, baseline + 2});
        cairo_fill(cairo);
      }
      cairo_restore(cairo);
    };
    bar(map.neutral, map.extreme);
    pen_.color(kSoftInk);
    x -= 6;
    pen_.text(map.neutral_label, x, baseline, 1);
    x -= pen_.text_width(map.neutral_label) + 6 + kSteps * kStep;
    bar(0, map.neutral);
    pen_.color(kSoftInk);
    pen_.text(map.low_label, x - 6, baseline, 1);
  }

  /// White at the neutral value, blue below it, orange above.
  Color shade(double value) const {
    const HeatMap& map = panel_.heat;
    if (!std::isfinite(value)) return {0.5, 0.5, 0.5};
    const bool above = value >= map.neutral;
    const double range = above ? map.extreme - map.neutral : map.neutral;
    const double depth =
        range > 0 ? std::clamp(std::abs(value - map.neutral) / range, 0.0, 1.0) : 0;
    const Color full = above ? Color{0.80, 0.28, 0.00} : Color{0.00, 0.35, 0.65};
    Color color;
    for (size_t c = 0; c < 3; ++c) color[c] = 1 - depth * (1 - full[c]);
    return color;
  }

  const Pen& pen_;
  const Panel& panel_;
  Limits limits_;
  Box outer_, inner_;
};

struct Page {
  double width = 0, height = 0;
  std::vector<Box> panels;
};

/// Panels from left to right in rows; a wide one has a row of its own.
Page page_of(const Chart& chart) {
  const bool one = chart.panels.size() == 1 && !chart.panels[0].wide;
  const int columns = one ? 1 : std::max(chart.columns, 1);
  Page page{.width = columns * chart.panel_width + 24, .height = 0, .panels = {}};
  double top = chart.title.empty() ? 12 : chart.subtitle.empty() ? 52 : 72;
  double row_height = 0;
  int column = 0;
  auto end_row = [&] {
    top += row_height;
    row_height = 0;
    column = 0;
  };
  for (const Panel& panel : chart.panels) {
    if (panel.wide || column == columns) end_row();
    const double left = 20 + chart.panel_width * column;
    const double width = (panel.wide ? columns : 1) * chart.panel_width;
    const double height = panel.height > 0 ? panel.height : chart.panel_height;
    page.panels.push_back({left, top, left + width - 16, top + height - 8});
    row_height = std::max(row_height, height);
    column = panel.wide ? columns : column + 1;
  }
  end_row();
  page.height = top + 8;
  return page;
}

void draw(const Chart& chart, const Page& page, cairo_surface_t* surface) {
  const Pen pen(surface);
  pen.color({1, 1, 1});
  cairo_paint(pen.cairo());
  pen.color(kInk);
  pen.font(19, true);
  pen.text(chart.title, 24, 36);
  pen.color(kSoftInk);
  pen.font(12.5);
  pen.text(chart.subtitle, 24, 58);
  for (size_t i = 0; i < chart.panels.size(); ++i)
    Axes(pen, chart.panels[i], page.panels[i]).draw();
}

cairo_status_t append(void* closure, const unsigned char* data, unsigned int length) {
  static_cast<std::string*>(closure)->append(reinterpret_cast<const char*>(data), length);
  return CAIRO_STATUS_SUCCESS;
}

void require_success(cairo_status_t status, const std::filesystem::path& path) {
  if (status != CAIRO_STATUS_SUCCESS)
    throw Error(fmt::format("cannot draw {}: {}", path.string(), cairo_status_to_string(status)));
}

}  // namespace

void draw_chart(const Chart& chart, const std::filesystem::path& path) {
  const Page page = page_of(chart);
  std::string bytes;
  if (path.extension() == ".svg") {
    const Surface surface(
        cairo_svg_surface_create_for_stream(append, &bytes, page.width, page.height));
    draw(chart, page, surface.get());
    cairo_surface_finish(surface.get());
    require_success(cairo_surface_status(surface.get()), path);
  } else if (path.extension() == ".png") {
    constexpr double kScale = 2;  // sharp on dense screens
    const Surface surface(cairo_image_surface_create(CAIRO_FORMAT_RGB24,
                                                     static_cast<int>(page.width * kScale),
                                                     static_cast<int>(page.height * kScale)));
    cairo_surface_set_device_scale(surface.get(), kScale, kScale);
    draw(chart, page, surface.get());
    require_success(cairo_surface_write_to_png_stream(surface.get(), append, &bytes), path);
  } else {
    throw UsageError(fmt::format("{}: expected a name that ends in .svg or .png", path.string()));
  }
  write_file(path, bytes);
}

}  // namespace mixtral
