#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace mixtral::client {

/// Cuts the data of events out of a stream (text/event-stream, HTML standard 9.2). Names, ids and
/// comments are left out. One event has at most 16 MiB.
class EventReader {
 public:
  using Handler = std::function<void(std::string_view data)>;

  /// Takes some bytes and calls `on_event` for each event that they complete. Throws Error where an
  /// event is longer than that.
  void push(std::string_view bytes, const Handler& on_event);

 private:
  void take_line(std::string_view line, const Handler& on_event);

  std::string line_;  // that has not ended yet
  std::string data_;  // of the event so far
  bool any_ = false;  // whether it has data
};

}  // namespace mixtral::client
