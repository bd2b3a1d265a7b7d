#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"

namespace mixtral {

/// Forms in which data sets are published.
enum class PublishedForm {
  sharegpt,       // {"conversations": [{"from": "human" | "gpt" | "system", "value"}], "system"?}
  alpaca,         // {"instruction", "input"?, "output", "system"?, "history"?: [[user, answer]]}
  ultrafeedback,  // {"prompt", "chosen", "rejected"} as turns, with scores; or as first published,
                  // {"instruction", "completions": [{"response", "overall_score"}]}
  hh,             // {"chosen", "rejected"} as transcripts of "\n\nHuman: " and "\n\nAssistant: "
  trl,            // {"messages"}, {"prompt", "completion"} or {"prompt"?, "chosen", "rejected"}, as
                  // turns or as text; {"prompt", "completion", "label"}
  csv,            // a table whose columns are called as a record's keys are
};
/// "sharegpt", "alpaca", "ultrafeedback", "hh", "trl", "csv".
std::string_view published_form_name(PublishedForm form);
/// The form of that name. Throws UsageError, listing the names.
PublishedForm parse_published_form(std::string_view name);

/// The form of a row, where it is none that training reads as it is; nothing where it is none of
/// these.
std::optional<PublishedForm> recognise_published(const Json& row);
/// The same, and trl where the row is a record that training reads as it is, of text.
std::optional<PublishedForm> recognise_row(const Json& row);

/// Whether a form, or a record, has a use for a key, or refuses it: other columns of a table need
/// not be read.
bool is_published_key(std::string_view key);

/// A row as a record that training reads.
struct ConvertedRow {
  std::string line;                  // JSON, without a newline
  std::vector<std::string> changes;  // what is not there any more: "a first turn of the assistant"
};

/// Turns a row into a record. `columns` says which key of a row stands for a key of the form:
/// {"prompt", "question"}. Throws Error naming the row's source when the row is of another form, or
/// when a part of it would be lost, such as a tool's turn.
ConvertedRow convert_published(const Json& row, PublishedForm form,
                               const std::map<std::string, std::string>& columns);

}  // namespace mixtral
