#include "serve/server_sent_events.h"

#include "base/error.h"

namespace mixtral::serve {

bool EventStream::send(std::string_view data, std::string_view event) {
  CHECK(data.find('\n') == std::string_view::npos, "an event's data is one line");
  if (!begun_) {
    begun_ = true;
    reply_->begin({.headers = {{"Content-Type", "text/event-stream; charset=utf-8"},
                               {"Cache-Control", "no-cache"},
                               // Reverse proxies hold answers back otherwise.
                               {"X-Accel-Buffering", "no"}}});
  }
  std::string text;
  text.reserve(data.size() + event.size() + 20);
  if (!event.empty()) text.append("event: ").append(event).append("\n");
  text.append("data: ").append(data).append("\n\n");
  return reply_->write(text);
}

void EventStream::end() { reply_->end(); }

}  // namespace mixtral::serve
