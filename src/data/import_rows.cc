#include "data/import_rows.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/advice.h"
#include "base/error.h"
#include "base/file.h"
#include "base/printable.h"
#include "data/csv.h"
#include "data/published.h"
#include "data/record_fields.h"
#include "io/parquet.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

/// Hands out the lines that are not blank.
void each_line(std::string_view text, const std::string& name, const RowSink& sink) {
  int64_t line = 1;
  for (size_t at = 0; at < text.size(); ++line) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view row = text.substr(at, end - at);
    at = end + 1;
    if (!is_blank(row) && !sink(row, fmt::format("{}:{}", name, line))) return;
  }
}

/// Hands out the elements of a JSON array. Only its commas and brackets are looked at; what is
/// wrong within an element shows when that is parsed.
void each_element(std::string_view text, const std::string& name, const RowSink& sink) {
  int64_t element = 0;
  size_t begin = text.find('[') + 1;
  int depth = 0;
  bool in_string = false;
  for (size_t at = begin; at < text.size(); ++at) {
    const char c = text[at];
    if (in_string) {
      if (c == '\\') ++at;
      in_string = c != '"';
      continue;
    }
    in_string = c == '"';
    const bool ends = depth == 0 && (c == ',' || c == ']');
    if (ends) {
      const std::string_view row = text.substr(begin, at - begin);
      if (!is_blank(row) && !sink(row, fmt::format("{}[{}]", name, element++))) return;
      if (c == ']') return;
      begin = at + 1;
    }
    depth += c == '{' || c == '[';
    depth -= c == '}' || (c == ']' && !ends);
  }
  throw Error(fmt::format("{}: the array is not closed; the file is cut off", name));
}

void each_csv_row(std::string_view text, const std::string& name, char delimiter,
                  const RowSink& sink) {
  CsvReader reader(text, name, delimiter);
  CsvRow header, row;
  if (!reader.next(header)) throw Error(fmt::format("{}: the file is empty", name));
  while (reader.next(row)) {
    const std::string source = fmt::format("{}:{}", name, row.line);
    if (row.fields.size() != header.fields.size())
      throw Error(fmt::format("{}: has {} fields, but the header in line {} has {}", source,
                              row.fields.size(), header.line, header.fields.size()));
    nlohmann::ordered_json json;
    for (size_t i = 0; i < row.fields.size(); ++i) json[header.fields[i]] = row.fields[i];
    if (!sink(json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace), source))
      return;
  }
}

std::vector<std::string> shown_columns(const ParquetFile& file) {
  std::vector<std::string> columns = file.columns();
  for (std::string& column : columns) column = printable(column);
  return columns;
}

/// Throws where a key's column is not there, or stands for two keys.
void check_columns(const ParquetFile& file, const std::string& name,
                   const std::map<std::string, std::string>& columns) {
  const std::vector<std::string> found = file.columns();
  std::vector<std::string_view> used;
  for (const auto& [key, column] : columns) {
    if (std::ranges::find(used, column) != used.end())
      throw AdvisedUsageError(fmt::format("‹columns›: {} stands for two keys", printable(column)));
    used.emplace_back(column);
    if (std::ranges::find(found, column) == found.end())
      throw AdvisedError(fmt::format("{}: there is no column \"{}\" for ‹columns›, only {}", name,
                                     printable(column), fmt::join(shown_columns(file), ", ")));
  }
}

void each_parquet_row(std::string_view bytes, const std::string& name,
                      const std::map<std::string, std::string>& columns, const RowSink& sink) {
  const ParquetFile file(bytes, name);
  check_columns(file, name, columns);
  const auto key_of = [&](std::string_view column) -> std::optional<std::string> {
    for (const auto& [key, named] : columns)
      if (named == column) return key;
    // A column whose key another one takes is none of the form.
    std::string key(column);
    if (columns.contains(key) || !is_published_key(column)) return std::nullopt;
    return key;
  };
  file.each_row(key_of, [&](const ParquetRow& row) {
    return sink(row.json, fmt::format("{}: row {}", name, row.number));
  });
}

}  // namespace

bool is_parquet(const fs::path& path) { return path.extension() == ".parquet"; }

std::vector<std::string> parquet_columns(const fs::path& path) {
  const MappedFile file(path);
  return shown_columns(ParquetFile(file.text(), path.string()));
}

std::vector<fs::path> find_row_files(const std::vector<fs::path>& inputs) {
  std::vector<fs::path> files;
  for (const fs::path& input : inputs) {
    if (!fs::is_directory(input)) {
      files.push_back(input);
      continue;
    }
    std::vector<fs::path> found;
    for (const auto& entry : fs::recursive_directory_iterator(input))
      if (entry.is_regular_file() && is_parquet(entry.path())) found.push_back(entry.path());
    if (found.empty())
      throw Error(
          fmt::format("{}: there are no .parquet files in this folder; name the files that "
                      "are to be imported",
                      input.string()));
    std::ranges::sort(found);
    files.insert(files.end(), found.begin(), found.end());
  }
  return files;
}

void each_row(const fs::path& path, const RowOptions& options, const RowSink& sink) {
  const std::string name = path.string(), extension = path.extension().string();
  if (!fs::exists(path)) throw Error(fmt::format("{}: there is no such file to import", name));
  if (extension == ".gz" || extension == ".zst" || extension == ".xz" || extension == ".zip")
    throw Error(fmt::format("{}: is compressed; unpack it first", name));
  const MappedFile file(path);
  std::string_view text = file.text();
  if (is_parquet(path)) return each_parquet_row(text, name, options.columns, sink);
  if (extension == ".csv" || extension == ".tsv") {
    const char usual = extension == ".tsv" ? '\t' : ',';
    return each_csv_row(text, name, options.delimiter != 0 ? options.delimiter : usual, sink);
  }
  if (extension != ".jsonl" && extension != ".ndjson" && extension != ".json")
    throw Error(fmt::format("{}: expected a .jsonl, .json, .csv, .tsv or .parquet file", name));
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  const size_t begin = text.find_first_not_of(" \t\r\n");
  const bool array = begin != std::string_view::npos && text[begin] == '[';
  array ? each_element(text, name, sink) : each_line(text, name, sink);
}

}  // namespace mixtral
