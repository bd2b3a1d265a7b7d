// Bodies of requests: whatever they are, they are read, or refused with a small error.
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "serve/api_error.h"
#include "serve/openai_fields.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mixtral::serve;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const mixtral::Json body = parse_body(text);
    Fields fields(body);
    const ChatRequest request = read_chat_request(fields);
    (void)read_stream_options(fields);
    fields.finish();
    CHECK(!request.messages.empty() && request.answer.n >= 1 && request.answer.stop.size() <= 4);
    CHECK(request.answer.temperature >= 0 && request.answer.top_p > 0);
    for (const auto& message : request.messages) {
      const auto& content = message.at("content");
      CHECK(content.is_string() || message.contains("tool_calls"));
    }
  } catch (const ApiError& error) {
    CHECK(error.status() == 400 && openai_error(error).body.size() < 4096);
  }
  return 0;
}
