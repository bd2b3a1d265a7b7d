#include "text/tokenizer_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"
#include "base/file.h"
#include "text/gguf_tokenizer.h"
#include "text/sentencepiece_model.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr JsonLimits kLimits{.bytes = uint64_t{16} << 20, .depth = 32};
constexpr uint64_t kLongestTemplate = uint64_t{1} << 20;

constexpr std::array<std::string_view, 6> kCompanions = {
    "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json",
    "added_tokens.json",     "chat_template.jinja",     "chat_template.json"};

std::optional<Json> load_if_there(const fs::path& file) {
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored)) return std::nullopt;
  return Json::load(file, kLimits);
}

/// A token written as text or as {"content"}; nothing for null.
std::optional<std::string> token_text(const Json& json) {
  if (json.is_null()) return std::nullopt;
  return json.is_object() ? json.at("content").as_string() : json.as_string();
}

void read_special(const Json& json, TokenizerConfig& config, std::vector<std::string>& special) {
  const auto read = [&](const char* key, std::optional<std::string>& token) {
    if (const Json* value = json.find(key); value != nullptr && !token) token = token_text(*value);
  };
  read("bos_token", config.bos);
  read("eos_token", config.eos);
  read("unk_token", config.unk);
  read("pad_token", config.pad);
  for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
    const Json* more = json.find(key);
    if (more == nullptr || !more->is_array()) continue;
    for (const Json& token : more->items())
      if (auto text = token_text(token)) special.push_back(*text);
  }
}

int32_t checked_token_id(int64_t id, const Json& json) {
  if (id < 0 || id >= static_cast<int64_t>(kMaxPieces)) {
    throw Error(fmt::format("{}: the token id {} is out of range; expected 0 to {}", json.where(),
                            id, kMaxPieces - 1));
  }
  return static_cast<int32_t>(id);
}

/// "added_tokens_decoder": {"32000": {"content": "<|im_end|>", ...}}.
void read_decoder(const Json& json, TokenizerConfig& config) {
  for (const auto& [key, value] : json.members()) {
    int64_t id = -1;
    const auto [end, code] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (code != std::errc() || end != key.data() + key.size()) {
      throw Error(fmt::format("{}: \"{}\" is no token id", json.where(), printable(key)));
    }
    AddedToken token = read_added_token(value);
    token.id = checked_token_id(id, json);
    config.added.push_back(std::move(token));
  }
}

/// added_tokens.json: {"<|im_end|>": 32000}.
void read_added(const Json& json, const std::vector<std::string>& special,
                TokenizerConfig& config) {
  for (const auto& [content, value] : json.members()) {
    const int32_t id = checked_token_id(value.as_int(), value);
    const auto known = std::ranges::find(config.added, id, &AddedToken::id);
    if (known != config.added.end()) {
      if (known->content == content) continue;
      throw Error(
          fmt::format("{}: is \"{}\", which tokenizer_config.json calls \"{}\"; make them "
                      "agree",
                      value.where(), printable(content), printable(known->content)));
    }
    const bool is_special = std::ranges::find(special, content) != special.end() ||
                            config.eos == content || config.bos == content ||
                            config.pad == content || config.unk == content;
    config.added.push_back(
        {.id = id, .content = content, .special = is_special, .normalized = !is_special});
  }
}

void read_templates(const Json& json, TokenizerConfig& config) {
  const Json* value = json.find("chat_template");
  if (value == nullptr || value->is_null()) return;
  if (value->is_string()) {
    config.templates.push_back({"default", value->as_string(), value->where()});
    return;
  }
  for (const Json& item : value->items()) {
    config.templates.push_back(
        {item.at("name").as_string(), item.at("template").as_string(), item.where()});
  }
}

}  // namespace

TokenizerConfig read_tokenizer_config(const fs::path& directory) {
  if (is_gguf_file(directory)) return read_gguf_tokenizer_config(GgufFile(directory).header());
  TokenizerConfig config;
  std::vector<std::string> special;
  std::error_code ignored;
  if (const fs::path file = directory / "chat_template.jinja"; fs::is_regular_file(file, ignored)) {
    config.templates.push_back({"default", read_file(file, kLongestTemplate), file.string()});
  } else if (const auto json = load_if_there(directory / "chat_template.json")) {
    read_templates(*json, config);
  }
  const auto json = load_if_there(directory / "tokenizer_config.json");
  if (json) {
    read_special(*json, config, special);
    if (const Json* decoder = json->find("added_tokens_decoder");
        decoder != nullptr && !decoder->is_null())
      read_decoder(*decoder, config);
    const auto flag = [&](const char* key, auto& field) {
      if (const Json* value = json->find(key); value != nullptr && !value->is_null())
        field = value->as_bool();
    };
    flag("add_bos_token", config.add_bos);
    flag("add_eos_token", config.add_eos);
    flag("legacy", config.legacy);
    if (config.templates.empty()) read_templates(*json, config);
  }
  if (const auto map = load_if_there(directory / "special_tokens_map.json"))
    read_special(*map, config, special);
  if (const auto added = load_if_there(directory / "added_tokens.json"))
    read_added(*added, special, config);
  std::ranges::sort(config.added, {}, &AddedToken::id);
  return config;
}

std::vector<TokenizerCompanion> read_companions(const fs::path& directory, std::string_view own) {
  std::vector<TokenizerCompanion> companions;
  std::error_code ignored;
  for (const std::string_view name : kCompanions) {
    const fs::path path = directory / name;
    if (name != own && fs::is_regular_file(path, ignored))
      companions.push_back({std::string(name), read_file(path, kMaxModelBytes)});
  }
  return companions;
}

}  // namespace mixtral
