#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "serve/http.h"

namespace mixtral::serve {

/// An answer as a stream of events (text/event-stream). The head is sent with the first event, so
/// that an error before it can still be a plain answer.
class EventStream {
 public:
  explicit EventStream(std::shared_ptr<Reply> reply) : reply_(std::move(reply)) {}

  /// One event with data of one line, and a name where it has one. Returns false when nobody reads.
  bool send(std::string_view data, std::string_view event = {});
  void end();
  bool begun() const { return begun_; }
  Reply& reply() const { return *reply_; }

 private:
  std::shared_ptr<Reply> reply_;
  bool begun_ = false;
};

}  // namespace mixtral::serve
