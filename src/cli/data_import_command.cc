#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/messages.h"
#include "cli/common.h"
#include "cli/data_command.h"
#include "data/import.h"
#include "data/import_records.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

struct ImportCommandOptions {
  std::vector<std::string> inputs, extensions{"txt", "md"}, columns;
  std::string from = "text", out, encoding = "utf8", delimiter;
  int64_t max_characters = 20'000;
  SplitShares shares;
  bool overwrite = false, quiet = false, json = false;
};

void report_texts(const ImportCommandOptions& o, const ImportSummary& summary) {
  for (const std::string& note : summary.notes) messages::print("note: {}", note);
  for (const std::string& skipped : summary.skipped) messages::print("skipped: {}", skipped);
  if (o.json) {
    ordered_json json{{"out", o.out}, {"files", summary.files}};
    for (Split split : kSplits) {
      const auto s = static_cast<size_t>(split);
      json[split_name(split)] = {{"documents", summary.documents[s]}, {"bytes", summary.bytes[s]}};
    }
    json["notes"] = summary.notes;
    json["skipped"] = summary.skipped;
    put(json.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n");
  }
  if (o.quiet) return;
  std::string line = fmt::format("{}: {} files", o.out, summary.files);
  for (Split split : kSplits) {
    const auto s = static_cast<size_t>(split);
    line += fmt::format("; {} {} documents, {:.2f} MB", split_name(split), summary.documents[s],
                        static_cast<double>(summary.bytes[s]) / 1e6);
  }
  messages::line(line);
}

void report_records(const ImportCommandOptions& o, const RecordImportSummary& summary) {
  const auto groups_json = [](const std::vector<RecordImportSummary::Group>& groups) {
    ordered_json list = ordered_json::array();
    for (const auto& group : groups)
      list.push_back({{"what", group.what}, {"count", group.count}, {"first", group.first}});
    return list;
  };
  if (o.json) {
    ordered_json json{{"out", o.out}, {"files", summary.files}, {"rows", summary.rows}};
    for (Split split : kSplits)
      json[split_name(split)] = {{"records", summary.records[static_cast<size_t>(split)]}};
    json["recognised"] = groups_json(summary.recognised);
    json["changed"] = groups_json(summary.changed);
    json["left_out"] = groups_json(summary.left_out);
    put(json.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n");
  }
  if (o.quiet) return;
  const int64_t written = summary.records[0] + summary.records[1] + summary.records[2];
  messages::print("{}: {} of {} rows written: train {}, val {}, test {}", o.out, written,
                  summary.rows, summary.records[0], summary.records[1], summary.records[2]);
  for (const auto& group : summary.recognised)
    messages::print("  read as {}: {} files (first {})", group.what, group.count, group.first);
  for (const auto& group : summary.changed)
    messages::print("  changed: {} records lost {} (first {})", group.count, group.what,
                    group.first);
  for (const auto& group : summary.left_out)
    messages::print("  left out: {} rows: {} (first {})", group.count, group.what, group.first);
}

/// "prompt=question" as a key and its column.
std::map<std::string, std::string> parse_columns(const std::vector<std::string>& columns) {
  std::map<std::string, std::string> result;
  for (const std::string& item : columns) {
    const size_t at = item.find('=');
    if (at == std::string::npos || at == 0 || at + 1 == item.size())
      throw UsageError(fmt::format(
          "--columns takes KEY=COLUMN, such as prompt=question,completion=answer; found \"{}\"",
          printable(item)));
    result[item.substr(0, at)] = item.substr(at + 1);
  }
  return result;
}

char parse_delimiter(const std::string& text) {
  if (text.empty()) return 0;
  if (text == "tab" || text == "\\t") return '\t';
  if (text.size() != 1 || text == "\"" || text == "\n")
    throw UsageError(
        fmt::format("--delimiter is one character or tab, not \"{}\"", printable(text)));
  return text.front();
}

void run_import(const cli::App& command, const ImportCommandOptions& o) {
  const std::vector<std::filesystem::path> inputs(o.inputs.begin(), o.inputs.end());
  if (o.from != "text") {
    refuse_unused(command, "--from " + o.from, {"--max-chars", "--extensions", "--encoding"});
    if (o.from == "parquet") refuse_unused(command, "--from parquet", {"--delimiter"});
    const auto form =
        o.from == "parquet" ? std::nullopt : std::optional(parse_published_form(o.from));
    report_records(o, import_records({.inputs = inputs,
                                      .out = o.out,
                                      .form = form,
                                      .columns = parse_columns(o.columns),
                                      .delimiter = parse_delimiter(o.delimiter),
                                      .shares = o.shares,
                                      .overwrite = o.overwrite}));
    return;
  }
  refuse_unused(command, "--from text", {"--columns", "--delimiter"});
  ImportOptions import;
  import.inputs = inputs;
  import.out = o.out;
  import.extensions.clear();
  for (const std::string& extension : o.extensions)
    import.extensions.push_back(extension.starts_with('.') ? extension : "." + extension);
  import.encoding = o.encoding == "utf8" ? TextEncoding::utf8 : TextEncoding::latin1;
  import.max_characters = o.max_characters;
  import.shares = o.shares;
  import.overwrite = o.overwrite;
  report_texts(o, import_texts(import));
}

}  // namespace

void add_data_import(cli::App& parent) {
  auto options = std::make_shared<ImportCommandOptions>();
  ImportCommandOptions& o = *options;
  cli::App* command = parent.add_subcommand(
      "import", "Turn texts, or a published data set, into train, val and test .jsonl files");
  command->footer(
      "Examples:\n"
      "  mixtral data import book.txt --out data/book\n"
      "  mixtral data import notes articles --extensions txt,md,rst --test 0 --out data/notes\n"
      "  mixtral data import --from sharegpt chats.json --out data/chats\n"
      "  mixtral data import --from csv faq.csv --columns prompt=question,completion=answer "
      "--out data/faq\n"
      "  mixtral data import --from parquet ultrachat/data --out data/ultrachat\n"
      "Forms of --from:\n"
      "  text           files of text, and folders of them\n"
      "  sharegpt       {\"conversations\": [{\"from\", \"value\"}]}\n"
      "  alpaca         {\"instruction\", \"input\", \"output\"}\n"
      "  ultrafeedback  pairs with scores, or instructions with rated completions (best, worst)\n"
      "  hh             pairs of transcripts: \"\\n\\nHuman: ...\\n\\nAssistant: ...\"\n"
      "  trl            messages, prompt and completion, or pairs, as turns or as text\n"
      "  parquet        .parquet files, or folders of them, whose rows are of one of the forms "
      "above,\n"
      "                 which is recognised; --from FORM reads them, too\n"
      "  csv            a table with the columns text; prompt, completion; prompt, chosen, "
      "rejected;\n"
      "                 or instruction, input, output\n");
  command->add_option("input", o.inputs, "Files, and folders: of text files, or of .parquet files")
      ->required();
  command
      ->add_option("--from", o.from,
                   "Form of the data (below); files are .jsonl, .json, .csv, .tsv or .parquet")
      ->default_str("text");
  command->add_option("--out,-o", o.out, "Directory for train, val and test .jsonl")->required();
  command->add_option("--val", o.shares.val, "Share for validation")->default_str("0.05");
  command->add_option("--test", o.shares.test, "Share for the test")->default_str("0.05");
  command->add_option("--columns", o.columns, "Where a key has another name: KEY=COLUMN,...")
      ->delimiter(',');
  command->add_option("--delimiter", o.delimiter,
                      "Between the fields of a .csv file (default: a comma; tab in .tsv)");
  command
      ->add_option("--max-chars", o.max_characters,
                   "Longer texts are cut, at chapters and paragraphs where possible")
      ->default_str("20000");
  command->add_option("--extensions", o.extensions, "Of the text files taken from folders")
      ->delimiter(',')
      ->default_str("txt,md");
  command->add_option("--encoding", o.encoding, "Of text files: utf8 or latin1")
      ->check(cli::IsMember({"utf8", "latin1"}))
      ->default_str("utf8");
  command->add_option("--seed,-s", o.shares.seed, "Deals the documents out to the splits")
      ->default_str("1");
  command->add_flag("--overwrite", o.overwrite, "Replace the splits that --out holds");
  command->add_flag("--quiet,-q", o.quiet, "No summary");
  command->add_flag("--json", o.json, "The summary as JSON on standard output");
  command->callback([command, options] { run_import(*command, *options); });
}

}  // namespace mixtral
