#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "base/error.h"

namespace mixtral {

/// What the errors about a part of a Parquet file begin with: "a.parquet: row group 2, column
/// text".
struct ParquetPlace {
  std::string text;

  [[noreturn]] void fail(std::string_view reason) const {
    throw Error(fmt::format("{}: {}", text, reason));
  }
};

}  // namespace mixtral
