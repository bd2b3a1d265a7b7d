#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "client/load_test.h"

namespace mixtral::client {

/// Of a set of times, in milliseconds. Percentiles by the nearest rank.
struct Spread {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, most = 0;
};

/// The spread of values in seconds; all zero where there are none.
Spread spread_of(std::vector<double> seconds);

/// What an answer has to keep to be a good one, in milliseconds; 0: no limit.
struct Limits {
  double first = 0, token = 0;
};

/// The figures of a load test. Times are those of whole answers; tokens also those that clients had
/// read when they left, as they were to.
struct LoadSummary {
  int64_t requests = 0, answered = 0, left = 0;
  std::map<std::string, int64_t> errors;  // by what went wrong
  int64_t prompt_tokens = 0, tokens = 0;
  double seconds = 0;
  double requests_per_second = 0, tokens_per_second = 0, prompt_tokens_per_second = 0;
  Spread first;  // from the request to its first text
  Spread token;  // of each answer: from its first text to its last, by the tokens after the first
  Spread gap;    // between two texts
  Spread whole;  // from the request to the end of its stream
  int64_t good = 0;    // answers within the limits
  double goodput = 0;  // of these a second
};

LoadSummary summarize(const LoadResults& results, const Limits& limits);

}  // namespace mixtral::client
