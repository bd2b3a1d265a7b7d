// Grammars in llama.cpp's notation from outside: each is refused with a sentence, or what is drawn
// by its masks is whole text of its language.
#include <cstdint>

#include "constrain/grammar.h"
#include "tests/constrain/sampler.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mixtral::constrain::try_expression(mixtral::constrain::compile_gbnf,
                                     {reinterpret_cast<const char*>(data), size});
  return 0;
}
