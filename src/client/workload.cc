#include "client/workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "io/json.h"

namespace mixtral::client {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMostTokens = int64_t{1} << 20;
constexpr int64_t kWords = 1024;

/// A word of two to five syllables. The same number gives the same word.
std::string word(uint64_t number) {
  constexpr std::string_view kConsonants = "bdfgklmnprst", kVowels = "aeiou";
  RandomStream random(number, 1);
  std::string text;
  for (uint64_t syllables = 1 + random.below(3); syllables > 0; --syllables) {
    text += kConsonants[random.below(kConsonants.size())];
    text += kVowels[random.below(kVowels.size())];
  }
  return text;
}

int64_t tokens_of(const Json& value, int64_t least) {
  const int64_t number = value.as_int();
  if (number < least || number > kMostTokens)
    throw Error(fmt::format("{}: expected a whole number from {} to {}, found {}", value.where(),
                            least, kMostTokens, number));
  return number;
}

std::string user_message(const std::string& text) {
  return ordered_json::array({{{"role", "user"}, {"content", text}}}).dump();
}

}  // namespace

Workload::Workload(Options options) : options_(std::move(options)) {
  if (options_.file.empty()) return;
  const MappedFile file(options_.file);
  std::string_view text = file.text();
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    const Json json = Json::parse(line, fmt::format("{}:{}", options_.file.string(), number));
    Row row;
    for (const auto& [key, value] : json.members()) {
      if (value.is_null()) continue;
      // The text has passed a strict parser: this one passes on what it holds.
      if (key == "prompt")
        row.prompt = ordered_json::parse(line).at("prompt").dump();
      else if (key == "messages")
        row.messages = ordered_json::parse(line).at("messages").dump();
      else if (key == "prompt_tokens")
        row.prompt_tokens = tokens_of(value, 1);
      else if (key == "max_tokens")
        row.max_tokens = tokens_of(value, 1);
      else
        throw Error(
            fmt::format("{}: unknown field; expected prompt, messages or prompt_tokens, "
                        "and perhaps max_tokens",
                        value.where()));
    }
    const int given =
        (row.prompt.empty() ? 0 : 1) + (row.messages.empty() ? 0 : 1) + (row.prompt_tokens ? 1 : 0);
    if (given != 1)
      throw Error(fmt::format("{}: expected one of prompt, messages and prompt_tokens, found {}",
                              json.where(), given));
    rows_.push_back(std::move(row));
  }
  if (rows_.empty()) throw Error(fmt::format("{}: the file has no rows", options_.file.string()));
}

std::string Workload::words(int64_t count, RandomStream& random) const {
  std::string text;
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0) text += ' ';
    text += word(random.below(kWords));
  }
  return text;
}

std::string Workload::body(const std::string& field, const std::string& value, int64_t tokens,
                           uint64_t seed) const {
  ordered_json json{{"model", options_.model},
                    {"max_tokens", tokens},
                    {"temperature", options_.temperature},
                    {"seed", seed},
                    {"stream", true},
                    {"stream_options", {{"include_usage", true}}}};
  if (options_.ignore_eos) json["ignore_eos"] = true;
  json[field] = ordered_json::parse(value);
  return json.dump();
}

Work Workload::of_text(const std::string& text, int64_t tokens, uint64_t seed) const {
  if (options_.chat)
    return {.route = "/chat/completions",
            .body = body("messages", user_message(text), tokens, seed)};
  return {.route = "/completions", .body = body("prompt", ordered_json(text).dump(), tokens, seed)};
}

Work Workload::at(uint64_t index) const {
  RandomStream random(options_.seed, index + 1);
  const Row row = rows_.empty() ? Row() : rows_[index % rows_.size()];
  // Drawn whatever the row says: so a request's numbers do not depend on the file.
  const int64_t drawn_prompt = options_.prompt.draw(random);
  const int64_t drawn_answer = options_.answer.draw(random);
  const bool leaves = random.uniform() < options_.leaving;
  const int64_t tokens = row.max_tokens.value_or(drawn_answer);
  const uint64_t seed = random.next() >> 12;
  const int64_t stay = 1 + static_cast<int64_t>(random.below(static_cast<uint64_t>(tokens)));
  Work work;
  if (!row.prompt.empty()) {
    work = {.route = "/completions", .body = body("prompt", row.prompt, tokens, seed)};
  } else if (!row.messages.empty()) {
    work = {.route = "/chat/completions", .body = body("messages", row.messages, tokens, seed)};
  } else {
    const double length = static_cast<double>(row.prompt_tokens.value_or(drawn_prompt));
    const auto count = std::max<int64_t>(1, std::llround(length / tokens_per_word_));
    work = of_text(words(count, random), tokens, seed);
  }
  if (leaves) work.leaves_after = stay;
  return work;
}

Work Workload::probe(int64_t count) const {
  RandomStream random(options_.seed, 0);
  return of_text(words(count, random), 1, 0);
}

}  // namespace mixtral::client
