#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "client/server_address.h"
#include "client/workload.h"

namespace mixtral::client {

/// What became of one request. Times are in seconds from the test's start.
struct Outcome {
  double asked = 0;  // when it was due, or, of a fixed number of clients, when it was sent
  double first = 0;  // when its first text came; 0: none came
  double last = 0;   // when its last text came
  double end = 0;    // when its stream had ended
  int64_t prompt_tokens = 0, tokens = 0;  // as the server counts; texts where it does not
  bool left = false;                      // the client left, as it was to
  std::string error;                      // empty: it was answered
  std::vector<float> gaps;                // seconds between two texts
};

struct LoadOptions {
  ServerAddress server;
  std::string key;       // empty: none
  int64_t clients = 1;   // each sends its next request when its last is answered
  double rate = 0;       // not 0: instead, so many requests a second, at Poisson's intervals
  int64_t requests = 0;  // that are measured; 0: as many as the time allows
  double seconds = 0;    // no request begins later; 0: no limit
  int64_t warmup = 0;    // requests before these, which count for nothing
  double timeout = 600;  // seconds, of one request
  uint64_t seed = 1;     // of the intervals
};

struct LoadResults {
  std::string model;   // that was asked
  double seconds = 0;  // from the start to the last answer's end
  std::vector<Outcome> outcomes;
  int64_t left_out = 0;  // warm-up requests
};

/// Asks a server for many streams at once, and measures how they come. A model without a name in
/// the workload's options is the first that the server lists. `progress` is told how many requests
/// have ended. Throws Error where the server cannot be reached, has no model, or refuses the first
/// request.
LoadResults run_load(const LoadOptions& options, Workload workload,
                     const std::function<void(int64_t ended)>& progress);

}  // namespace mixtral::client
