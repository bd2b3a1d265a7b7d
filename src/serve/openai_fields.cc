#include "serve/openai_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "base/printable.h"

namespace mixtral::serve {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMostAnswers = 128;
constexpr size_t kMostStops = 4, kMostStopBytes = 4096;
constexpr size_t kMostRuleBytes = size_t{1} << 20;
constexpr auto kMost32 = std::numeric_limits<int32_t>::max();

std::vector<std::string> read_stop(Fields& fields) {
  const Json* value = fields.take("stop");
  std::vector<std::string> stop;
  if (value == nullptr) return stop;
  const auto add = [&](const Json& item) {
    if (!item.is_string()) throw bad_field("stop", "expected a text or up to four of them");
    if (item.as_string().empty())
      throw bad_field("stop", "an empty text would end every answer at once; leave it out");
    if (item.as_string().size() > kMostStopBytes)
      throw bad_field("stop", fmt::format("a stop text has {} bytes, at most {} are taken",
                                          item.as_string().size(), kMostStopBytes));
    stop.push_back(item.as_string());
  };
  if (!value->is_array()) {
    add(*value);
    return stop;
  }
  if (value->items().size() > kMostStops)
    throw bad_field("stop", fmt::format("expected at most {} texts, found {}", kMostStops,
                                        value->items().size()));
  for (const Json& item : value->items()) add(item);
  return stop;
}

std::vector<std::pair<int32_t, float>> read_logit_bias(Fields& fields) {
  std::vector<std::pair<int32_t, float>> biases;
  const Json* value = fields.take("logit_bias");
  if (value == nullptr) return biases;
  if (!value->is_object())
    throw bad_field("logit_bias", "expected an object of token ids and biases");
  for (const auto& [key, bias] : value->members()) {
    int32_t id = -1;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || id < 0)
      throw bad_field("logit_bias",
                      fmt::format("expected token ids as names, found '{}'", printable(key)));
    if (!bias.is_number() || !(bias.as_double() >= -100 && bias.as_double() <= 100))
      throw bad_field("logit_bias",
                      fmt::format("expected a number from -100 to 100 for token {}", id));
    biases.emplace_back(id, static_cast<float>(bias.as_double()));
  }
  return biases;
}

void set_rule(OutputRule& rule, OutputRule next) {
  if (rule.kind != OutputRule::Kind::none)
    throw bad_field(next.field,
                    fmt::format("an answer keeps one rule, and {} gives one already", rule.field));
  rule = std::move(next);
}

void read_text_rule(Fields& fields, std::string_view name, OutputRule::Kind kind,
                    OutputRule& rule) {
  auto text = fields.text(name, kMostRuleBytes);
  if (!text) return;
  if (text->empty()) throw bad_field(std::string(name), "is empty; leave it out");
  set_rule(rule, {.kind = kind, .text = std::move(*text), .field = std::string(name)});
}

}  // namespace

void add_tool(std::vector<Tool>& tools, Tool tool, const std::string& path) {
  constexpr size_t kMostTools = 512, kMostName = 128;
  const auto may_be_in_a_name = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  };
  if (tools.size() >= kMostTools)
    throw bad_field("tools", fmt::format("expected at most {} tools", kMostTools));
  if (tool.name.empty() || tool.name.size() > kMostName ||
      !std::ranges::all_of(tool.name, may_be_in_a_name))
    throw bad_field(
        path,
        fmt::format("expected a name of 1 to {} letters, digits, '_', '-' and '.'", kMostName));
  for (const Tool& other : tools)
    if (other.name == tool.name)
      throw bad_field(path, fmt::format("two tools have the name {}", printable(tool.name)));
  tools.push_back(std::move(tool));
}

ordered_json to_ordered(const Json& json) {
  switch (json.kind()) {
    case Json::Kind::null:
      return nullptr;
    case Json::Kind::boolean:
      return json.as_bool();
    case Json::Kind::integer:
      return json.as_int();
    case Json::Kind::number:
      return json.as_double();
    case Json::Kind::string:
      return json.as_string();
    case Json::Kind::array: {
      ordered_json array = ordered_json::array();
      for (const Json& item : json.items()) array.push_back(to_ordered(item));
      return array;
    }
    case Json::Kind::object: {
      ordered_json object = ordered_json::object();
      for (const auto& [key, item] : json.members()) object.emplace(key, to_ordered(item));
      return object;
    }
  }
  return nullptr;
}

std::string to_line(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

AnswerOptions read_answer_options(Fields& fields) {
  AnswerOptions answer;
  const auto number = [&](std::string_view name, double least, double most, float& value) {
    if (const auto given = fields.number(name, least, most)) value = static_cast<float>(*given);
  };
  number("temperature", 0, 2, answer.temperature);
  number("top_p", 0, 1, answer.top_p);
  if (answer.top_p <= 0) throw bad_field("top_p", "expected a number above 0, found 0");
  number("min_p", 0, 1, answer.min_p);
  number("repeat_penalty", 0, 10, answer.repeat_penalty);
  if (answer.repeat_penalty <= 0)
    throw bad_field("repeat_penalty", "expected a number above 0, found 0");
  number("presence_penalty", -2, 2, answer.presence_penalty);
  number("frequency_penalty", -2, 2, answer.frequency_penalty);
  answer.top_k = static_cast<int32_t>(fields.integer("top_k", 0, kMost32).value_or(0));
  if (const auto seed = fields.integer("seed", std::numeric_limits<int64_t>::min(),
                                       std::numeric_limits<int64_t>::max()))
    answer.seed = static_cast<uint64_t>(*seed);
  answer.n = fields.integer("n", 1, kMostAnswers).value_or(1);
  answer.stop = read_stop(fields);
  answer.logit_bias = read_logit_bias(fields);
  answer.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  answer.experts = fields.boolean("experts").value_or(false);
  answer.prompt_experts = fields.boolean("prompt_experts").value_or(false);
  read_text_rule(fields, "grammar", OutputRule::Kind::grammar, answer.rule);
  read_text_rule(fields, "regex", OutputRule::Kind::regex, answer.rule);
  return answer;
}

void read_response_format(Fields& fields, OutputRule& rule) {
  const Json* value = fields.take("response_format");
  if (value == nullptr) return;
  Fields format(*value, "response_format");
  const auto type = format.text("type");
  if (!type)
    throw bad_field("response_format.type",
                    "is missing; expected text, json_object or "
                    "json_schema");
  if (*type == "json_object") {
    set_rule(rule, {.kind = OutputRule::Kind::json_object, .field = "response_format"});
  } else if (*type == "json_schema") {
    Fields named(format.need("json_schema"), "response_format.json_schema");
    (void)named.text("name");
    (void)named.text("description");
    (void)named.boolean("strict");
    const Json& schema = named.need("schema");
    if (!schema.is_object() && !schema.is_bool())
      throw bad_field("response_format.json_schema.schema", "expected a JSON schema, an object");
    set_rule(rule, {.kind = OutputRule::Kind::json_schema,
                    .text = to_line(to_ordered(schema)),
                    .field = "response_format.json_schema.schema"});
    named.finish();
  } else if (*type != "text") {
    throw bad_field(
        "response_format.type",
        fmt::format("expected text, json_object or json_schema, found '{}'", printable(*type)));
  }
  format.finish();
}

void ignore_harmless(Fields& fields) {
  fields.ignore({"user", "store", "metadata", "service_tier", "safety_identifier",
                 "prompt_cache_key", "prompt_cache_retention"});
}

StreamOptions read_stream_options(Fields& fields) {
  StreamOptions options{.stream = fields.boolean("stream").value_or(false)};
  const Json* value = fields.take("stream_options");
  if (value == nullptr) return options;
  if (!options.stream)
    throw bad_field("stream_options", "is only for streams; set stream, or leave it out");
  Fields more(*value, "stream_options");
  options.include_usage = more.boolean("include_usage").value_or(false);
  more.ignore({"include_obfuscation"});
  more.finish();
  return options;
}

}  // namespace mixtral::serve
