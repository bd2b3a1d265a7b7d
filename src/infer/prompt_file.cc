#include "infer/prompt_file.h"

#include <fmt/format.h>

#include <array>
#include <string_view>

#include "base/advice.h"
#include "base/file.h"
#include "io/json.h"

namespace mixtral {
namespace {

constexpr std::array<std::string_view, 3> kPrompts{"prompt", "ids", "messages"};
constexpr std::array<std::string_view, 10> kSettings{
    "max_tokens", "temp",           "top_k",         "top_p", "min_p",
    "seed",       "repeat_penalty", "repeat_last_n", "stop",  "adapter"};

int64_t integer(const Json& value, int64_t least, int64_t most) {
  const int64_t number = value.as_int();
  if (number < least || number > most)
    throw Error(fmt::format("{}: expected a whole number from {} to {}, found {}", value.where(),
                            least, most, number));
  return number;
}

float number(const Json& value, double least, double most) {
  const double real = value.as_double();
  if (!(real >= least && real <= most))
    throw Error(fmt::format("{}: expected a number from {} to {}, found {}", value.where(), least,
                            most, real));
  return static_cast<float>(real);
}

std::vector<std::string> stop_texts(const Json& value) {
  std::vector<std::string> stops;
  const auto add = [&](const Json& text) {
    if (text.as_string().empty())
      throw Error(fmt::format("{}: a stop text is empty; leave it out", text.where()));
    stops.push_back(text.as_string());
  };
  if (!value.is_string() && !value.is_array())
    throw Error(fmt::format("{}: expected a text or a list of texts", value.where()));
  if (value.is_string()) add(value);
  if (value.is_array())
    for (const Json& text : value.items()) add(text);
  return stops;
}

std::vector<Message> conversation(const Json& value) {
  std::vector<Message> messages;
  for (const Json& turn : value.items()) {
    for (const auto& [key, content] : turn.members())
      if (key != "role" && key != "content")
        throw Error(
            fmt::format("{}: unknown field; a turn has \"role\" and \"content\"", content.where()));
    messages.push_back({turn.at("role").as_string(), turn.at("content").as_string()});
  }
  if (!messages.empty() && messages.back().role == "assistant")
    throw Error(
        fmt::format("{}: the last turn is the assistant's, so there is nothing to reply to; end "
                    "with the user's",
                    value.where()));
  return messages;
}

std::vector<int32_t> token_ids(const Json& value, int64_t vocabulary) {
  std::vector<int32_t> ids;
  for (const Json& id : value.items())
    ids.push_back(static_cast<int32_t>(integer(id, 0, vocabulary - 1)));
  return ids;
}

std::vector<int32_t> prompt_of(const Json& value, std::string_view key, const PromptRules& rules,
                               const std::string& source) {
  if (key == "ids") return token_ids(value, rules.vocab_size);
  if (!rules.tokenizer)
    throw AdvisedError(
        fmt::format("{}: \"{}\" needs a tokenizer, which the model does not have; name one with "
                    "‹tokenizer›, or "
                    "give \"ids\"",
                    source, key));
  if (key == "prompt") return prompt_tokens(*rules.tokenizer, value.as_string());
  return encode_chat(*rules.tokenizer, rules.chat_template, conversation(value), value.where()).ids;
}

void set(TextOptions& how, std::string_view key, const Json& value) {
  GenerationOptions& o = how.tokens;
  if (key == "max_tokens") o.max_tokens = integer(value, 1, int64_t{1} << 30);
  if (key == "temp") o.sampling.temperature = number(value, 0, 100);
  if (key == "top_k") o.sampling.top_k = static_cast<int32_t>(integer(value, 0, INT32_MAX));
  if (key == "top_p") o.sampling.top_p = number(value, 0, 1);
  if (key == "min_p") o.sampling.min_p = number(value, 0, 1);
  if (key == "repeat_penalty") o.sampling.repeat_penalty = number(value, 0.01, 100);
  if (key == "repeat_last_n") o.repeat_last_n = integer(value, 0, 1 << 20);
  if (key == "seed") o.sampling.seed = static_cast<uint64_t>(integer(value, 0, INT64_MAX));
  if (key == "stop") how.stop = stop_texts(value);
}

std::string adapter_name(const Json& value) {
  if (value.as_string().empty())
    throw Error(fmt::format("{}: the adapter's name is empty; leave it out", value.where()));
  return value.as_string();
}

PromptRow parse_row(std::string_view line, const std::string& source, const PromptRules& rules) {
  const Json json = Json::parse(line, source);
  PromptRow row{.how = rules.defaults, .source = source};
  std::string_view given;
  for (const auto& [key, value] : json.members()) {
    const bool is_prompt = std::ranges::find(kPrompts, key) != kPrompts.end();
    if (!is_prompt && std::ranges::find(kSettings, key) == kSettings.end())
      throw Error(fmt::format("{}: unknown field; expected {} and perhaps {}", value.where(),
                              fmt::join(kPrompts, ", or "), fmt::join(kSettings, ", ")));
    if (value.is_null()) continue;  // tables written as JSON have these where a field is absent
    if (key == "adapter") {
      row.adapter = adapter_name(value);
    } else if (!is_prompt) {
      set(row.how, key, value);
    } else if (!given.empty()) {
      throw Error(
          fmt::format("{}: there is \"{}\" already; give one of them", value.where(), given));
    } else {
      given = key;
      row.prompt = prompt_of(value, key, rules, source);
    }
  }
  if (given.empty())
    throw Error(fmt::format("{}: there is no prompt; expected one of {}", source,
                            fmt::join(kPrompts, ", ")));
  if (row.prompt.empty())
    throw Error(fmt::format("{}: {}: the prompt has no tokens; give at least one", source, given));
  return row;
}

/// The lines of a text, without their ends.
std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

}  // namespace

std::vector<PromptRow> read_prompts(const std::filesystem::path& file, const PromptRules& rules) {
  const MappedFile mapped(file);
  std::vector<PromptRow> rows;
  for (const std::string_view line : lines_of(mapped.text()))
    rows.push_back(parse_row(line, fmt::format("{}:{}", file.string(), rows.size() + 1), rules));
  if (rows.empty()) throw Error(fmt::format("{}: holds no row", file.string()));
  return rows;
}

void generate_rows(Engine& engine, const Tokenizer* tokenizer, const std::vector<PromptRow>& rows,
                   int64_t first,
                   const std::function<void(int64_t row, const GeneratedText&)>& take,
                   const std::function<bool()>& stopped) {
  struct Pending {
    RequestId id = 0;
    GeneratedText text;
  };
  std::map<int64_t, Pending> pending;
  std::vector<int64_t> done;
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t most = 2 * engine.sequences();  // queued ones are at hand when others end
  try {
    for (int64_t next = first; (next < count || !pending.empty()) && !stopped();) {
      for (; next < count && static_cast<int64_t>(pending.size()) < most; ++next) {
        Pending& row = pending[next];
        const PromptRow& from = rows[static_cast<size_t>(next)];
        row.id = submit_text(engine, tokenizer, from.prompt, from.how, row.text, {},
                             [&done, next] { done.push_back(next); });
      }
      engine.step();
      for (const int64_t row : std::exchange(done, {})) {
        take(row, pending.at(row).text);
        pending.erase(row);
      }
    }
  } catch (...) {
    for (const auto& [row, request] : pending) engine.cancel(request.id);
    throw;
  }
  for (const auto& [row, request] : pending) engine.cancel(request.id);
}

}  // namespace mixtral
