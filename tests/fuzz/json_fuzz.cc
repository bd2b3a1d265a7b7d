// The strict reader against a second one: both must take the same texts and find the same values,
// except where ours is meant to be stricter.
#include <bit>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "io/json.h"

namespace {

using mixtral::Json;

void expect_equal(const Json& ours, const nlohmann::json& theirs) {
  switch (ours.kind()) {
    case Json::Kind::null:
      CHECK(theirs.is_null());
      break;
    case Json::Kind::boolean:
      CHECK(theirs.is_boolean() && theirs.get<bool>() == ours.as_bool());
      break;
    case Json::Kind::integer:
      CHECK(theirs.is_number_integer() && theirs.get<int64_t>() == ours.as_int());
      break;
    case Json::Kind::number:
      CHECK(theirs.is_number() && theirs.get<double>() == ours.as_double());
      break;
    case Json::Kind::string:
      CHECK(theirs.is_string() && theirs.get_ref<const std::string&>() == ours.as_string());
      break;
    case Json::Kind::array: {
      CHECK(theirs.is_array() && theirs.size() == ours.items().size());
      size_t i = 0;
      for (const Json& item : ours.items()) expect_equal(item, theirs[i++]);
      break;
    }
    case Json::Kind::object:
      CHECK(theirs.is_object() && theirs.size() == ours.members().size());
      for (const auto& [key, value] : ours.members()) {
        expect_equal(value, theirs.at(key));
        CHECK(&ours.at(key) == &value);
      }
      break;
  }
  CHECK(ours.where().starts_with("fuzz"));
}

bool may_be_stricter(std::string_view text, std::string_view message) {
  // The other reader takes a NUL for the end of the text and skips a byte order mark.
  return text.find('\0') != std::string_view::npos || text.starts_with("\xef\xbb\xbf") ||
         message.find("appears twice") != std::string_view::npos ||
         message.find("nested deeper") != std::string_view::npos;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto theirs = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  try {
    const Json ours = Json::parse(text, "fuzz");
    CHECK(!theirs.is_discarded(), "only ours takes it");
    expect_equal(ours, theirs);
  } catch (const mixtral::Error& error) {
    CHECK(theirs.is_discarded() || may_be_stricter(text, error.what()), error.what());
  }
  return 0;
}
