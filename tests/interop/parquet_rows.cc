// Prints the rows of Parquet files, all columns of them, as lines of JSON: PROGRAM FILE...
// tests/interop/parquet compares them with what other readers see.
#include <cstdio>
#include <exception>
#include <string>

#include "base/file.h"
#include "io/parquet.h"

int main(int argc, char** argv) {
  using namespace mixtral;
  try {
    for (int i = 1; i < argc; ++i) {
      const MappedFile mapped(argv[i]);
      const ParquetFile file(mapped.text(), argv[i]);
      file.each_row([](std::string_view column) { return std::string(column); },
                    [](const ParquetRow& row) {
                      std::fwrite(row.json.data(), 1, row.json.size(), stdout);
                      std::fputc('\n', stdout);
                      return true;
                    });
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
