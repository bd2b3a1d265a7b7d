#include "serve/openai_json.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>

#include "serve/answer_run.h"
#include "serve/openai_fields.h"
#include "text/utf8.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

constexpr double kLeastLogprob = -9999;  // JSON has no infinity

ordered_json bytes_json(const std::string& bytes) {
  ordered_json array = ordered_json::array();
  for (const char c : bytes) array.push_back(static_cast<unsigned char>(c));
  return array;
}

ordered_json logprob_json(std::optional<double> value) {
  if (!value) return nullptr;
  return std::isfinite(*value) ? std::max(*value, kLeastLogprob) : kLeastLogprob;
}

TokenInfo info_of(const Tokenizer& tokenizer, const TokenProbability& token) {
  return {
      .id = token.id, .bytes = token_bytes(tokenizer, token.id), .logprob = token.log_probability};
}

ordered_json chat_entry(const Tokenizer& tokenizer, const TokenInfo& token) {
  return {{"token", token_text(tokenizer, token)},
          {"logprob", logprob_json(token.logprob)},
          {"bytes", bytes_json(token.bytes)}};
}

/// As a completion names it: bytes that are no characters are spelled out, so that two tokens
/// seldom have one name.
std::string completion_name(const Tokenizer& tokenizer, const TokenInfo& token) {
  if (token.bytes.empty() || is_valid_utf8(token.bytes)) return token_text(tokenizer, token);
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string name = "bytes:";
  for (const char c : token.bytes) {
    const auto byte = static_cast<unsigned char>(c);
    name += {'\\', 'x', kDigits[byte / 16], kDigits[byte % 16]};
  }
  return name;
}

ordered_json routes_json(const TokenRoutes& routes, int64_t layers) {
  const size_t each = routes.expert.size() / static_cast<size_t>(std::max<int64_t>(1, layers));
  ordered_json ids = ordered_json::array(), weights = ids;
  for (size_t begin = 0; each > 0 && begin < routes.expert.size(); begin += each) {
    ids.push_back(std::vector<int32_t>(&routes.expert[begin], &routes.expert[begin] + each));
    weights.push_back(std::vector<float>(&routes.weight[begin], &routes.weight[begin] + each));
  }
  return {{"ids", ids}, {"weights", weights}};
}

}  // namespace

int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string random_id(size_t size) {
  constexpr std::string_view kLetters =
      "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  thread_local std::mt19937_64 generator{std::random_device{}()};
  std::uniform_int_distribution<size_t> letter(0, kLetters.size() - 1);
  std::string id;
  for (size_t i = 0; i < size; ++i) id += kLetters[letter(generator)];
  return id;
}

AnswerHead new_answer(const std::string& prefix, std::string object, std::string model) {
  return {.id = prefix + random_id(),
          .object = std::move(object),
          .model = std::move(model),
          .created = unix_seconds()};
}

ordered_json AnswerHead::json() const {
  return {{"id", id}, {"object", object}, {"created", created}, {"model", model}};
}

ordered_json usage_json(const TokenCounts& counts) {
  return {{"prompt_tokens", counts.prompt},
          {"completion_tokens", counts.completion},
          {"total_tokens", counts.prompt + counts.completion},
          {"prompt_tokens_details", {{"cached_tokens", counts.cached}}}};
}

std::string token_text(const Tokenizer& tokenizer, const TokenInfo& token) {
  if (!token.bytes.empty()) return to_valid_utf8(token.bytes);
  return token.id < tokenizer.vocab_size() ? tokenizer.label(token.id) : std::string();
}

ordered_json chat_logprobs(const Tokenizer& tokenizer, const std::vector<TokenInfo>& tokens) {
  ordered_json content = ordered_json::array();
  for (const TokenInfo& token : tokens) {
    ordered_json entry = chat_entry(tokenizer, token);
    entry["top_logprobs"] = ordered_json::array();
    for (const TokenProbability& other : token.best)
      entry["top_logprobs"].push_back(chat_entry(tokenizer, info_of(tokenizer, other)));
    content.push_back(std::move(entry));
  }
  return {{"content", content}, {"refusal", nullptr}};
}

ordered_json CompletionLogprobs::part(const std::vector<TokenInfo>& tokens) {
  ordered_json names = ordered_json::array(), logprobs = names, tops = names, offsets = names;
  for (const TokenInfo& token : tokens) {
    names.push_back(completion_name(tokenizer_, token));
    logprobs.push_back(logprob_json(token.logprob));
    offsets.push_back(offset_);
    // As the token is named: a byte that is no character counts as one.
    offset_ += std::ranges::count_if(to_valid_utf8(token.bytes), [](char c) {
      return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    });
    if (!token.logprob) {
      tops.push_back(nullptr);
      continue;
    }
    ordered_json top = ordered_json::object();
    for (const TokenProbability& other : token.best)
      top.emplace(completion_name(tokenizer_, info_of(tokenizer_, other)),
                  logprob_json(other.log_probability));
    tops.push_back(std::move(top));
  }
  return {{"tokens", names},
          {"token_logprobs", logprobs},
          {"top_logprobs", tops},
          {"text_offset", offsets}};
}

ordered_json experts_json(const std::vector<TokenInfo>& tokens, int64_t layers) {
  ordered_json all = ordered_json::array();
  for (const TokenInfo& token : tokens) all.push_back(routes_json(token.routes, layers));
  return all;
}

void add_routes(ordered_json& json, const std::vector<TokenRoutes>& all, int64_t layers) {
  for (const TokenRoutes& routes : all) json.push_back(routes_json(routes, layers));
}

void end_chunks(EventStream& events, const AnswerHead& head,
                const std::optional<TokenCounts>& usage) {
  if (usage) {
    ordered_json json = head.json();
    json["choices"] = ordered_json::array();
    json["usage"] = usage_json(*usage);
    events.send(to_line(json));
  }
  events.send("[DONE]");
  events.end();
}

void fail_chunks(EventStream& events, const ApiError& error) {
  if (!events.begun()) return events.reply().send(openai_error(error));
  events.send(openai_error_json(error));
  events.end();
}

HttpResponse json_response(const ordered_json& json) {
  return {.status = 200,
          .headers = {{"Content-Type", "application/json"}},
          .body = to_line(json) + "\n"};
}

std::string client_of(const HttpHead& head) {
  std::string client = head.peer;
  for (const char* name : {"Authorization", "x-api-key"}) {
    client += '\n';
    client += head.header(name);
  }
  return client;
}

}  // namespace mixtral::serve
