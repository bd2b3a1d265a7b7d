#include "text/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "io/json.h"

namespace mixtral {
namespace {

constexpr std::string_view kNameFile = "chat_template_name.json";

constexpr std::array<std::pair<ChatTemplate, std::string_view>, 3> kNames = {{
    {ChatTemplate::mistral_v1, "mistral-v1"},
    {ChatTemplate::mistral_hf_old, "mistral-hf-old"},
    {ChatTemplate::seed, "seed"},
}};

/// A piece of the conversation that is encoded by itself: what the model reads, then what it learns
/// to write, then perhaps EOS.
struct TemplateSegment {
  std::string prompt, answer;
  bool ends = false;
  bool learnt = true;  // the answer
};

/// The tokens of [INST] and [/INST] where the vocabulary has them (Mistral's versions 2 and up);
/// else -1.
struct InstructionTokens {
  int32_t begin = -1, end = -1;
  explicit InstructionTokens(const Tokenizer& tokenizer) {
    const auto control = [&](std::string_view label) {
      const int32_t id = tokenizer.find(label);
      return id >= 0 && tokenizer.is_control(id) ? id : -1;
    };
    begin = control("[INST]");
    end = control("[/INST]");
  }
  bool exist() const { return begin >= 0 && end >= 0; }
};

/// The text before an assistant's answer.
std::string user_turn(ChatTemplate chat_template, const std::string& content) {
  if (chat_template == ChatTemplate::seed) return "###user: " + content + " ###Assistant:";
  return "[INST] " + content + " [/INST]";
}

std::vector<TemplateSegment> template_segments(ChatTemplate chat_template,
                                               std::span<const Message> messages) {
  std::vector<TemplateSegment> segments;
  std::string system;
  for (const Message& message : messages) {
    if (message.role == "system") {
      system = message.content + (chat_template == ChatTemplate::seed ? " " : "\n\n");
    } else if (message.role == "user") {
      if (chat_template == ChatTemplate::seed) {
        segments.push_back({system + user_turn(chat_template, message.content), ""});
      } else {
        segments.push_back({user_turn(chat_template, system + message.content), ""});
      }
      system.clear();
    } else if (chat_template == ChatTemplate::mistral_v1) {
      segments.push_back({"", message.content, true, message.learnt});
    } else {
      // The space after "###Assistant:" belongs to the answer's first token.
      segments.back().answer = (chat_template == ChatTemplate::seed ? " " : "") + message.content;
      segments.back().ends = true;
      segments.back().learnt = message.learnt;
    }
  }
  return segments;
}

}  // namespace

std::string_view name(ChatTemplate chat_template) {
  for (const auto& [value, text] : kNames) {
    if (value == chat_template) return text;
  }
  CHECK(false, "a chat template without a name");
  return {};
}

ChatTemplate parse_chat_template(std::string_view text) {
  for (const auto& [value, known] : kNames) {
    if (known == text) return value;
  }
  throw UsageError(
      fmt::format("there is no chat template '{}'; expected mistral-v1, mistral-hf-old or seed",
                  printable(text)));
}

void check_messages(ChatTemplate chat_template, std::span<const Message> messages,
                    std::string_view source) {
  if (messages.empty()) {
    throw Error(fmt::format("{}: the conversation is empty, expected a user's turn", source));
  }
  bool users_turn = true;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role == "system") {
      if (chat_template == ChatTemplate::mistral_hf_old) {
        throw Error(
            fmt::format("{}[{}]: the template mistral-hf-old has no system text; use "
                        "mistral-v1, or put the text into the first user's turn",
                        source, i));
      }
      if (i > 0) {
        throw Error(fmt::format("{}[{}]: system text is only allowed first", source, i));
      }
      continue;
    }
    if (role != "user" && role != "assistant") {
      throw Error(fmt::format("{}[{}]: the role is '{}', expected system, user or assistant",
                              source, i, printable(role)));
    }
    if ((role == "user") != users_turn) {
      throw Error(
          fmt::format("{}[{}]: the role is {}, expected {}: user and assistant must take "
                      "turns, the user first",
                      source, i, role, users_turn ? "user" : "assistant"));
    }
    users_turn = !users_turn;
  }
  if (messages.back().role == "system") {
    throw Error(fmt::format("{}: there is only system text, expected a user's turn", source));
  }
}

ChatTokens encode_chat(const Tokenizer& tokenizer, ChatTemplate chat_template,
                       std::span<const Message> messages, std::string_view source) {
  check_messages(chat_template, messages, source);
  if (tokenizer.eos_id() < 0) {
    throw Error(
        fmt::format("{}: the tokenizer ({}) has no EOS token, which a conversation needs to "
                    "end a turn; use one that has it",
                    source, tokenizer.description()));
  }
  ChatTokens tokens;
  const auto append = [&](std::span<const int32_t> ids, uint8_t trained) {
    tokens.ids.insert(tokens.ids.end(), ids.begin(), ids.end());
    tokens.trained.insert(tokens.trained.end(), ids.size(), trained);
  };
  if (tokenizer.bos_id() >= 0) append(std::array{tokenizer.bos_id()}, 0);
  if (const InstructionTokens marks(tokenizer);
      marks.exist() && chat_template != ChatTemplate::seed) {
    std::string system;
    for (const Message& message : messages) {
      const uint8_t learnt = message.learnt ? 1 : 0;
      if (message.role == "system") {
        system = message.content + "\n\n";
      } else if (message.role == "user") {
        append(std::array{marks.begin}, 0);
        append(tokenizer.encode(std::exchange(system, "") + message.content), 0);
        append(std::array{marks.end}, 0);
      } else {
        append(tokenizer.encode(message.content), learnt);
        append(std::array{tokenizer.eos_id()}, learnt);
      }
    }
    return tokens;
  }
  for (const TemplateSegment& segment : template_segments(chat_template, messages)) {
    const std::vector<int32_t> prompt = tokenizer.encode(segment.prompt);
    const std::vector<int32_t> all = tokenizer.encode(segment.prompt + segment.answer);
    // The prompt's own tokens, up to where the answer changes them.
    const auto read = static_cast<size_t>(
        std::mismatch(prompt.begin(), prompt.end(), all.begin(), all.end()).first - prompt.begin());
    append(std::span(all).first(read), 0);
    append(std::span(all).subspan(read), segment.learnt);
    if (segment.ends) append(std::array{tokenizer.eos_id()}, segment.learnt);
  }
  return tokens;
}

std::string render_chat(ChatTemplate chat_template, std::span<const Message> messages,
                        std::string_view source) {
  check_messages(chat_template, messages, source);
  std::string text = "<s>";
  for (const TemplateSegment& segment : template_segments(chat_template, messages)) {
    if (chat_template == ChatTemplate::mistral_v1) text += ' ';
    text += segment.prompt + segment.answer;
    if (segment.ends) text += "</s>";
  }
  return text;
}

void save_chat_template_name(const std::filesystem::path& directory, ChatTemplate chat_template) {
  const nlohmann::ordered_json json{{"chat_template", name(chat_template)}};
  write_file(directory / kNameFile, json.dump() + "\n");
}

std::optional<ChatTemplate> find_chat_template_name(const std::filesystem::path& directory) {
  const auto path = directory / kNameFile;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return std::nullopt;
  const Json json = Json::load(path, {.bytes = 4096, .depth = 4});
  try {
    return parse_chat_template(json.at("chat_template").as_string());
  } catch (const UsageError& error) {
    throw Error(fmt::format("{}: {}", path.string(), error.what()));
  }
}

}  // namespace mixtral
