// Any text as a config.json: refused with an Error, or a configuration whose counts make sense and
// that is the same after being written and read again.
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using mixtral::Json;
  using mixtral::ModelConfig;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const ModelConfig config = ModelConfig::parse(Json::parse(text, "fuzz"));
    const auto count = mixtral::count_parameters(config);
    CHECK(count.active > 0 && count.total > 0 && count.total <= int64_t{1} << 50);
    CHECK(config.num_heads % config.num_kv_heads == 0);
    CHECK(config.experts_per_token <= config.num_experts);
    ModelConfig named = config;  // what is written names the type that was left open
    named.dtype_is_open = false;
    CHECK(ModelConfig::parse(Json::parse(config.to_json(), "again")) == named);
  } catch (const mixtral::Error&) {
    return 0;  // refused
  }
  return 0;
}
