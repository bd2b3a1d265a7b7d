#include "data/import_records.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "data/csv.h"
#include "data/record.h"
#include "data/record_fields.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kRowLimit = uint64_t{64} << 20;

/// Takes a row's text and its place; returns whether to go on.
using RowSink = std::function<bool(std::string_view text, const std::string& source)>;

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

void each_row(const fs::path& path, char delimiter, const RowSink& sink) {
  const std::string name = path.string(), extension = path.extension().string();
  if (!fs::exists(path)) throw Error(fmt::format("{}: there is no such file to import", name));
  if (extension == ".parquet") throw Error(fmt::format("{}: {}", name, kParquetAdvice));
  if (extension == ".gz" || extension == ".zst" || extension == ".xz" || extension == ".zip")
    throw Error(fmt::format("{}: is compressed; unpack it first", name));
  const MappedFile file(path);
  std::string_view text = file.text();
  if (extension == ".csv" || extension == ".tsv") {
    const char usual = extension == ".tsv" ? '\t' : ',';
    return each_csv_row(text, name, delimiter != 0 ? delimiter : usual, sink);
  }
  if (extension != ".jsonl" && extension != ".ndjson" && extension != ".json")
    throw Error(fmt::format("{}: expected a .jsonl, .json, .csv or .tsv file", name));
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  const size_t begin = text.find_first_not_of(" \t\r\n");
  const bool array = begin != std::string_view::npos && text[begin] == '[';
  array ? each_element(text, name, sink) : each_line(text, name, sink);
}

/// The split that a file's name sets its rows aside for; nothing where they may be dealt out.
std::optional<Split> named_split(const fs::path& path) {
  const std::string stem = path.stem().string();
  if (stem.starts_with("val") || stem.starts_with("dev")) return Split::val;
  if (stem.starts_with("test")) return Split::test;
  return std::nullopt;
}

void count(std::vector<RecordImportSummary::Group>& groups, const std::string& what,
           const std::string& source) {
  const auto group = std::ranges::find(groups, what, &RecordImportSummary::Group::what);
  if (group != groups.end())
    ++group->count;
  else
    groups.push_back({.what = what, .first = source, .count = 1});
}

/// The reason alone of "SOURCE: messages[3]: REASON", so that like ones can be counted.
std::string reason_of(std::string_view message, std::string_view source) {
  if (message.starts_with(source)) message.remove_prefix(source.size());
  while (message.starts_with(':') || message.starts_with(' ')) message.remove_prefix(1);
  std::string reason;
  bool in_brackets = false;
  for (const char c : message) {
    in_brackets = in_brackets && c != ']';
    if (!in_brackets) reason += c;
    in_brackets = in_brackets || c == '[';
  }
  return reason;
}

}  // namespace

RecordImportSummary import_records(const RecordImportOptions& options) {
  options.shares.validate();
  RecordImportSummary summary;
  std::vector<std::string> lines;
  std::vector<std::optional<Split>> splits;
  const RecordRules any_template;
  for (const fs::path& path : options.inputs) {
    const auto named = named_split(path);
    ++summary.files;
    each_row(path, options.delimiter, [&](std::string_view text, const std::string& source) {
      ++summary.rows;
      try {
        const Json json = Json::parse(mend_line(text), source, {.bytes = kRowLimit});
        ConvertedRow row = convert_published(json, options.form, options.columns);
        parse_record(row.line, source, any_template);
        for (const std::string& change : row.changes) count(summary.changed, change, source);
        lines.push_back(std::move(row.line));
        splits.push_back(named);
      } catch (const UsageError&) {
        throw;
      } catch (const Error& error) {
        count(summary.left_out, reason_of(error.what(), source), source);
      }
      return true;
    });
  }
  if (lines.empty())
    throw Error(fmt::format("none of {} rows could be imported as {}{}", summary.rows,
                            published_form_name(options.form),
                            summary.left_out.empty()
                                ? ""
                                : fmt::format("; {}: {}", summary.left_out.front().first,
                                              summary.left_out.front().what)));
  const auto unnamed = static_cast<size_t>(std::ranges::count(splits, std::optional<Split>()));
  // Where the input has a file for a split, no other rows go there.
  SplitShares shares = options.shares;
  if (std::ranges::find(splits, std::optional(Split::val)) != splits.end()) shares.val = 0;
  if (std::ranges::find(splits, std::optional(Split::test)) != splits.end()) shares.test = 0;
  if (unnamed > 0) {
    const std::vector<Split> dealt = deal_out(unnamed, shares, "records", "");
    size_t next = 0;
    for (auto& split : splits)
      if (!split) split = dealt[next++];
  }
  std::vector<Split> settled;
  settled.reserve(splits.size());
  for (const auto& split : splits) settled.push_back(*split);
  SplitFiles files(
      options.out, settled,
      options.overwrite ? SplitFiles::Existing::replace : SplitFiles::Existing::refuse);
  for (size_t i = 0; i < lines.size(); ++i) {
    files.write(settled[i], lines[i]);
    ++summary.records[static_cast<size_t>(settled[i])];
  }
  files.commit();
  return summary;
}

std::string import_advice(const fs::path& path) {
  const std::string extension = path.extension().string(), name = path.string();
  const auto command = [&](std::string_view looks_like, PublishedForm form) {
    return fmt::format("{}; make records of it with `mixtral data import --from {} {} --out DIR`",
                       looks_like, published_form_name(form), name);
  };
  if (extension == ".parquet") return std::string(kParquetAdvice);
  if (extension == ".csv" || extension == ".tsv")
    return command("it is a table", PublishedForm::csv);
  if (extension != ".json" && extension != ".jsonl" && extension != ".ndjson") return {};
  std::optional<PublishedForm> form;
  try {
    each_row(path, 0, [&](std::string_view text, const std::string& source) {
      form = recognise_published(Json::parse(mend_line(text), source, {.bytes = kRowLimit}));
      return false;
    });
  } catch (const Error&) {
    return {};  // what is wrong with the line is said elsewhere
  }
  if (form) return command(fmt::format("it looks like {}", published_form_name(*form)), *form);
  // A list of records, or lines under another name.
  return extension == ".jsonl" ? "" : command("it is no .jsonl file", PublishedForm::trl);
}

}  // namespace mixtral
