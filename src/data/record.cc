#include "data/record.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

#include "base/error.h"
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

bool is_blank(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](unsigned char c) { return std::isspace(c) != 0; });
}

/// A string that text may be made of: not blank (where `needed`), without NUL characters.
std::string text_of(const Json& value, bool needed) {
  const std::string& text = value.as_string();
  if (text.find('\0') != std::string::npos) refuse(value.where(), "holds a NUL character");
  if (needed && is_blank(text)) refuse(value.where(), "is empty");
  return text;
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

void read_messages(const Json& value, std::string_view source, const RecordRules& rules,
                   Record& record) {
  bool answered = false;
  for (const Json& item : value.items()) {
    Message message;
    message.role = item.at("role").as_string();
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      refuse(item.at("role").where(),
             fmt::format("is \"{}\"; expected system, user or assistant", printable(message.role)));
    }
    message.content = text_of(item.at("content"), true);
    answered = answered || message.role == "assistant";
    record.messages.push_back(std::move(message));
  }
  check_messages(rules.chat_template, record.messages, fmt::format("{}: messages", source));
  if (!answered) refuse(source, "messages: there is no assistant's turn to learn from");
}

void read_ids(const Json& json, std::string_view source, const RecordRules& rules, Record& record) {
  record.ids = ids_of(json.at("input_ids"), rules, false);
  const Json* labels = json.find("labels");
  if (labels == nullptr || labels->is_null()) return;
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
    if (json.find(signature.marker) == nullptr) continue;
    if (found != nullptr) {
      refuse(source, fmt::format("has both \"{}\" and \"{}\"; keep one of them", found->marker,
                                 signature.marker));
    }
    found = &signature;
  }
  if (found != nullptr) return found->kind;
  if (json.find("rejected") != nullptr) refuse(source, "the key \"chosen\" is missing");
  if (json.find("rejected_ids") != nullptr) refuse(source, "the key \"chosen_ids\" is missing");
  if (json.find("prompt") != nullptr) refuse(source, "the key \"completion\" is missing");
  if (json.find("labels") != nullptr) refuse(source, "the key \"input_ids\" is missing");
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
      "prompt_ids, chosen_ids, rejected_ids"};
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
  switch (record.kind) {
    case RecordKind::text:
      record.text = text_of(json.at("text"), true);
      break;
    case RecordKind::messages:
      read_messages(json.at("messages"), source, rules, record);
      break;
    case RecordKind::completion:
      record.prompt = text_of(json.at("prompt"), false);
      record.completion = text_of(json.at("completion"), true);
      break;
    case RecordKind::ids:
      read_ids(json, source, rules, record);
      break;
    case RecordKind::preference:
      record.prompt = text_of(json.at("prompt"), true);
      record.chosen = text_of(json.at("chosen"), true);
      record.rejected = text_of(json.at("rejected"), true);
      if (record.chosen == record.rejected) refuse(source, "chosen and rejected are the same");
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

std::optional<std::string> fix_record(std::string_view line, const RecordRules& rules) {
  if (line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
  while (line.ends_with('\r')) line.remove_suffix(1);
  std::string fixed(line);
  std::erase(fixed, '\0');
  fixed = fix_escapes(to_valid_utf8(fixed));
  try {
    parse_record(fixed, "line", rules);
  } catch (const Error&) {
    return std::nullopt;
  }
  return fixed;
}

RecordFile::RecordFile(const std::filesystem::path& path) : file_(path) {
  const auto extension = path.extension();
  plain_ = extension == ".txt";
  if (!plain_ && extension != ".jsonl") {
    throw Error(fmt::format("{}: expected a .jsonl file of records or a .txt file of plain text",
                            path.string()));
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
  if (files.train.empty() && files.val.empty() && files.test.empty()) {
    std::string hint;
    for (const char* part : {"pretrain_data", "finetune_data", "preference_data"}) {
      if (fs::exists(data / part / "train.jsonl")) {
        hint +=
            fmt::format("{}{}", hint.empty() ? "; did you mean " : ", ", (data / part).string());
      }
    }
    throw Error(
        fmt::format("{}: expected train.jsonl, val.jsonl (or valid.jsonl) or test.jsonl in "
                    "it, found none{}",
                    data.string(), hint));
  }
  return files;
}

const std::filesystem::path& DataFiles::operator[](Split split) const {
  return split == Split::train ? train : split == Split::val ? val : test;
}

}  // namespace mixtral
