#include "serve/responses.h"

#include <ctime>

#include "serve/fields.h"
#include "serve/model_route.h"
#include "serve/openai_fields.h"
#include "serve/openai_json.h"
#include "serve/server_sent_events.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

/// An answer as a "response" object. It grows item by item; with `stream`, each growth is an event.
class ResponseAnswer : public ChatAnswer {
 public:
  ResponseAnswer(std::shared_ptr<Reply> reply, const std::string& model,
                 const ResponsesRequest& request)
      : ChatAnswer(reply), stream_(request.stream), events_(std::move(reply)) {
    response_ = {{"id", "resp_" + random_id()},
                 {"object", "response"},
                 {"created_at", static_cast<int64_t>(std::time(nullptr))},
                 {"status", "in_progress"},
                 {"background", false},
                 {"error", nullptr},
                 {"incomplete_details", nullptr},
                 {"model", model},
                 {"output", ordered_json::array()},
                 {"usage", nullptr}};
    response_.update(request.echoed);
  }

 private:
  void send(std::string_view type, const ordered_json& fields) {
    if (!stream_) return;
    ordered_json event = {{"type", type}, {"sequence_number", events_sent_++}};
    event.update(fields);
    events_.send(to_line(event), type);
  }

  ordered_json& item() { return response_["output"].back(); }
  ordered_json place() const {
    return {{"item_id", response_["output"].back()["id"]},
            {"output_index", response_["output"].size() - 1}};
  }
  ordered_json place_with(const ordered_json& fields) const {
    ordered_json all = place();
    all.update(fields);
    return all;
  }
  ordered_json with_item() {
    return {{"output_index", response_["output"].size() - 1}, {"item", item()}};
  }
  /// The part of a message's text. There is one in each message.
  static ordered_json part_of(const std::string& text) {
    return {{"type", "output_text"},
            {"annotations", ordered_json::array()},
            {"logprobs", ordered_json::array()},
            {"text", text}};
  }

  void begin(int64_t prompt_tokens) override {
    prompt_tokens_ = prompt_tokens;
    send("response.created", {{"response", response_}});
    send("response.in_progress", {{"response", response_}});
  }

  void open_message() {
    close("completed");
    open_ = Open::message;
    response_["output"].push_back({{"id", "msg_" + random_id()},
                                   {"type", "message"},
                                   {"status", "in_progress"},
                                   {"role", "assistant"},
                                   {"content", ordered_json::array()}});
    send("response.output_item.added", with_item());
    send("response.content_part.added", place_with({{"content_index", 0}, {"part", part_of("")}}));
  }

  void open_call(const ChatDelta::ToolCall& call) {
    close("completed");
    open_ = Open::call;
    response_["output"].push_back({{"id", "fc_" + random_id()},
                                   {"type", "function_call"},
                                   {"status", "in_progress"},
                                   {"call_id", call.id},
                                   {"name", call.name},
                                   {"arguments", ""}});
    send("response.output_item.added", with_item());
  }

  /// Ends the item that is open, if one is.
  void close(std::string_view status) {
    if (open_ == Open::none) return;
    item()["status"] = status;
    if (open_ == Open::message) {
      item()["content"].push_back(part_of(text_));
      send(
          "response.output_text.done",
          place_with({{"content_index", 0}, {"text", text_}, {"logprobs", ordered_json::array()}}));
      send("response.content_part.done",
           place_with({{"content_index", 0}, {"part", part_of(text_)}}));
    } else {
      item()["arguments"] = text_;
      send("response.function_call_arguments.done",
           place_with({{"name", item()["name"]}, {"arguments", text_}}));
    }
    send("response.output_item.done", with_item());
    text_.clear();
    open_ = Open::none;
  }

  void add(const ChatDelta& part) override {
    if (!part.content.empty()) {
      if (open_ != Open::message) open_message();
      text_ += part.content;
      send("response.output_text.delta", place_with({{"content_index", 0},
                                                     {"delta", part.content},
                                                     {"logprobs", ordered_json::array()}}));
    }
    for (const ChatDelta::ToolCall& call : part.tool_calls) {
      if (!call.id.empty()) open_call(call);
      if (call.arguments.empty()) continue;
      text_ += call.arguments;
      send("response.function_call_arguments.delta", place_with({{"delta", call.arguments}}));
    }
  }

  void finish(const ChatFinish& finish) override {
    const bool cut = finish.reason == ChatFinish::Reason::length;
    const std::string status = cut ? "incomplete" : "completed";
    if (response_["output"].empty()) open_message();
    close(status);
    response_["status"] = status;
    if (cut) response_["incomplete_details"] = {{"reason", "max_output_tokens"}};
    response_["usage"] = {{"input_tokens", prompt_tokens_},
                          {"input_tokens_details", {{"cached_tokens", finish.cached_tokens}}},
                          {"output_tokens", finish.tokens},
                          {"output_tokens_details", {{"reasoning_tokens", 0}}},
                          {"total_tokens", prompt_tokens_ + finish.tokens}};
    if (stream_) {
      send("response." + status, {{"response", response_}});
      events_.end();
    } else {
      reply().send(json_response(response_));
    }
  }

  void fail(const ApiError& error) override {
    if (!stream_) {
      reply().send(openai_error(error));
      return;
    }
    response_["status"] = "failed";
    response_["error"] = {{"code", "server_error"}, {"message", error.what()}};
    send("response.failed", {{"response", response_}});
    events_.end();
  }

  enum class Open { none, message, call };

  bool stream_;
  EventStream events_;
  ordered_json response_;
  Open open_ = Open::none;
  std::string text_;  // of the open item: its text or arguments
  int64_t events_sent_ = 0, prompt_tokens_ = 0;
};

}  // namespace

std::shared_ptr<ChatAnswer> make_response(std::shared_ptr<Reply> reply, const std::string& model,
                                          const ResponsesRequest& request) {
  return std::make_shared<ResponseAnswer>(std::move(reply), model, request);
}

namespace {

void answer_response(Service& service, const Json& body, const HttpHead& head,
                     const std::shared_ptr<Reply>& reply) {
  ResponsesRequest request = read_responses_request(body);
  request.chat.client = client_of(head);
  const std::string model = service.model(request.chat.model).id;
  ChatAnswer::start(service, request.chat, make_response(reply, model, request));
}

}  // namespace

void add_responses_routes(Router& router, Models& models) {
  add_model_route(router, models, "/v1/responses", answer_response);
}

}  // namespace mixtral::serve
