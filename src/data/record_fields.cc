#include "data/record_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <span>

#include "base/error.h"

namespace mixtral {
namespace {

/// Values of a field that change nothing.
enum class Neutral {
  empty,      // "", [], {} or false
  one,        // 1 or true
  ones,       // a list of ones
  positions,  // 0, 1, 2, …
};

bool is_empty(const Json& value) {
  switch (value.kind()) {
    case Json::Kind::null:
      return true;
    case Json::Kind::boolean:
      return !value.as_bool();
    case Json::Kind::string:
      return value.as_string().empty();
    case Json::Kind::array:
      return value.items().empty();
    case Json::Kind::object:
      return value.members().empty();
    default:
      return false;
  }
}

bool is_one(const Json& value) {
  if (value.is_bool()) return value.as_bool();
  return value.is_number() && value.as_double() == 1;
}

bool is_neutral(const Json& value, Neutral neutral) {
  switch (neutral) {
    case Neutral::empty:
      return is_empty(value);
    case Neutral::one:
      return is_one(value);
    case Neutral::ones:
      return value.is_array() && std::ranges::all_of(value.items(), is_one);
    case Neutral::positions: {
      if (!value.is_array()) return false;
      double expected = 0;
      return std::ranges::all_of(value.items(), [&](const Json& item) {
        return item.is_number() && item.as_double() == expected++;
      });
    }
  }
  return false;
}

constexpr unsigned bit(RecordKind kind) { return 1U << static_cast<unsigned>(kind); }
constexpr unsigned kAny = ~0U;
constexpr unsigned kIds = bit(RecordKind::ids);
constexpr unsigned kPairs = bit(RecordKind::preference) | bit(RecordKind::preference_ids) |
                            bit(RecordKind::preference_messages);
constexpr unsigned kTurns = bit(RecordKind::messages) | bit(RecordKind::preference_messages);
constexpr unsigned kPrompted = kTurns | kPairs | bit(RecordKind::completion);

struct Field {
  std::string_view name;
  unsigned kinds;  // that it belongs to
  Neutral neutral;
  std::string_view advice;
};

constexpr std::string_view kTextOnly = "the model reads text only; drop the record, or the field";
constexpr std::string_view kNoTools =
    "no chat template here has a place for tools; write them into the text, or drop the field";
constexpr std::string_view kSystem =
    "make it a first turn {\"role\": \"system\"}, or drop the field";
constexpr std::string_view kSampleWeight =
    "records cannot be weighed; repeat those that count more, or drop the field";
constexpr std::string_view kMask =
    "write the mask as \"labels\", with -100 where nothing is to be learnt";
constexpr std::string_view kReference = "the reference is computed here; drop the field";

constexpr Field kFields[] = {
    {"tools", kPrompted, Neutral::empty, kNoTools},
    {"functions", kPrompted, Neutral::empty, kNoTools},
    {"documents", kTurns, Neutral::empty, kNoTools},
    {"images", kPrompted, Neutral::empty, kTextOnly},
    {"image", kPrompted, Neutral::empty, kTextOnly},
    {"audios", kPrompted, Neutral::empty, kTextOnly},
    {"audio", kPrompted, Neutral::empty, kTextOnly},
    {"videos", kPrompted, Neutral::empty, kTextOnly},
    {"video", kPrompted, Neutral::empty, kTextOnly},
    {"system", kPrompted, Neutral::empty, kSystem},
    {"system_prompt", kPrompted, Neutral::empty, kSystem},
    {"chat_template", kTurns, Neutral::empty,
     "the template is a setting of the run, chat-template"},
    {"chat_template_kwargs", kTurns, Neutral::empty, "no chat template here takes any"},
    {"weight", kAny, Neutral::one, kSampleWeight},
    {"sample_weight", kAny, Neutral::one, kSampleWeight},
    {"loss_weight", kAny, Neutral::one, kSampleWeight},
    {"label", bit(RecordKind::completion), Neutral::one,
     "a completion that is marked as bad would be learnt as a good one; drop the record, or make "
     "pairs {\"prompt\", \"chosen\", \"rejected\"}"},
    {"attention_mask", kIds, Neutral::ones, "drop padding from input_ids and labels"},
    {"position_ids", kIds, Neutral::positions, "positions count from 0; split the record"},
    {"loss_mask", kIds, Neutral::ones, kMask},
    {"label_mask", kIds, Neutral::ones, kMask},
    {"completion_mask", kIds, Neutral::ones, kMask},
    {"assistant_masks", kIds, Neutral::ones, kMask},
    {"ref_chosen_logps", kPairs, Neutral::empty, kReference},
    {"ref_rejected_logps", kPairs, Neutral::empty, kReference},
    {"reference_chosen_logps", kPairs, Neutral::empty, kReference},
    {"reference_rejected_logps", kPairs, Neutral::empty, kReference},
};

constexpr std::string_view kThinking =
    "no chat template here has a place for it; write it into the content, or drop the field";
constexpr std::string_view kTurnWeight = "write \"weight\": 0 for a turn that is not to be learnt";

// Of the assistant's turns; of others a loss is never taken.
constexpr Field kLearningFields[] = {
    {"train", kAny, Neutral::one, kTurnWeight},
    {"training", kAny, Neutral::one, kTurnWeight},
    {"loss", kAny, Neutral::one, kTurnWeight},
    {"loss_weight", kAny, Neutral::one, kTurnWeight},
    {"train_detail", kAny, Neutral::empty, "parts of a turn cannot be masked; split the record"},
    {"training_detail", kAny, Neutral::empty, "parts of a turn cannot be masked; split the record"},
    {"prefix", kAny, Neutral::empty, "a turn is always whole here; drop the field"},
};
constexpr Field kTurnFields[] = {
    {"tool_calls", kAny, Neutral::empty, kNoTools},
    {"tool_call_id", kAny, Neutral::empty, kNoTools},
    {"function_call", kAny, Neutral::empty, kNoTools},
    {"images", kAny, Neutral::empty, kTextOnly},
    {"audio", kAny, Neutral::empty, kTextOnly},
    {"reasoning_content", kAny, Neutral::empty, kThinking},
    {"reasoning", kAny, Neutral::empty, kThinking},
    {"thinking", kAny, Neutral::empty, kThinking},
};

void refuse_fields(const Json& json, std::span<const Field> fields, unsigned kinds,
                   std::string_view source, std::string_view read_by_caller = {}) {
  for (const Field& field : fields) {
    if ((field.kinds & kinds) == 0 || field.name == read_by_caller) continue;
    const Json* value = find_value(json, field.name);
    if (value == nullptr || is_neutral(*value, field.neutral)) continue;
    throw Error(fmt::format("{}: the field \"{}\" would change what is learnt, and is not read: {}",
                            source, field.name, field.advice));
  }
}

/// The text of a turn: a string, or a list of one text part.
std::string content_of(const Json& content) {
  if (!content.is_array()) return record_text(content, Needed::yes);
  const auto& parts = content.items();
  if (parts.size() != 1 || !parts.front().is_object() ||
      parts.front().at("type").as_string() != "text")
    throw Error(fmt::format(
        "{}: is a list of parts; expected a string, or one part {{\"type\": \"text\", \"text\"}}",
        content.where()));
  return record_text(parts.front().at("text"), Needed::yes);
}

}  // namespace

const Json* find_value(const Json& json, std::string_view key) {
  const Json* value = json.find(key);
  return value != nullptr && !value->is_null() ? value : nullptr;
}

bool is_blank(std::string_view text) {
  return std::ranges::all_of(text, [](unsigned char c) { return std::isspace(c) != 0; });
}

std::string record_text(const Json& value, Needed needed) {
  const std::string& text = value.as_string();
  if (text.find('\0') != std::string::npos)
    throw Error(fmt::format("{}: holds a NUL character", value.where()));
  if (needed == Needed::yes && is_blank(text))
    throw Error(fmt::format("{}: is empty", value.where()));
  return text;
}

void refuse_unread_fields(const Json& json, RecordKind kind, std::string_view source,
                          std::string_view read_by_caller) {
  refuse_fields(json, kFields, bit(kind), source, read_by_caller);
}

bool is_unread_field(std::string_view name) {
  return std::ranges::find(kFields, name, &Field::name) != std::end(kFields);
}

Message read_turn(const Json& turn) {
  Message message;
  const Json& role = turn.at("role");
  message.role = role.as_string();
  if (message.role != "system" && message.role != "user" && message.role != "assistant")
    throw Error(fmt::format("{}: is \"{}\"; expected system, user or assistant", role.where(),
                            printable(message.role)));
  refuse_fields(turn, kTurnFields, kAny, turn.where());
  message.content = content_of(turn.at("content"));
  const Json* weight = find_value(turn, "weight");
  if (weight != nullptr) {
    const bool zero = weight->is_number() && weight->as_double() == 0;
    if (!zero && !(weight->is_number() && weight->as_double() == 1))
      throw Error(fmt::format("{}: expected 0 (the turn is not learnt) or 1", weight->where()));
    message.learnt = !zero;
  }
  if (message.role == "assistant") refuse_fields(turn, kLearningFields, kAny, turn.where());
  return message;
}

}  // namespace mixtral
