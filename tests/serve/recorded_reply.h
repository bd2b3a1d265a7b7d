#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "serve/http.h"

namespace mixtral::serve {

/// Keeps what a handler answers.
class RecordedReply : public Reply {
 public:
  struct Event {
    std::string name;
    nlohmann::json data;
  };

  void send(HttpResponse whole) override { response = std::move(whole), ended = true; }
  void begin(HttpResponse head) override { response = std::move(head), begun = true; }
  bool write(std::string_view part) override {
    response.body += part;
    return true;
  }
  void end() override { ended = true; }
  void on_gone(std::function<void()> /*gone*/) override {}

  nlohmann::json json() const { return nlohmann::json::parse(response.body); }

  /// The events of a stream; each must have a name and one line of JSON.
  std::vector<Event> events() const {
    std::vector<Event> all;
    size_t at = 0;
    for (size_t end; (end = response.body.find("\n\n", at)) != std::string::npos; at = end + 2) {
      const std::string event = response.body.substr(at, end - at);
      const size_t line = event.find("\ndata: ");
      all.push_back({event.substr(7, line - 7), nlohmann::json::parse(event.substr(line + 7))});
    }
    return all;
  }

  HttpResponse response;
  bool begun = false, ended = false;
};

}  // namespace mixtral::serve
