// Schemas from outside: each is refused with a sentence, or makes a grammar whose texts are JSON.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "constrain/grammar.h"
#include "io/json.h"
#include "tests/constrain/sampler.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mixtral::constrain;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const Grammar grammar = compile_json_schema(text, "schema");
    const auto drawn = draw_checked(grammar);
    if (!drawn) return 0;
    try {
      mixtral::Json::parse(*drawn, "drawn");
    } catch (const mixtral::Error& error) {
      // A name may come twice among those that are not listed.
      CHECK(std::string_view(error.what()).find("twice") != std::string_view::npos, error.what());
    }
  } catch (const mixtral::Error& error) {
    CHECK(!std::string_view(error.what()).empty());
  }
  return 0;
}
