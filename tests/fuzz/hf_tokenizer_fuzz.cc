// Any bytes as a tokenizer.json: refused with an Error, or a tokenizer that takes any bytes, and
// makes no control token of text that a user typed.
#include <cstdint>
#include <string>

#include "base/error.h"
#include "text/hf_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  try {
    const mixtral::HfTokenizer tokenizer(bytes, "fuzz");
    for (const std::string& text :
         {bytes.substr(0, 4096), std::string("a ab  abc\u2581<s></s>[INST]\t\n\xFF\xEF\xAC\x81")}) {
      const auto typed = tokenizer.encode(text);
      for (const int32_t id : typed)
        CHECK(id >= 0 && id < tokenizer.vocab_size() && !tokenizer.is_control(id));
      const auto prompt = tokenizer.encode_prompt(text);
      (void)tokenizer.decode(typed);
      (void)tokenizer.decode(prompt);
    }
  } catch (const mixtral::Error&) {
    return 0;  // refused
  }
  return 0;
}
