#include "data/import_records.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <utility>

#include "base/advice.h"
#include "base/error.h"
#include "data/import_rows.h"
#include "data/record.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

using Columns = std::map<std::string, std::string>;

constexpr uint64_t kRowLimit = uint64_t{64} << 20;

/// The split that a file's name sets its rows aside for; nothing where they may be dealt out.
std::optional<Split> named_split(const fs::path& path) {
  std::string stem = path.stem().string();
  // The files of the hub's own conversion to Parquet have numbers in a folder of the split's name.
  const auto is_digit = [](unsigned char c) { return std::isdigit(c) != 0; };
  if (is_parquet(path) && std::ranges::all_of(stem, is_digit))
    stem = path.parent_path().filename().string();
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

/// Throws an Error for a file whose rows are of no form that is known.
[[noreturn]] void refuse_form(const fs::path& path) {
  throw AdvisedError(fmt::format(
      "{}: the columns {} are of no form that is known; ‹columns prompt=COLUMN,completion=COLUMN› "
      "says which are the ones of a form",
      path.string(), fmt::join(parquet_columns(path), ", ")));
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

/// Records of the rows of one file after another.
class Importer {
 public:
  explicit Importer(const RecordImportOptions& options) : options_(options) {}

  void read(const fs::path& path) {
    std::optional<PublishedForm> form = options_.form;
    if (!form && !is_parquet(path))
      throw AdvisedUsageError(fmt::format(
          "‹from parquet› reads .parquet files; say the form of {} instead", path.string()));
    const auto named = named_split(path);
    const int64_t rows_before = summary.rows;
    ++summary.files;
    each_row(path, {.delimiter = options_.delimiter, .columns = options_.columns},
             [&](std::string_view text, const std::string& source) {
               ++summary.rows;
               try {
                 lines.push_back(record_of(text, source, form, !is_parquet(path)));
                 splits.push_back(named);
               } catch (const UsageError&) {
                 throw;
               } catch (const Error& error) {
                 count(summary.left_out, reason_of(error.what(), source), source);
               }
               return true;
             });
    if (!form && summary.rows > rows_before) refuse_form(path);
    if (form && !options_.form)
      count(summary.recognised, std::string(published_form_name(*form)), path.string());
  }

  RecordImportSummary summary;
  std::vector<std::string> lines;
  std::vector<std::optional<Split>> splits;  // one a line

 private:
  /// The record of a row. Where the form is still to be found, the row shows it.
  std::string record_of(std::string_view text, const std::string& source,
                        std::optional<PublishedForm>& form, bool has_own_keys) {
    const Json json = Json::parse(mend_line(text), source, {.bytes = kRowLimit});
    if (!form) form = recognise_row(json);
    if (!form) throw Error(fmt::format("{}: is of no form that is known", source));
    ConvertedRow row = convert_published(json, *form, has_own_keys ? options_.columns : Columns());
    parse_record(row.line, source, any_template_);
    for (const std::string& change : row.changes) count(summary.changed, change, source);
    return std::move(row.line);
  }

  const RecordImportOptions& options_;
  const RecordRules any_template_;
};

[[noreturn]] void refuse_rows(const RecordImportSummary& summary, const fs::path& file,
                              std::optional<PublishedForm> form) {
  std::string reason;
  if (!summary.left_out.empty())
    reason = fmt::format("; {}: {}", summary.left_out.front().first, summary.left_out.front().what);
  if (is_parquet(file))
    reason +=
        fmt::format("; the columns of the file are {}", fmt::join(parquet_columns(file), ", "));
  throw Error(fmt::format("none of {} rows could be imported{}{}", summary.rows,
                          form ? fmt::format(" as {}", published_form_name(*form)) : "", reason));
}

}  // namespace

RecordImportSummary import_records(const RecordImportOptions& options) {
  options.shares.validate();
  Importer importer(options);
  const std::vector<fs::path> inputs = find_row_files(options.inputs);
  for (const fs::path& path : inputs) importer.read(path);
  RecordImportSummary& summary = importer.summary;
  const auto& lines = importer.lines;
  auto& splits = importer.splits;
  if (lines.empty()) refuse_rows(summary, inputs.front(), options.form);
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
  return std::move(summary);
}

namespace {

/// The form of a file's first row; nothing where it has none that is known.
std::optional<PublishedForm> first_form(const fs::path& path) {
  std::optional<PublishedForm> form;
  each_row(path, {}, [&](std::string_view text, const std::string& source) {
    const Json row = Json::parse(mend_line(text), source, {.bytes = kRowLimit});
    form = is_parquet(path) ? recognise_row(row) : recognise_published(row);
    return false;
  });
  return form;
}

std::string parquet_advice(const fs::path& path) {
  try {
    if (const auto form = first_form(path))
      return fmt::format(
          "it looks like {}; make records of it with `mixtral data import --from parquet {} --out "
          "DIR`",
          published_form_name(*form), path.string());
    return fmt::format(
        "its columns are {}; make records of it with "
        "`mixtral data import --from parquet {} --columns prompt=COLUMN,completion=COLUMN --out "
        "DIR`",
        fmt::join(parquet_columns(path), ", "), path.string());
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

std::string import_advice(const fs::path& path) {
  const std::string extension = path.extension().string(), name = path.string();
  const auto command = [&](std::string_view looks_like, PublishedForm form) {
    return fmt::format("{}; make records of it with `mixtral data import --from {} {} --out DIR`",
                       looks_like, published_form_name(form), name);
  };
  if (is_parquet(path)) return parquet_advice(path);
  if (extension == ".csv" || extension == ".tsv")
    return command("it is a table", PublishedForm::csv);
  if (extension != ".json" && extension != ".jsonl" && extension != ".ndjson") return {};
  std::optional<PublishedForm> form;
  try {
    form = first_form(path);
  } catch (const Error&) {
    return {};  // what is wrong with the line is said elsewhere
  }
  if (form) return command(fmt::format("it looks like {}", published_form_name(*form)), *form);
  // A list of records, or lines under another name.
  return extension == ".jsonl" ? "" : command("it is no .jsonl file", PublishedForm::trl);
}

}  // namespace mixtral
