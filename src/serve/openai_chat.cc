#include "serve/openai_chat.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "serve/openai_fields.h"
#include "serve/openai_json.h"
#include "serve/server_sent_events.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

std::string_view word(ChatFinish::Reason reason) {
  switch (reason) {
    case ChatFinish::Reason::length:
      return "length";
    case ChatFinish::Reason::tool_calls:
      return "tool_calls";
    case ChatFinish::Reason::stop:
      break;
  }
  return "stop";
}

struct ChatAnswerOptions {
  AnswerHead head;
  StreamOptions stream;
  bool logprobs = false, experts = false;
  size_t answers = 1;
};

/// What both ways to answer share.
class ChatAnswer : public ChatListener {
 public:
  ChatAnswer(std::shared_ptr<Reply> reply, const Service& service, ChatAnswerOptions options)
      : reply_(std::move(reply)), service_(service), options_(std::move(options)) {}

 protected:
  void count(const ChatFinish& finish) {
    counts_.completion += finish.tokens;
    counts_.prompt = finish.prompt_tokens;
    cached_ = cached_ ? std::min(*cached_, finish.cached_tokens) : finish.cached_tokens;
  }
  TokenCounts counts() const {
    TokenCounts counts = counts_;
    counts.cached = cached_.value_or(0);
    return counts;
  }
  void add_experts(ordered_json& choice, const std::vector<TokenInfo>& tokens) const {
    if (options_.experts) choice["experts"] = experts_json(tokens, service_.layers());
  }

  std::shared_ptr<Reply> reply_;
  const Service& service_;
  const ChatAnswerOptions options_;

 private:
  TokenCounts counts_;
  std::optional<int64_t> cached_;
};

/// One object when all is done.
class WholeChat : public ChatAnswer {
 public:
  WholeChat(std::shared_ptr<Reply> reply, const Service& service, ChatAnswerOptions options)
      : ChatAnswer(std::move(reply), service, std::move(options)), parts_(options_.answers) {}

  void on_prompt_routes(size_t choice, const std::vector<TokenRoutes>& routes) override {
    add_routes(parts_[choice].prompt_experts, routes, service_.layers());
  }
  void on_delta(size_t choice, const ChatDelta& delta) override {
    Part& part = parts_[choice];
    part.content += delta.content;
    for (const ChatDelta::ToolCall& call : delta.tool_calls) {
      if (part.calls.size() <= call.index) part.calls.resize(call.index + 1);
      ChatDelta::ToolCall& all = part.calls[call.index];
      if (!call.id.empty()) all.id = call.id;
      if (!call.name.empty()) all.name = call.name;
      all.arguments += call.arguments;
    }
    part.tokens.insert(part.tokens.end(), delta.tokens.begin(), delta.tokens.end());
  }
  void on_finish(size_t choice, const ChatFinish& finish) override {
    parts_[choice].finish = finish;
    count(finish);
  }
  void on_done() override {
    ordered_json json = options_.head.json();
    json["choices"] = ordered_json::array();
    for (size_t i = 0; i < parts_.size(); ++i) json["choices"].push_back(choice_json(i));
    json["usage"] = usage_json(counts());
    reply_->send(json_response(json));
  }
  void on_error(const ApiError& error) override { reply_->send(openai_error(error)); }

 private:
  struct Part {
    std::string content;
    std::vector<ChatDelta::ToolCall> calls;
    std::vector<TokenInfo> tokens;
    ordered_json prompt_experts = ordered_json::array();
    ChatFinish finish;
  };

  ordered_json choice_json(size_t index) const {
    const Part& part = parts_[index];
    ordered_json message{{"role", "assistant"}, {"content", part.content}, {"refusal", nullptr}};
    if (!part.calls.empty()) {
      if (part.content.empty()) message["content"] = nullptr;
      message["tool_calls"] = ordered_json::array();
      for (const ChatDelta::ToolCall& call : part.calls)
        message["tool_calls"].push_back(
            {{"id", call.id},
             {"type", "function"},
             {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
    }
    ordered_json choice{{"index", index}, {"message", message}, {"logprobs", nullptr}};
    if (options_.logprobs) choice["logprobs"] = chat_logprobs(service_.tokenizer(), part.tokens);
    choice["finish_reason"] = word(part.finish.reason);
    add_experts(choice, part.tokens);
    if (!part.prompt_experts.empty()) choice["prompt_experts"] = part.prompt_experts;
    return choice;
  }

  std::vector<Part> parts_;
};

/// A chunk for each part.
class StreamedChat : public ChatAnswer {
 public:
  StreamedChat(std::shared_ptr<Reply> reply, const Service& service, ChatAnswerOptions options)
      : ChatAnswer(reply, service, std::move(options)),
        events_(std::move(reply)),
        begun_(options_.answers, false) {}

  void on_prompt_routes(size_t choice, const std::vector<TokenRoutes>& routes) override {
    begin(choice);
    ordered_json item = item_json(choice, ordered_json::object(), nullptr);
    item["prompt_experts"] = ordered_json::array();
    add_routes(item["prompt_experts"], routes, service_.layers());
    send(std::move(item));
  }
  void on_delta(size_t choice, const ChatDelta& delta) override {
    begin(choice);
    ordered_json json = ordered_json::object();
    if (!delta.content.empty() || delta.tool_calls.empty()) json["content"] = delta.content;
    if (!delta.tool_calls.empty()) {
      json["tool_calls"] = ordered_json::array();
      for (const ChatDelta::ToolCall& call : delta.tool_calls)
        json["tool_calls"].push_back(call_json(call));
    }
    send(choice, json, nullptr, delta.tokens);
  }
  void on_finish(size_t choice, const ChatFinish& finish) override {
    begin(choice);
    count(finish);
    send(choice, ordered_json::object(), word(finish.reason), {});
  }
  void on_done() override {
    end_chunks(events_, options_.head,
               options_.stream.include_usage ? std::optional(counts()) : std::nullopt);
  }
  void on_error(const ApiError& error) override { fail_chunks(events_, error); }

 private:
  static ordered_json call_json(const ChatDelta::ToolCall& call) {
    ordered_json json{{"index", call.index}};
    if (!call.id.empty()) json["id"] = call.id;
    if (!call.id.empty()) json["type"] = "function";
    json["function"] = ordered_json::object();
    if (!call.name.empty()) json["function"]["name"] = call.name;
    json["function"]["arguments"] = call.arguments;
    return json;
  }

  void begin(size_t choice) {
    if (begun_[choice]) return;
    begun_[choice] = true;
    send(choice, {{"role", "assistant"}, {"content", ""}, {"refusal", nullptr}}, nullptr, {});
  }

  static ordered_json item_json(size_t choice, const ordered_json& delta,
                                const ordered_json& finish_reason) {
    return {{"index", choice},
            {"delta", delta},
            {"logprobs", nullptr},
            {"finish_reason", finish_reason}};
  }
  void send(size_t choice, const ordered_json& delta, const ordered_json& finish_reason,
            const std::vector<TokenInfo>& tokens) {
    ordered_json item = item_json(choice, delta, finish_reason);
    if (options_.logprobs && !tokens.empty())
      item["logprobs"] = chat_logprobs(service_.tokenizer(), tokens);
    if (!tokens.empty()) add_experts(item, tokens);
    send(std::move(item));
  }
  void send(ordered_json item) {
    ordered_json json = options_.head.json();
    json["choices"] = ordered_json::array();
    json["choices"].push_back(std::move(item));
    if (options_.stream.include_usage) json["usage"] = nullptr;
    events_.send(to_line(json));
  }

  EventStream events_;
  std::vector<bool> begun_;
};

}  // namespace

void answer_chat(Service& service, const Json& body, const HttpHead& head,
                 const std::shared_ptr<Reply>& reply) {
  Fields fields(body);
  ChatRequest request = read_chat_request(fields);
  const StreamOptions stream = read_stream_options(fields);
  fields.finish();
  request.client = client_of(head);
  const ServedModel model = service.model(request.model);
  ChatAnswerOptions options{
      .head = new_answer("chatcmpl-", stream.stream ? "chat.completion.chunk" : "chat.completion",
                         model.id),
      .stream = stream,
      .logprobs = request.answer.logprobs.has_value(),
      .experts = request.answer.experts,
      .answers = static_cast<size_t>(request.answer.n)};
  std::shared_ptr<ChatAnswer> answer;
  if (stream.stream)
    answer = std::make_shared<StreamedChat>(reply, service, std::move(options));
  else
    answer = std::make_shared<WholeChat>(reply, service, std::move(options));
  const JobId job = service.chat(request, answer).job;
  service.end_with_client(job, *reply);
}

}  // namespace mixtral::serve
