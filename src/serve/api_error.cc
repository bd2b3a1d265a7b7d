#include "serve/api_error.h"

#include <fmt/format.h>

#include <exception>
#include <nlohmann/json.hpp>

#include "base/messages.h"
#include "base/printable.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

// Bytes as JSON, so that any error stays below 4 KiB.
constexpr size_t kMostMessage = 2400, kMostWord = 400;

/// A text whose JSON has at most so many bytes, cut between characters.
std::string bounded(const std::string& text, size_t most) {
  size_t size = 0, end = 0;
  for (; end < text.size(); ++end) {
    const auto byte = static_cast<unsigned char>(text[end]);
    size += byte < 0x20 ? 6 : byte == '"' || byte == '\\' ? 2 : byte < 0x80 ? 1 : 3;
    if (size > most) break;
  }
  if (end == text.size()) return text;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

std::string_view type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "unavailable_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

ordered_json text_or_null(const std::string& text) {
  return text.empty() ? ordered_json() : ordered_json(bounded(text, kMostWord));
}

}  // namespace

ApiError::ApiError(int status, const std::string& message, std::string param, std::string code,
                   HttpHeaders more)
    : Error(bounded(message, kMostMessage)),
      headers(std::move(more)),
      status_(status),
      param_(std::move(param)),
      code_(std::move(code)) {}

ApiError bad_field(const std::string& field, const std::string& message) {
  return {400, fmt::format("{}: {}", field, message), field};
}

ApiError unknown_model(std::string_view name) {
  return {404,
          fmt::format("the model '{}' is not served here; /v1/models lists those that are",
                      printable(name)),
          "model", "model_not_found"};
}

ApiError too_long(int64_t prompt_tokens, int64_t context, const std::string& field) {
  return {400,
          fmt::format("{}: the prompt has {} tokens, but the context has room for {}, answer "
                      "included; shorten the prompt",
                      field, prompt_tokens, context),
          field, "context_length_exceeded"};
}

ApiError too_many(int64_t waiting) {
  return {429,
          fmt::format("{} requests wait already, as many as may; try again", waiting),
          {},
          "queue_full",
          {{"Retry-After", "1"}}};
}

ApiError unavailable(const std::string& message) {
  return {503, message, {}, "unavailable", {{"Retry-After", "5"}}};
}

std::string openai_error_json(const ApiError& error) {
  const ordered_json object = {{"message", bounded(error.what(), kMostMessage)},
                               {"type", type_of(error.status())},
                               {"param", text_or_null(error.param())},
                               {"code", text_or_null(error.code())}};
  return ordered_json{{"error", object}}.dump(-1, ' ', false,
                                              ordered_json::error_handler_t::replace);
}

HttpResponse openai_error(const ApiError& error) {
  HttpResponse response{.status = error.status(), .headers = error.headers};
  response.headers.emplace_back("Content-Type", "application/json");
  response.body = openai_error_json(error) + "\n";
  return response;
}

ApiError current_error() {
  try {
    throw;
  } catch (const ApiError& error) {
    return error;
  } catch (const Error& error) {
    return {400, error.what()};
  } catch (const std::exception& error) {
    messages::print("serve: a request failed: {}", error.what());
    return {500, "the server failed to answer; its log says why"};
  }
}

}  // namespace mixtral::serve
