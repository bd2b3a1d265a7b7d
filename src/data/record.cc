#include "data/record.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"
#include "data/import_records.h"
#include "data/record_fields.h"
#include "io/json.h"
#include "ops/vocab.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr uint64_t kLineLimit = uint64_t{64} << 20;

[[noreturn]] void refuse(std::string_view source, std::string_view reason) {
  throw Error(fmt::format("{}: {}", source, reason));
}

std::vector<int32_t> ids_of(const Json& value, const RecordRules& rules, bool labels) {
  std::vector<int32_t> ids;
  ids.reserve(value.items().size());
  for (const Json& item : value.items()) {
    const int64_t id = item.as_int();
    if (labels && id == ops::kIgnoredLabel) {
      ids.push_back(ops::kIgnoredLabel);
      continue;
    }
    if (id < 0 || id >= rules.vocab_size) {
      refuse(item.where(), fmt::format("{} is outside the vocabulary of {}{}", id, rules.vocab_size,
                                       labels ? " and not -100" : ""));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  if (ids.empty()) refuse(value.where(), "is empty");
  return ids;
}

std::vector<Message> read_turns(const Json& value) {
  std::vector<Message> turns;
  for (const Json& item : value.items()) turns.push_back(read_turn(item));
  return turns;
}

/// Refuses a conversation that the template cannot hold, or that has no turn to learn.
void require_learnt(const std::vector<Message>& messages, std::string_view key,
                    std::string_view source, const RecordRules& rules) {
  check_messages(rules.chat_template, messages, fmt::format("{}: {}", source, key));
  const auto answers = [](const Message& turn) { return turn.role == "assistant"; };
  if (std::ranges::none_of(messages, answers))
    refuse(source, fmt::format("{}: there is no assistant's turn to learn from", key));
  if (std::ranges::none_of(messages,
                           [&](const Message& turn) { return answers(turn) && turn.learnt; }))
    refuse(source, fmt::format("{}: every assistant's turn has the weight 0, so there is nothing "
                               "to learn",
                               key));
}

void read_messages(const Json& json, std::string_view source, const RecordRules& rules,
                   Record& record) {
  record.messages = read_turns(json.at("messages"));
  require_learnt(record.messages, "messages", source, rules);
}

/// {"prompt", "completion"} as lists of turns: of the prompt nothing is learnt.
void read_completion(const Json& json, std::string_view source, const RecordRules& rules,
                     Record& record) {
  const Json& prompt = json.at("prompt");
  const Json& completion = json.at("completion");
  if (prompt.is_array() != completion.is_array())
    refuse(source, "prompt and completion: expected two strings, or two lists of turns");
  if (!prompt.is_array()) {
    record.prompt = record_text(prompt, Needed::no);
    record.completion = record_text(completion, Needed::yes);
    return;
  }
  record.kind = RecordKind::messages;
  record.messages = read_turns(prompt);
  for (Message& turn : record.messages) turn.learnt = false;
  for (Message& turn : read_turns(completion)) record.messages.push_back(std::move(turn));
  require_learnt(record.messages, "prompt and completion", source, rules);
}

bool same_turn(const Message& a, const Message& b) {
  return a.role == b.role && a.content == b.content;
}

/// A pair as lists of turns. What the two have in common, from the front, is the prompt.
void read_pair_of_turns(const Json& json, std::string_view source, const RecordRules& rules,
                        Record& record) {
  record.kind = RecordKind::preference_messages;
  const Json* prompt = find_value(json, "prompt");
  std::vector<Message> chosen = read_turns(json.at("chosen")),
                       rejected = read_turns(json.at("rejected"));
  std::vector<Message> before;
  if (prompt != nullptr && prompt->is_array())
    before = read_turns(*prompt);
  else if (prompt != nullptr && !chosen.empty() && chosen.front().role == "assistant")
    before.push_back({"user", record_text(*prompt, Needed::yes)});
  for (std::vector<Message>* turns : {&chosen, &rejected})
    turns->insert(turns->begin(), before.begin(), before.end());
  const auto [first, other] = std::ranges::mismatch(chosen, rejected, same_turn);
  const auto common = first - chosen.begin();
  if (prompt != nullptr && prompt->is_string() &&
      std::none_of(chosen.begin(), first, [&](const Message& turn) {
        return turn.role == "user" && turn.content == prompt->as_string();
      }))
    refuse(source, "prompt: is no turn that chosen and rejected have in common");
  if (first == chosen.end() && other == rejected.end())
    refuse(source, "chosen and rejected are the same");
  for (std::vector<Message>* turns : {&chosen, &rejected}) {
    for (auto turn = turns->begin(); turn != turns->begin() + common; ++turn) turn->learnt = false;
    const std::string_view key = turns == &chosen ? "chosen" : "rejected";
    if (turns->begin() + common == turns->end() ||
        turns->at(static_cast<size_t>(common)).role != "assistant")
      refuse(source,
             fmt::format("{}: expected an assistant's turn where chosen and rejected part", key));
    require_learnt(*turns, key, source, rules);
  }
  record.messages = std::move(chosen);
  record.rejected_messages = std::move(rejected);
}

void read_pair(const Json& json, std::string_view source, const RecordRules& rules,
               Record& record) {
  const Json& chosen = json.at("chosen");
  const Json& rejected = json.at("rejected");
  if (chosen.is_array() || rejected.is_array())
    return read_pair_of_turns(json, source, rules, record);
  record.prompt = record_text(json.at("prompt"), Needed::yes);
  record.chosen = record_text(chosen, Needed::yes);
  record.rejected = record_text(rejected, Needed::yes);
  if (record.chosen == record.rejected) refuse(source, "chosen and rejected are the same");
}

void read_ids(const Json& json, std::string_view source, const RecordRules& rules, Record& record) {
  record.ids = ids_of(json.at("input_ids"), rules, false);
  const Json* labels = find_value(json, "labels");
  if (labels == nullptr) return;
  record.labels = ids_of(*labels, rules, true);
  if (record.labels.size() != record.ids.size()) {
    refuse(source, fmt::format("labels: {} of them for {} input_ids; expected one each (not "
                               "shifted)",
                               record.labels.size(), record.ids.size()));
  }
  // The first token has nothing before it, so its label is never used.
  if (std::all_of(record.labels.begin() + 1, record.labels.end(),
                  [](int32_t label) { return label == ops::kIgnoredLabel; })) {
    refuse(source, "labels: all are masked, so there is nothing to learn");
  }
}

RecordKind kind_of(const Json& json, std::string_view source) {
  struct Signature {
    RecordKind kind;
    std::string_view marker;  // a key that only this kind has
  };
  constexpr Signature kSignatures[] = {
      {RecordKind::text, "text"},
      {RecordKind::messages, "messages"},
      {RecordKind::completion, "completion"},
      {RecordKind::ids, "input_ids"},
      {RecordKind::preference, "chosen"},
      {RecordKind::preference_ids, "chosen_ids"},
  };
  const Signature* found = nullptr;
  for (const Signature& signature : kSignatures) {
    if (find_value(json, signature.marker) == nullptr) continue;
    if (found != nullptr) {
      refuse(source, fmt::format("has both \"{}\" and \"{}\"; keep one of them", found->marker,
                                 signature.marker));
    }
    found = &signature;
  }
  if (found != nullptr) return found->kind;
  if (find_value(json, "rejected") != nullptr) refuse(source, "the key \"chosen\" is missing");
  if (find_value(json, "rejected_ids") != nullptr)
    refuse(source, "the key \"chosen_ids\" is missing");
  if (find_value(json, "prompt") != nullptr) refuse(source, "the key \"completion\" is missing");
  if (find_value(json, "labels") != nullptr) refuse(source, "the key \"input_ids\" is missing");
  refuse(source,
         "no known key; expected \"text\", \"messages\", \"prompt\" and \"completion\", "
         "\"input_ids\", or \"prompt\" with \"chosen\" and \"rejected\"");
}

/// The four hexadecimal digits of an escape at `position`, or -1.
int escape_value(std::string_view line, size_t position) {
  if (position + 6 > line.size() || line[position] != '\\' || line[position + 1] != 'u') return -1;
  int value = 0;
  const char* begin = line.data() + position + 2;
  const auto [end, error] = std::from_chars(begin, begin + 4, value, 16);
  return error == std::errc() && end == begin + 4 ? value : -1;
}

/// Drops escaped NULs and replaces lone surrogates' escapes.
std::string fix_escapes(std::string_view line) {
  std::string result;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] != '\\' || i + 1 == line.size()) {
      result += line[i];
      continue;
    }
    const int value = escape_value(line, i);
    if (value < 0) {
      result += line.substr(i++, 2);
    } else if (value >= 0xD800 && value < 0xE000) {
      const int next = escape_value(line, i + 6);
      const bool pair = value < 0xDC00 && next >= 0xDC00 && next < 0xE000;
      result += pair ? line.substr(i, 12) : std::string_view("\\ufffd");
      i += pair ? 11 : 5;
    } else {
      if (value != 0) result += line.substr(i, 6);
      i += 5;
    }
  }
  return result;
}

}  // namespace

std::string_view split_name(Split split) {
  constexpr std::string_view kNames[] = {"train", "val", "test"};
  return kNames[static_cast<int>(split)];
}

std::string_view record_kind_name(RecordKind kind) {
  constexpr std::array<std::string_view, kRecordKinds> kNames{
      "text",
      "messages",
      "prompt, completion",
      "input_ids",
      "prompt, chosen, rejected",
      "prompt_ids, chosen_ids, rejected_ids",
      "chosen, rejected as messages"};
  return kNames[static_cast<size_t>(kind)];
}

Record parse_record(std::string_view line, std::string_view source, const RecordRules& rules) {
  if (line.starts_with(kByteOrderMark)) refuse(source, "begins with a byte order mark");
  if (line.ends_with('\r')) refuse(source, "ends with CR LF; expected LF alone");
  if (line.find('\0') != std::string_view::npos) refuse(source, "holds a NUL byte");
  if (is_blank(line)) refuse(source, "is empty");
  const Json json = Json::parse(line, source, {.bytes = kLineLimit});
  if (!json.is_object()) refuse(source, "is no JSON object");

  Record record;
  record.kind = kind_of(json, source);
  refuse_unread_fields(json, record.kind, source);
  switch (record.kind) {
    case RecordKind::text:
      record.text = record_text(json.at("text"), Needed::yes);
      break;
    case RecordKind::messages:
      read_messages(json, source, rules, record);
      break;
    case RecordKind::completion:
      read_completion(json, source, rules, record);
      break;
    case RecordKind::ids:
      read_ids(json, source, rules, record);
      break;
    case RecordKind::preference:
    case RecordKind::preference_messages:
      read_pair(json, source, rules, record);
      break;
    case RecordKind::preference_ids:
      record.prompt_ids = ids_of(json.at("prompt_ids"), rules, false);
      record.chosen_ids = ids_of(json.at("chosen_ids"), rules, false);
      record.rejected_ids = ids_of(json.at("rejected_ids"), rules, false);
      if (record.chosen_ids == record.rejected_ids) {
        refuse(source, "chosen_ids and rejected_ids are the same");
      }
      break;
  }
  return record;
}

std::string mend_line(std::string_view line) {
  if (line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
  while (line.ends_with('\r')) line.remove_suffix(1);
  std::string fixed(line);
  std::erase(fixed, '\0');
  return fix_escapes(to_valid_utf8(fixed));
}

std::optional<std::string> fix_record(std::string_view line, const RecordRules& rules) {
  std::string fixed = mend_line(line);
  try {
    parse_record(fixed, "line", rules);
  } catch (const Error&) {
    return std::nullopt;
  }
  return fixed;
}

RecordFile::RecordFile(const std::filesystem::path& path) : file_(path) {
  const auto extension = path.extension();
  plain_ = extension == ".txt" || extension == ".md";
  if (!plain_ && extension != ".jsonl") {
    const std::string advice = import_advice(path);
    throw Error(fmt::format("{}: expected a .jsonl file of records or a .txt file of plain text{}",
                            path.string(), advice.empty() ? "" : "; " + advice));
  }
  starts_.push_back(0);
  const std::string_view text = bytes();
  if (plain_ || text.empty()) {
    if (!text.empty()) starts_.push_back(text.size() + 1);
    return;
  }
  for (size_t at = text.find('\n'); at != std::string_view::npos; at = text.find('\n', at + 1)) {
    starts_.push_back(at + 1);
  }
  if (text.back() != '\n') starts_.push_back(text.size() + 1);
}

std::string_view RecordFile::line(int64_t i) const {
  const size_t begin = starts_[static_cast<size_t>(i)], end = starts_[static_cast<size_t>(i) + 1];
  return bytes().substr(begin, end - begin - 1);
}

std::string RecordFile::source(int64_t i) const {
  return fmt::format("{}:{}", path().string(), i + 1);
}

namespace {

/// The .txt and .md files of a folder and the folders in it, in order; none where there are tables
/// or records, too, beside which a README.md would be all that is learnt.
std::vector<std::filesystem::path> find_texts(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  std::vector<fs::path> texts;
  for (fs::recursive_directory_iterator entry(folder), end; entry != end; ++entry) {
    const bool hidden = entry->path().filename().string().starts_with('.');
    if (hidden || entry->is_symlink()) {
      if (entry->is_directory()) entry.disable_recursion_pending();
      continue;
    }
    const auto extension = entry->path().extension();
    for (const char* other : {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"})
      if (extension == other) return {};
    if (entry->is_regular_file() && (extension == ".txt" || extension == ".md"))
      texts.push_back(entry->path());
  }
  std::ranges::sort(texts);
  return texts;
}

}  // namespace

DataFiles DataFiles::find(const std::filesystem::path& data) {
  namespace fs = std::filesystem;
  DataFiles files;
  if (!fs::exists(data)) {
    throw Error(fmt::format("{}: there is no such file or directory of data", data.string()));
  }
  if (!fs::is_directory(data)) {
    files.train = data;
    files.single = true;
    return files;
  }
  auto first_of = [&](std::initializer_list<const char*> stems) -> fs::path {
    for (const char* stem : stems) {
      for (const char* extension : {".jsonl", ".txt"}) {
        const fs::path path = data / (std::string(stem) + extension);
        if (fs::exists(path)) return path;
      }
    }
    return {};
  };
  files.train = first_of({"train"});
  files.val = first_of({"val", "valid", "validation"});
  files.test = first_of({"test"});
  if (!files.train.empty() || !files.val.empty() || !files.test.empty()) return files;
  files.texts = find_texts(data);
  if (!files.texts.empty()) {
    files.train = data;
    files.single = true;
    return files;
  }
  std::string hint;
  for (const char* part : {"pretrain_data", "finetune_data", "preference_data"}) {
    if (fs::exists(data / part / "train.jsonl")) {
      hint += fmt::format("{}{}", hint.empty() ? "; did you mean " : ", ", (data / part).string());
    }
  }
  throw Error(
      fmt::format("{}: expected train.jsonl, val.jsonl (or valid.jsonl) or test.jsonl in "
                  "it, or texts (.txt, .md), found none{}",
                  data.string(), hint));
}

const std::filesystem::path& DataFiles::operator[](Split split) const {
  return split == Split::train ? train : split == Split::val ? val : test;
}

}  // namespace mixtral
