#pragma once

#include <string>

#include "base/error.h"
#include "serve/http.h"

namespace mixtral::serve {

/// What a client did wrong, or the server cannot do: an answer with an error object. Messages quote
/// text of the request through printable(), so that the answer stays below 4 KiB.
class ApiError : public Error {
 public:
  /// The `type` follows from the status.
  ApiError(int status, const std::string& message, std::string param = {}, std::string code = {},
           HttpHeaders more = {});

  int status() const { return status_; }
  const std::string& param() const { return param_; }  // the field; empty: none
  const std::string& code() const { return code_; }    // "model_not_found"; empty: none
  HttpHeaders headers;                                 // beside those of every error

 private:
  int status_;
  std::string param_, code_;
};

/// 400 about a field.
ApiError bad_field(const std::string& field, const std::string& message);
/// 404 model_not_found.
ApiError unknown_model(std::string_view name);
/// 400 context_length_exceeded.
ApiError too_long(int64_t prompt_tokens, int64_t context, const std::string& field);
/// 429 with Retry-After.
ApiError too_many(int64_t waiting);
/// 503 with Retry-After.
ApiError unavailable(const std::string& message);

/// How a protocol writes an error.
using ErrorWriter = HttpResponse (*)(const ApiError&);
/// {"error": {message, type, code, param}}, as OpenAI does.
HttpResponse openai_error(const ApiError& error);
/// The object alone, as JSON: what stands behind "error".
std::string openai_error_json(const ApiError& error);

/// The error that any exception of a handler becomes: an ApiError as it is, an Error 400, all else
/// 500 without its text. Call it in a catch block.
ApiError current_error();

}  // namespace mixtral::serve
