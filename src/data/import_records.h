#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/import_splits.h"
#include "data/published.h"

namespace mixtral {

struct RecordImportOptions {
  // .jsonl, .json (an array or lines), .csv, .tsv, .parquet, or folders of .parquet files
  std::vector<std::filesystem::path> inputs;
  std::filesystem::path out;  // gets train, val and test .jsonl
  /// Without a value, the inputs are .parquet files, and recognise_row() finds the form of each.
  std::optional<PublishedForm> form;
  std::map<std::string, std::string> columns;  // see convert_published
  char delimiter = 0;                          // of .csv; 0: a comma, and in .tsv a tab
  SplitShares shares;
  bool overwrite = false;  // splits that `out` holds already
};

struct RecordImportSummary {
  /// Rows with the same fate.
  struct Group {
    std::string what;
    std::string first;  // "FILE:12", "FILE: row 12": the first of them
    int64_t count = 0;
  };
  int64_t files = 0, rows = 0, records[3] = {};
  std::vector<Group> recognised;  // files by the form that their rows showed
  std::vector<Group> changed;     // written, without something
  std::vector<Group> left_out;    // not written, and why
};

/// Turns a published data set into records that training reads. A file whose name begins with val,
/// dev or test stays in that split; the rows of others are dealt out to the splits that have no
/// such file (0000.parquet is called as its folder is). Every record was read back before anything
/// is written. Throws Error, with nothing written, when a file cannot be read, its rows are of no
/// form that is known, or no row is left.
RecordImportSummary import_records(const RecordImportOptions& options);

/// What to do with a file that training cannot read as it is, judged by its name and first row: "it
/// looks like sharegpt; make records of it with `mixtral data import …`". Empty where nothing is
/// known of such a file.
std::string import_advice(const std::filesystem::path& path);

}  // namespace mixtral
