#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "plot/chart.h"
#include "train/metrics.h"

namespace mixtral {

/// A run's metrics under a name.
struct PlottedRun {
  std::string name;
  std::vector<MetricsLine> lines;
};

/// A run's metrics from its directory, or from a metrics file. Throws Error when there are none.
PlottedRun load_run(const std::filesystem::path& path);

/// Training loss (each line, and smoothed) and validation loss over the steps.
Chart loss_chart(const PlottedRun& run);

/// Runs side by side: losses, learning rate, speed, gradient norm, and the routers' balance; for
/// one run also each layer's entropy and every expert's load over time.
Chart comparison_chart(const std::vector<PlottedRun>& runs);
/// The keys that its panels have.
inline constexpr std::array<std::string_view, 7> kPanelKeys{"loss",    "lr",      "speed", "norm",
                                                            "balance", "entropy", "load"};

/// Redraws RUN/loss.svg and RUN/loss.png from RUN/metrics.jsonl.
void draw_loss(const std::filesystem::path& run);

}  // namespace mixtral
