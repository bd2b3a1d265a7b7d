#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "cli/bench_ceilings.h"
#include "ops/profiler.h"

namespace mixtral {

/// One figure, as a line and in the JSON object.
class Report {
 public:
  explicit Report(bool as_json) : as_json_(as_json) {}
  void line(const std::string& key, const std::string& text, double value);
  nlohmann::ordered_json& json() { return json_; }
  bool as_json() const { return as_json_; }

 private:
  bool as_json_;
  nlohmann::ordered_json json_;
};

void report_ceilings(Report& report, const Ceilings& ceilings);
/// Tokens a second, and the operations of the model that they come to.
void report_rate(Report& report, const Ceilings& ceilings, double seconds, double tokens,
                 double flops_per_token);
/// A table of the ops of one step, those that take longest first.
void report_profile(Report& report, const Ceilings& ceilings, const Profiler& profiler);

}  // namespace mixtral
