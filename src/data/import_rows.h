#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mixtral {

/// How the rows of published files are read.
struct RowOptions {
  char delimiter = 0;  // of .csv; 0: a comma, and in .tsv a tab
  /// {"prompt", "question"}: the column of a .parquet file that becomes a key of its rows. Rows of
  /// other files keep their keys.
  std::map<std::string, std::string> columns;
};

/// Takes a row's text, which is JSON unless the file is damaged, and its place ("a.jsonl:12",
/// "a.json[11]", "a.parquet: row 12"); returns whether to go on.
using RowSink = std::function<bool(std::string_view text, const std::string& source)>;

bool is_parquet(const std::filesystem::path& path);
/// The names of all columns of a .parquet file. Throws Error where it is damaged.
std::vector<std::string> parquet_columns(const std::filesystem::path& path);

/// The files themselves, and of each folder the .parquet files in it and its folders, in order.
/// Throws Error where there are none.
std::vector<std::filesystem::path> find_row_files(const std::vector<std::filesystem::path>& inputs);

/// Hands out the rows of a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file. Of a .parquet file
/// the columns that a form has a use for are read. Throws Error naming the file when it cannot be
/// read, and when it has not the columns that are to become keys.
void each_row(const std::filesystem::path& path, const RowOptions& options, const RowSink& sink);

}  // namespace mixtral
