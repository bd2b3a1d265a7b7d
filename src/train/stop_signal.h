#pragma once

namespace mixtral {

/// While it exists, SIGINT, SIGTERM and SIGHUP are remembered instead of ending the process, so
/// that a loop can finish what it does and save; a second one ends the process at once, with exit
/// status 128 + n. A closed terminal sends SIGHUP more than once, and often SIGTERM after it, so
/// SIGHUP is neither a second signal nor followed by one; under nohup it stays ignored. SIGXFSZ
/// and SIGPIPE are ignored: a file size limit, or a reader that is gone, then shows as a failed
/// write, also of a library that prints to standard error. One at a time.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  /// The signal that arrived, or 0.
  int arrived() const;
};

}  // namespace mixtral
