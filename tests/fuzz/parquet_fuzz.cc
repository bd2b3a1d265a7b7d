// Any bytes as a Parquet file: refused with an Error, or rows that are JSON where their texts are
// UTF-8.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "io/json.h"
#include "io/parquet.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mixtral;
  constexpr int64_t kMostRows = 200;  // a file may say that it has millions of equal ones
  try {
    const ParquetFile file({reinterpret_cast<const char*>(data), size}, "fuzz");
    file.each_row([](std::string_view column) { return std::string(column); },
                  [](const ParquetRow& row) {
                    try {
                      CHECK(Json::parse(row.json, "row").is_object());
                    } catch (const Error& error) {
                      const std::string_view why = error.what();
                      CHECK(why.find("UTF-8") != why.npos || why.find("nested") != why.npos ||
                                why.find("larger") != why.npos,
                            std::string(why));
                    }
                    return row.number < kMostRows;
                  });
  } catch (const Error&) {
    return 0;  // refused
  }
  return 0;
}
