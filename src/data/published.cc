#include "data/published.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/advice.h"
#include "base/error.h"
#include "data/record_fields.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;
using Columns = std::map<std::string, std::string>;

constexpr std::array<std::pair<PublishedForm, std::string_view>, 6> kFormNames = {{
    {PublishedForm::sharegpt, "sharegpt"},
    {PublishedForm::alpaca, "alpaca"},
    {PublishedForm::ultrafeedback, "ultrafeedback"},
    {PublishedForm::hh, "hh"},
    {PublishedForm::trl, "trl"},
    {PublishedForm::csv, "csv"},
}};

constexpr std::string_view kHuman = "\n\nHuman:", kAssistant = "\n\nAssistant:";

ConvertedRow as_line(const ordered_json& json, std::vector<std::string> changes = {}) {
  return {json.dump(-1, ' ', false, ordered_json::error_handler_t::replace), std::move(changes)};
}

std::string trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(kSpace) - begin + 1));
}

ordered_json turn(std::string_view role, std::string_view content) {
  return {{"role", role}, {"content", content}};
}

/// A row's values under the keys of its form.
class Row {
 public:
  Row(const Json& json, const Columns& columns) : json_(json), columns_(columns) {
    if (!json.is_object()) throw Error(fmt::format("{}: is no JSON object", json.where()));
  }
  const Json& json() const { return json_; }
  /// Null where the key is absent or null.
  const Json* find(const std::string& key) const {
    const auto column = columns_.find(key);
    return find_value(json_, column == columns_.end() ? key : column->second);
  }
  const Json& at(const std::string& key) const {
    if (const Json* value = find(key)) return *value;
    std::vector<std::string> found;
    for (const auto& [name, value] : json_.members())
      if (found.size() < 8) found.push_back(printable(name));
    throw AdvisedError(
        fmt::format("{}: there is no \"{}\", only {}; name its column with ‹columns "
                    "{}=COLUMN›",
                    json_.where(), key, fmt::join(found, ", "), key));
  }
  /// The text under a key; empty where it is absent.
  std::string text(const std::string& key) const {
    const Json* value = find(key);
    return value ? value->as_string() : "";
  }
  bool has(const std::string& key) const { return find(key) != nullptr; }

 private:
  const Json& json_;
  const Columns& columns_;
};

/// The role that a published turn's means, or an empty text for one of no conversation of two.
std::string_view plain_role(std::string_view role) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kRoles = {{
      {"human", "user"},
      {"user", "user"},
      {"prompter", "user"},
      {"gpt", "assistant"},
      {"chatgpt", "assistant"},
      {"assistant", "assistant"},
      {"bing", "assistant"},
      {"bard", "assistant"},
      {"model", "assistant"},
      {"bot", "assistant"},
      {"system", "system"},
  }};
  for (const auto& [published, plain] : kRoles)
    if (published == role) return plain;
  return {};
}

/// Whether a turn is marked as not to be learnt, as several programs mark it.
bool is_masked(const Json& json) {
  for (const char* key : {"weight", "train", "training", "loss"}) {
    const Json* value = find_value(json, key);
    if (value == nullptr) continue;
    if (value->is_bool() ? !value->as_bool() : value->is_number() && value->as_double() == 0)
      return true;
  }
  return false;
}

ConvertedRow from_sharegpt(const Row& row) {
  refuse_unread_fields(row.json(), RecordKind::messages, row.json().where(), "system");
  ordered_json messages = ordered_json::array();
  std::vector<std::string> changes;
  if (const std::string system = row.text("system"); !system.empty())
    messages.push_back(turn("system", system));
  for (const Json& item : row.at("conversations").items()) {
    const Json* from = find_value(item, "from");
    const Json& role = from ? *from : item.at("role");
    const Json* value = find_value(item, "value");
    const std::string_view plain = plain_role(role.as_string());
    if (plain.empty())
      throw Error(fmt::format("{}: is \"{}\", a role that no conversation of two has", role.where(),
                              printable(role.as_string())));
    const bool first = messages.empty() || messages.back().at("role") == "system";
    if (first && plain == "assistant") {
      changes.emplace_back("a first turn of the assistant");
      continue;
    }
    messages.push_back(turn(plain, (value ? *value : item.at("content")).as_string()));
    if (plain == "assistant" && is_masked(item)) messages.back()["weight"] = 0;
  }
  if (!messages.empty() && messages.back().at("role") == "user") {
    changes.emplace_back("a last turn of the user, which nothing answers");
    messages.erase(messages.size() - 1);
  }
  return as_line({{"messages", messages}}, std::move(changes));
}

ConvertedRow from_alpaca(const Row& row) {
  refuse_unread_fields(row.json(), RecordKind::messages, row.json().where(), "system");
  ordered_json messages = ordered_json::array();
  if (const std::string system = row.text("system"); !system.empty())
    messages.push_back(turn("system", system));
  if (const Json* history = row.find("history"))
    for (const Json& pair : history->items()) {
      if (!pair.is_array() || pair.items().size() != 2)
        throw Error(fmt::format("{}: expected [question, answer]", pair.where()));
      messages.push_back(turn("user", pair.items()[0].as_string()));
      messages.push_back(turn("assistant", pair.items()[1].as_string()));
    }
  const std::string input = row.text("input");
  std::string question = row.at("instruction").as_string();
  if (!is_blank(input)) question += "\n\n" + input;
  messages.push_back(turn("user", question));
  messages.push_back(turn("assistant", row.at("output").as_string()));
  return as_line({{"messages", messages}});
}

ordered_json turns_of(const Json& list) {
  ordered_json turns = ordered_json::array();
  for (const Json& item : list.items()) {
    const Message message = read_turn(item);
    turns.push_back(turn(message.role, message.content));
    if (!message.learnt) turns.back()["weight"] = 0;
  }
  return turns;
}

/// Two conversations as a pair: what they have in common is the prompt.
ConvertedRow pair_of(const ordered_json& chosen, const ordered_json& rejected) {
  size_t common = 0;
  while (common < chosen.size() && common < rejected.size() && chosen[common] == rejected[common])
    ++common;
  const auto rest = [&](const ordered_json& all) {
    ordered_json turns = ordered_json::array();
    for (size_t i = common; i < all.size(); ++i) turns.push_back(all[i]);
    return turns;
  };
  ordered_json prompt = ordered_json::array();
  for (size_t i = 0; i < common; ++i) prompt.push_back(chosen[i]);
  return as_line({{"prompt", prompt}, {"chosen", rest(chosen)}, {"rejected", rest(rejected)}});
}

/// Of several rated answers the best and the worst.
ConvertedRow from_rated(const Row& row) {
  const auto& answers = row.at("completions").items();
  const auto all_have = [&](std::string_view key) {
    return !answers.empty() && std::ranges::all_of(answers, [&](const Json& answer) {
      return find_value(answer, key) != nullptr;
    });
  };
  const char* key = all_have("fine-grained_score") ? "fine-grained_score" : "overall_score";
  const Json *best = nullptr, *worst = nullptr;
  const auto score = [&](const Json& answer) { return answer.at(key).as_double(); };
  for (const Json& answer : answers) {
    if (!best || score(answer) > score(*best)) best = &answer;
    if (!worst || score(answer) < score(*worst)) worst = &answer;
  }
  if (!best || score(*best) == score(*worst))
    throw Error(fmt::format("{}: no answer is rated better than another", row.json().where()));
  const ordered_json question = turn("user", row.at("instruction").as_string());
  const auto conversation = [&](const Json& answer) {
    return ordered_json::array({question, turn("assistant", answer.at("response").as_string())});
  };
  return pair_of(conversation(*best), conversation(*worst));
}

ConvertedRow from_ultrafeedback(const Row& row) {
  if (row.has("completions")) return from_rated(row);
  refuse_unread_fields(row.json(), RecordKind::preference_messages, row.json().where());
  return pair_of(turns_of(row.at("chosen")), turns_of(row.at("rejected")));
}

ordered_json transcript(const Json& value) {
  const std::string& text = value.as_string();
  ordered_json turns = ordered_json::array();
  size_t at = text.find(kHuman);
  if (at == std::string::npos || !is_blank(std::string_view(text).substr(0, at)))
    throw Error(
        fmt::format("{}: expected a transcript that begins with \"\\n\\nHuman:\"", value.where()));
  while (at != std::string::npos) {
    const bool human = text.compare(at, kHuman.size(), kHuman) == 0;
    const size_t begin = at + (human ? kHuman : kAssistant).size();
    const size_t end = std::min(text.find(kHuman, begin), text.find(kAssistant, begin));
    turns.push_back(turn(human ? "user" : "assistant",
                         trimmed(std::string_view(text).substr(begin, end - begin))));
    at = end;
  }
  return turns;
}

ConvertedRow from_transcripts(const Row& row) {
  return pair_of(transcript(row.at("chosen")), transcript(row.at("rejected")));
}

ConvertedRow from_trl(const Row& row) {
  const std::string source = row.json().where();
  if (const Json* messages = row.find("messages")) {
    refuse_unread_fields(row.json(), RecordKind::messages, source);
    return as_line({{"messages", turns_of(*messages)}});
  }
  if (const Json* text = row.find("text")) return as_line({{"text", text->as_string()}});
  if (const Json* chosen = row.find("chosen")) {
    refuse_unread_fields(row.json(), RecordKind::preference, source);
    const Json* prompt = row.find("prompt");
    if (!chosen->is_array())
      return as_line({{"prompt", row.at("prompt").as_string()},
                      {"chosen", chosen->as_string()},
                      {"rejected", row.at("rejected").as_string()}});
    const ordered_json before =
        prompt && prompt->is_array() ? turns_of(*prompt) : ordered_json::array();
    const auto whole = [&](const Json& list) {
      ordered_json all = before;
      for (const ordered_json& each : turns_of(list)) all.push_back(each);
      return all;
    };
    return pair_of(whole(*chosen), whole(row.at("rejected")));
  }
  refuse_unread_fields(row.json(), RecordKind::completion, source);
  const Json& prompt = row.at("prompt");
  const Json& completion = row.at("completion");
  if (!prompt.is_array())
    return as_line({{"prompt", prompt.as_string()}, {"completion", completion.as_string()}});
  ordered_json messages = turns_of(prompt);
  for (ordered_json& each : messages)
    if (each.at("role") == "assistant") each["weight"] = 0;  // TRL learns the completion alone
  for (const ordered_json& each : turns_of(completion)) messages.push_back(each);
  return as_line({{"messages", messages}});
}

ConvertedRow from_columns(const Row& row) {
  const auto take = [&](std::initializer_list<const char*> keys) {
    ordered_json json;
    for (const char* key : keys) json[key] = row.at(key).as_string();
    return as_line(json);
  };
  if (row.has("instruction")) return from_alpaca(row);
  if (row.has("chosen")) return take({"prompt", "chosen", "rejected"});
  if (row.has("prompt") || row.has("completion")) return take({"prompt", "completion"});
  return take({"text"});
}

}  // namespace

std::string_view published_form_name(PublishedForm form) {
  for (const auto& [value, name] : kFormNames)
    if (value == form) return name;
  CHECK(false, "a published form without a name");
  return {};
}

PublishedForm parse_published_form(std::string_view name) {
  for (const auto& [value, known] : kFormNames)
    if (known == name) return value;
  throw AdvisedUsageError(fmt::format(
      "‹from› is sharegpt, alpaca, ultrafeedback, hh, trl, csv, parquet or text, not \"{}\"",
      printable(name)));
}

std::optional<PublishedForm> recognise_published(const Json& row) {
  if (!row.is_object()) return std::nullopt;
  const auto find = [&](std::string_view key) { return find_value(row, key); };
  const auto is_list = [&](std::string_view key) {
    const Json* value = find(key);
    return value && value->is_array();
  };
  const auto is_text = [&](std::string_view key) {
    const Json* value = find(key);
    return value && value->is_string();
  };
  if (is_list("conversations")) return PublishedForm::sharegpt;
  if (find("instruction") && is_list("completions")) return PublishedForm::ultrafeedback;
  if (find("instruction") && find("output") && !find("text")) return PublishedForm::alpaca;
  if (is_list("chosen") && is_list("rejected"))
    return find("messages") || find("score_chosen") ? std::optional(PublishedForm::ultrafeedback)
                                                    : std::nullopt;
  if (is_text("chosen") && is_text("rejected") && !find("prompt") &&
      find("chosen")->as_string().find(kHuman) != std::string::npos)
    return PublishedForm::hh;
  if (find("prompt") && find("completion") && find("label")) return PublishedForm::trl;
  return std::nullopt;
}

std::optional<PublishedForm> recognise_row(const Json& row) {
  if (const auto form = recognise_published(row)) return form;
  if (!row.is_object()) return std::nullopt;
  const auto has = [&](std::string_view key) { return find_value(row, key) != nullptr; };
  const bool is_record = has("messages") || has("text") || (has("chosen") && has("rejected")) ||
                         (has("prompt") && has("completion"));
  return is_record ? std::optional(PublishedForm::trl) : std::nullopt;
}

bool is_published_key(std::string_view key) {
  constexpr std::string_view kKeys[] = {"conversations", "system",  "instruction", "input",
                                        "output",        "history", "completions", "prompt",
                                        "completion",    "chosen",  "rejected",    "score_chosen",
                                        "messages",      "text",    "label"};
  return std::ranges::find(kKeys, key) != std::end(kKeys) || is_unread_field(key);
}

ConvertedRow convert_published(const Json& row, PublishedForm form, const Columns& columns) {
  const Row values(row, columns);
  switch (form) {
    case PublishedForm::sharegpt:
      return from_sharegpt(values);
    case PublishedForm::alpaca:
      return from_alpaca(values);
    case PublishedForm::ultrafeedback:
      return from_ultrafeedback(values);
    case PublishedForm::hh:
      return from_transcripts(values);
    case PublishedForm::trl:
      return from_trl(values);
    case PublishedForm::csv:
      return from_columns(values);
  }
  CHECK(false, "a published form without a conversion");
  return {};
}

}  // namespace mixtral
