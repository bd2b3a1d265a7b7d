// Grammars in llama.cpp's notation from outside: each is refused with a sentence, or what is drawn
// by its masks is whole text of its language.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "constrain/grammar.h"
#include "tests/constrain/sampler.h"
#include "text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mixtral::constrain;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const Grammar grammar = compile_gbnf(text);
    mixtral::RandomStream random(1);
    const auto drawn = sample_text({grammar, toy_vocabulary()}, *toy_vocabulary(), random, 60);
    if (drawn) CHECK(grammar.accepts(*drawn) && mixtral::is_valid_utf8(*drawn), *drawn);
  } catch (const mixtral::Error& error) {
    CHECK(!std::string_view(error.what()).empty());
  }
  return 0;
}
