#include "serve/openai_completions.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "serve/openai_fields.h"
#include "serve/openai_json.h"
#include "serve/server_sent_events.h"
#include "text/utf8.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kDefaultTokens = 16;  // as OpenAI's
constexpr size_t kMostPrompts = 1024, kMostCompletions = 2048;

struct Prompt {
  std::vector<int32_t> ids;
  std::string text;  // for echo
};

struct CompletionRequest {
  std::string model;
  std::vector<Prompt> prompts;
  AnswerOptions answer;
  StreamOptions stream;
  bool echo = false;
};

Prompt text_prompt(const Tokenizer& tokenizer, const std::string& text) {
  return {.ids = completion_tokens(tokenizer, text), .text = text};
}

Prompt ids_prompt(const Service& service, const Json& list) {
  Prompt prompt;
  for (const Json& item : list.items()) {
    const bool whole = item.is_integer();
    const int64_t id = whole ? item.as_int() : -1;
    if (!whole || id < 0 || id >= service.vocabulary())
      throw bad_field("prompt", fmt::format("expected token ids from 0 to {}, found {}",
                                            service.vocabulary() - 1,
                                            whole ? std::to_string(id) : "something else"));
    prompt.ids.push_back(static_cast<int32_t>(id));
  }
  if (prompt.ids.empty()) throw bad_field("prompt", "is empty; expected at least one token");
  std::vector<int32_t> known = prompt.ids;  // a model may have more tokens than its tokenizer
  std::erase_if(known, [&](int32_t id) { return id >= service.tokenizer().vocab_size(); });
  prompt.text = to_valid_utf8(service.tokenizer().decode(known));
  return prompt;
}

std::vector<Prompt> read_prompts(Fields& fields, const Service& service) {
  const Json& value = fields.need("prompt");
  const Tokenizer& tokenizer = service.tokenizer();
  if (value.is_string()) return {text_prompt(tokenizer, value.as_string())};
  const auto refuse = [] {
    return bad_field("prompt",
                     "expected a text, a list of texts, a list of token ids or a list of "
                     "such lists");
  };
  if (!value.is_array()) throw refuse();
  const Json::Array& items = value.items();
  if (items.empty()) throw bad_field("prompt", "is an empty list; expected a prompt");
  if (items.front().is_number()) return {ids_prompt(service, value)};
  if (items.size() > kMostPrompts)
    throw bad_field(
        "prompt", fmt::format("expected at most {} prompts, found {}", kMostPrompts, items.size()));
  std::vector<Prompt> prompts;
  for (const Json& item : items) {
    if (item.kind() != items.front().kind() || !(item.is_string() || item.is_array()))
      throw refuse();
    prompts.push_back(item.is_string() ? text_prompt(tokenizer, item.as_string())
                                       : ids_prompt(service, item));
  }
  return prompts;
}

CompletionRequest read_request(const Json& body, const Service& service) {
  Fields fields(body);
  CompletionRequest request;
  request.model = fields.text("model").value_or("");
  (void)service.model(request.model);
  request.prompts = read_prompts(fields, service);
  AnswerOptions& answer = request.answer = read_answer_options(fields);
  read_response_format(fields, answer.rule);
  answer.max_tokens = fields.integer("max_tokens", 0, int64_t{1} << 40).value_or(kDefaultTokens);
  answer.logprobs = fields.integer("logprobs", 0, 20);
  request.echo = fields.boolean("echo").value_or(false);
  if (const auto best = fields.integer("best_of", 1, 128); best && *best != answer.n)
    throw bad_field("best_of", "is not supported; leave it out, or set it to n");
  request.stream = read_stream_options(fields);
  ignore_harmless(fields);
  fields.finish();
  if (request.prompts.size() * static_cast<size_t>(answer.n) > kMostCompletions)
    throw bad_field("n", fmt::format("{} prompts with {} answers each are more than the {} answers "
                                     "that one request may have",
                                     request.prompts.size(), answer.n, kMostCompletions));
  return request;
}

std::string_view word(FinishReason reason) {
  return reason == FinishReason::stop ? "stop" : "length";
}

class CompletionAnswer : public GenerationListener {
 public:
  CompletionAnswer(std::shared_ptr<Reply> reply, const Service& service, CompletionRequest request,
                   AnswerHead head)
      : reply_(std::move(reply)),
        service_(service),
        request_(std::move(request)),
        head_(std::move(head)),
        cached_(request_.prompts.size(), std::numeric_limits<int64_t>::max()) {
    for (size_t i = 0; i < answers(); ++i) logprobs_.emplace_back(service.tokenizer());
  }

 protected:
  size_t answers() const {
    return request_.prompts.size() * static_cast<size_t>(request_.answer.n);
  }
  size_t prompt_of(size_t choice) const { return choice / static_cast<size_t>(request_.answer.n); }
  void count(size_t choice, const Finish& finish) {
    const size_t prompt = prompt_of(choice);
    completion_ += finish.tokens;
    cached_[prompt] = std::min(cached_[prompt], finish.cached_tokens);
  }
  TokenCounts counts() const {
    TokenCounts counts{.completion = completion_};
    for (size_t i = 0; i < request_.prompts.size(); ++i) {
      counts.prompt += static_cast<int64_t>(request_.prompts[i].ids.size());
      counts.cached += cached_[i];
    }
    return counts;
  }
  ordered_json choice_json(size_t choice, const std::string& text,
                           const std::vector<TokenInfo>& tokens,
                           const ordered_json& finish_reason) {
    ordered_json json{{"index", choice}, {"text", text}, {"logprobs", nullptr}};
    if (request_.answer.logprobs) json["logprobs"] = logprobs_[choice].part(tokens);
    json["finish_reason"] = finish_reason;
    if (request_.answer.experts) json["experts"] = experts_json(tokens, service_.layers());
    return json;
  }

  std::shared_ptr<Reply> reply_;
  const Service& service_;
  const CompletionRequest request_;
  const AnswerHead head_;

 private:
  std::vector<CompletionLogprobs> logprobs_;
  int64_t completion_ = 0;
  std::vector<int64_t> cached_;
};

class WholeCompletion : public CompletionAnswer {
 public:
  WholeCompletion(std::shared_ptr<Reply> reply, const Service& service, CompletionRequest request,
                  AnswerHead head)
      : CompletionAnswer(std::move(reply), service, std::move(request), std::move(head)),
        parts_(answers()) {
    if (!request_.echo) return;
    for (size_t i = 0; i < parts_.size(); ++i) parts_[i].text = request_.prompts[prompt_of(i)].text;
  }

  void on_prompt(size_t choice, std::vector<TokenInfo>&& tokens) override {
    parts_[choice].tokens = std::move(tokens);
  }
  void on_prompt_routes(size_t choice, const std::vector<TokenRoutes>& routes) override {
    add_routes(parts_[choice].prompt_experts, routes, service_.layers());
  }
  void on_piece(size_t choice, const TextPiece& piece) override {
    Part& part = parts_[choice];
    part.text += piece.text;
    part.tokens.insert(part.tokens.end(), piece.tokens.begin(), piece.tokens.end());
  }
  void on_finish(size_t choice, const Finish& finish) override {
    parts_[choice].finish = finish;
    count(choice, finish);
  }
  void on_done() override {
    ordered_json json = head_.json();
    json["choices"] = ordered_json::array();
    for (size_t i = 0; i < parts_.size(); ++i) {
      Part& part = parts_[i];
      json["choices"].push_back(choice_json(i, part.text, part.tokens, word(part.finish.reason)));
      if (!part.prompt_experts.empty())
        json["choices"].back()["prompt_experts"] = std::move(part.prompt_experts);
    }
    json["usage"] = usage_json(counts());
    reply_->send(json_response(json));
  }
  void on_error(const ApiError& error) override { reply_->send(openai_error(error)); }

 private:
  struct Part {
    std::string text;
    std::vector<TokenInfo> tokens;
    ordered_json prompt_experts = ordered_json::array();
    Finish finish;
  };
  std::vector<Part> parts_;
};

class StreamedCompletion : public CompletionAnswer {
 public:
  StreamedCompletion(std::shared_ptr<Reply> reply, const Service& service,
                     CompletionRequest request, AnswerHead head)
      : CompletionAnswer(reply, service, std::move(request), std::move(head)),
        events_(std::move(reply)),
        echoed_(answers(), !request_.echo) {}

  void on_prompt(size_t choice, std::vector<TokenInfo>&& tokens) override { echo(choice, tokens); }
  void on_prompt_routes(size_t choice, const std::vector<TokenRoutes>& routes) override {
    ordered_json json = choice_json(choice, "", {}, nullptr);
    json["prompt_experts"] = ordered_json::array();
    add_routes(json["prompt_experts"], routes, service_.layers());
    send(std::move(json));
  }
  void on_piece(size_t choice, const TextPiece& piece) override {
    echo(choice, {});
    send(choice, piece.text, piece.tokens, nullptr);
  }
  void on_finish(size_t choice, const Finish& finish) override {
    echo(choice, {});
    count(choice, finish);
    send(choice, "", {}, word(finish.reason));
  }
  void on_done() override {
    end_chunks(events_, head_,
               request_.stream.include_usage ? std::optional(counts()) : std::nullopt);
  }
  void on_error(const ApiError& error) override { fail_chunks(events_, error); }

 private:
  void echo(size_t choice, const std::vector<TokenInfo>& tokens) {
    if (echoed_[choice]) return;
    echoed_[choice] = true;
    send(choice, request_.prompts[prompt_of(choice)].text, tokens, nullptr);
  }
  void send(size_t choice, const std::string& text, const std::vector<TokenInfo>& tokens,
            const ordered_json& finish_reason) {
    send(choice_json(choice, text, tokens, finish_reason));
  }
  void send(ordered_json choice) {
    ordered_json json = head_.json();
    json["choices"] = ordered_json::array();
    json["choices"].push_back(std::move(choice));
    if (request_.stream.include_usage) json["usage"] = nullptr;
    events_.send(to_line(json));
  }

  EventStream events_;
  std::vector<bool> echoed_;
};

}  // namespace

void answer_completion(Service& service, const Json& body, const HttpHead& head,
                       const std::shared_ptr<Reply>& reply) {
  CompletionRequest request = read_request(body, service);
  const ServedModel model = service.model(request.model);
  const auto filter = service.filter(request.answer.rule);
  std::vector<GenerationRequest> all;
  for (const Prompt& prompt : request.prompts) {
    GenerationRequest one = service.generation(prompt.ids, request.answer, model, "prompt");
    one.filter = filter;
    if (request.echo) one.prompt_logprobs = request.answer.logprobs;
    one.first_choice = all.size() * static_cast<size_t>(request.answer.n);
    all.push_back(std::move(one));
  }
  AnswerHead answer_head = new_answer("cmpl-", "text_completion", model.id);
  const bool streams = request.stream.stream;
  std::shared_ptr<GenerationListener> answer;
  if (streams)
    answer = std::make_shared<StreamedCompletion>(reply, service, std::move(request),
                                                  std::move(answer_head));
  else
    answer = std::make_shared<WholeCompletion>(reply, service, std::move(request),
                                               std::move(answer_head));
  const JobId job = service.engine().submit(std::move(all), client_of(head), answer);
  service.end_with_client(job, *reply);
}

}  // namespace mixtral::serve
