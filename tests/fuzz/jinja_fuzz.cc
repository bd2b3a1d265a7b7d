// Any bytes as a chat template: refused with an Error, or rendered, within bounds.
#include <cstdint>
#include <string>

#include "base/error.h"
#include "text/jinja_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const mixtral::jinja::Value variables = mixtral::jinja::Value::from_json(
      mixtral::Json::parse(R"({"messages": [{"role": "system", "content": "s"},
      {"role": "user", "content": "U \n"}, {"role": "assistant", "content": "A",
      "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5}}}]}],
      "tools": [{"type": "function", "function": {"name": "f"}}], "add_generation_prompt": true,
      "bos_token": "<s>", "eos_token": "</s>"})",
                           "variables"));
  try {
    const mixtral::JinjaTemplate chat({reinterpret_cast<const char*>(data), size}, "fuzz");
    const auto rendered = chat.render(variables);
    for (const auto& span : rendered.generated)
      CHECK(span.begin <= span.end && span.end <= rendered.text.size());
  } catch (const mixtral::Error&) {
    return 0;  // refused
  }
  return 0;
}
