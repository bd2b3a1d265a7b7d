#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "text/chat_template.h"

namespace mixtral {

enum class Split { train, val, test };
inline constexpr Split kSplits[] = {Split::train, Split::val, Split::test};
/// "train", "val", "test".
std::string_view split_name(Split split);

/// What a line of a data file holds.
enum class RecordKind {
  text,  // {"text"}: a document
  // {"messages": [{"role", "content", "weight"?}]}: only the assistant's turns are learnt, and
  // not those of weight 0
  messages,
  completion,      // {"prompt", "completion"}: only the completion is learnt; given as lists of
                   // turns, the record is one of messages
  ids,             // {"input_ids", "labels"?}: labels as Hugging Face has them: one a token, not
                   // shifted, -100 where nothing is to be learnt; absent: every token
  preference,      // {"prompt", "chosen", "rejected"}
  preference_ids,  // {"prompt_ids", "chosen_ids", "rejected_ids"}
  // {"prompt"?, "chosen", "rejected"} as lists of turns: where the two part, answers begin
  preference_messages,
};
inline constexpr int kRecordKinds = 7;
/// The record's keys, as people write them: "prompt, completion".
std::string_view record_kind_name(RecordKind kind);
/// Whether a record is a pair for preference training; such files hold nothing else.
inline bool is_preference(RecordKind kind) { return kind >= RecordKind::preference; }

struct Record {
  RecordKind kind = RecordKind::text;
  std::string text;
  std::vector<Message> messages;           // of a pair: with the chosen answer
  std::vector<Message> rejected_messages;  // with the rejected one
  std::string prompt, completion, chosen, rejected;
  std::vector<int32_t> ids, labels;
  std::vector<int32_t> prompt_ids, chosen_ids, rejected_ids;
};

struct RecordRules {
  int64_t vocab_size = int64_t{1} << 31;  // token ids must be below
  ChatTemplate chat_template = ChatTemplate::mistral_v1;
};

/// Reads one line, without its newline. A key whose value is null counts as absent. Keys that
/// belong to no kind are ignored, as data sets often carry them. Throws Error "SOURCE: reason" when
/// the line is no record: not JSON, a byte order mark, CR LF, NUL characters, a missing key, keys
/// of two kinds, a wrong role, nothing to learn, ids outside the vocabulary, labels of another
/// length, or a field that would change what is learnt and is not read (record_fields.h).
Record parse_record(std::string_view line, std::string_view source, const RecordRules& rules);

/// The line as it can be saved: byte order mark, CR and NUL characters dropped, invalid UTF-8 and
/// lone surrogates replaced by U+FFFD.
std::string mend_line(std::string_view line);
/// The same, or nothing when it is no record even then.
std::optional<std::string> fix_record(std::string_view line, const RecordRules& rules);

/// A file of records, mapped: one JSON object a line (.jsonl), or the whole as one text (.txt).
class RecordFile {
 public:
  /// Throws Error when the file cannot be read, or its name ends in neither .jsonl nor .txt.
  explicit RecordFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  bool is_plain_text() const { return plain_; }
  std::string_view bytes() const { return file_.text(); }
  int64_t lines() const { return static_cast<int64_t>(starts_.size()) - 1; }
  /// The i-th line from 0, without its newline.
  std::string_view line(int64_t i) const;
  /// "train.jsonl:12" for the i-th line from 0.
  std::string source(int64_t i) const;

 private:
  MappedFile file_;
  bool plain_ = false;
  std::vector<size_t> starts_;  // [lines + 1]
};

/// The files that --data names.
struct DataFiles {
  std::filesystem::path train, val, test;  // empty: there is none
  bool single = false;                     // one file for everything; then it is `train`
  /// A folder of texts, each a document: its files in order. Then `single`, too, and `train` is the
  /// folder.
  std::vector<std::filesystem::path> texts;

  /// A directory with train, val (or valid, validation) and test .jsonl or .txt; or one with .txt
  /// and .md files of other names, also in its folders (hidden ones and links are passed over); or
  /// one file. Throws Error, which says what was looked for.
  static DataFiles find(const std::filesystem::path& data);
  const std::filesystem::path& operator[](Split split) const;
};

}  // namespace mixtral
