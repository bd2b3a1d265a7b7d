#include "text/hf_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>

#include "base/error.h"
#include "base/file.h"
#include "text/sentencepiece_model.h"
#include "text/spelled_controls.h"

namespace mixtral {
namespace {

constexpr JsonLimits kLimits{.bytes = kMaxModelBytes, .depth = 64};

/// The field, or null where it is absent.
Json field(const Json& json, const char* key) {
  const Json* value = json.find(key);
  return value == nullptr ? Json::parse("null", json.where() + ": " + key) : *value;
}

}  // namespace

HfTokenizer::HfTokenizer(std::string bytes, std::string_view source, const TokenizerConfig& config)
    : bytes_(std::move(bytes)) {
  const Json json = Json::parse(bytes_, source, kLimits);
  model_ = HfBpe(json.at("model"));
  normalizer_ = HfNormalizer(field(json, "normalizer"));
  pre_tokenizer_ = HfPreTokenizer(field(json, "pre_tokenizer"));
  decoder_ = HfDecoder(field(json, "decoder"));
  read_added_tokens(json, config);
  read_post_processor(field(json, "post_processor"));
  find_special(config);
}

std::unique_ptr<HfTokenizer> HfTokenizer::load(const std::filesystem::path& file) {
  auto tokenizer = std::make_unique<HfTokenizer>(read_file(file, kMaxModelBytes), file.string(),
                                                 read_tokenizer_config(file.parent_path()));
  tokenizer->companions_ = read_companions(file.parent_path(), kHfTokenizerFile);
  return tokenizer;
}

void HfTokenizer::add(AddedToken token, std::string_view where) {
  if (token.content.empty()) return;
  const int32_t same = added_contents_.find(token.content);
  const int32_t known = find(token.content);
  if (known >= 0 && known != token.id) {
    throw Error(fmt::format("{}: the added token \"{}\" has the id {}, but {} elsewhere", where,
                            printable(token.content), token.id, known));
  }
  if (same >= 0) return;
  const bool in_model = token.id < model_.size();
  const AddedToken* other = added(token.id);
  const std::string taken = other != nullptr ? other->content
                            : in_model       ? model_.piece(token.id)
                                             : std::string();
  if (known < 0 && !taken.empty()) {
    throw Error(fmt::format("{}: the added token \"{}\" has the id {}, which \"{}\" has", where,
                            printable(token.content), token.id, printable(taken)));
  }
  if (in_model && is_control_like(token)) model_.forbid(token.id);
  size_ = std::max(size_, token.id + 1);
  added_of_.resize(static_cast<size_t>(size_), -1);
  added_of_[static_cast<size_t>(token.id)] = static_cast<int32_t>(added_.size());
  added_contents_.insert(token.content);
  added_.push_back(std::move(token));
}

void HfTokenizer::read_added_tokens(const Json& json, const TokenizerConfig& config) {
  size_ = model_.size();
  added_of_.assign(static_cast<size_t>(size_), -1);
  if (const Json* tokens = json.find("added_tokens"); tokens != nullptr && !tokens->is_null()) {
    for (const Json& item : tokens->items()) {
      AddedToken token = read_added_token(item);
      const int64_t id = item.at("id").as_int();
      if (id < 0 || id >= static_cast<int64_t>(kMaxPieces)) {
        throw Error(fmt::format("{}: the id {} is out of range; expected 0 to {}", item.where(), id,
                                kMaxPieces - 1));
      }
      token.id = static_cast<int32_t>(id);
      add(std::move(token), item.where());
    }
  }
  for (const AddedToken& token : config.added) add(token, "tokenizer_config.json");
  const auto look_for = [&](const AddedToken& token, Finders& finders) {
    if (token.normalized)
      finders.normalized.add(normalizer_.normalize(token.content), token);
    else
      finders.raw.add(token.content, token);
  };
  for (const AddedToken& token : added_) {
    look_for(token, all_);
    if (!is_control_like(token)) look_for(token, words_);
  }
}

void HfTokenizer::read_post_processor(const Json& json) {
  if (json.is_null()) return;
  const std::string& type = json.at("type").as_string();
  const auto checked = [&](const Json& id) {
    const int64_t value = id.as_int();
    if (value < 0 || value >= size_) {
      throw Error(fmt::format("{}: the id {} is outside the vocabulary of {} tokens", id.where(),
                              value, size_));
    }
    return static_cast<int32_t>(value);
  };
  if (type == "Sequence") {
    for (const Json& part : json.at("processors").items()) read_post_processor(part);
  } else if (type == "TemplateProcessing") {
    std::vector<int32_t> before, after;
    bool seen = false;
    for (const Json& part : json.at("single").items()) {
      if (part.find("Sequence") != nullptr) {
        seen = true;
        continue;
      }
      const std::string& name = part.at("SpecialToken").at("id").as_string();
      for (const Json& id : json.at("special_tokens").at(name).at("ids").items())
        (seen ? after : before).push_back(checked(id));
    }
    prefix_.insert(prefix_.begin(), before.begin(), before.end());
    suffix_.insert(suffix_.end(), after.begin(), after.end());
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    const auto id_of = [&](const char* key) { return checked(json.at(key).items().at(1)); };
    prefix_.insert(prefix_.begin(), id_of("cls"));
    suffix_.push_back(id_of("sep"));
  } else if (type != "ByteLevel") {  // which only moves offsets
    throw Error(
        fmt::format("{}: the post-processor {} is not supported; expected "
                    "TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel or "
                    "Sequence",
                    json.where(), printable(type)));
  }
}

/// BOS and EOS are those that tokenizer_config.json names, else those that the post-processor adds,
/// else those of the usual names.
void HfTokenizer::find_special(const TokenizerConfig& config) {
  const auto named = [&](const std::optional<std::string>& name) {
    return name ? find(*name) : -1;
  };
  const auto usual = [&](std::initializer_list<std::string_view> names) {
    for (const std::string_view name : names)
      if (const int32_t id = find(name); id >= 0) return id;
    return -1;
  };
  special_.bos = named(config.bos);
  special_.eos = named(config.eos);
  special_.pad = named(config.pad);
  special_.unk = config.unk ? named(config.unk) : model_.unknown_id();
  const bool says = config.bos || config.eos;  // a file that names one lacks the other on purpose
  if (special_.bos < 0 && !prefix_.empty()) special_.bos = prefix_.front();
  if (special_.eos < 0 && !suffix_.empty()) special_.eos = suffix_.back();
  if (special_.bos < 0 && !says)
    special_.bos = usual({"<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>"});
  if (special_.eos < 0 && !says)
    special_.eos = usual({"</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>"});
}

const AddedToken* HfTokenizer::added(int32_t id) const {
  if (id < 0 || id >= static_cast<int32_t>(added_of_.size())) return nullptr;
  const int32_t place = added_of_[static_cast<size_t>(id)];
  return place < 0 ? nullptr : &added_[static_cast<size_t>(place)];
}

std::vector<int32_t> HfTokenizer::encode(std::string_view text, const Finders& finders) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  for (const Segment& part : finders.raw.split(text)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    const bool first = part.text.data() == text.data();
    const bool prompt = &finders == &all_;
    const std::string normalized =
        normalizer_.normalize(prompt ? without_plain_marks(part.text) : std::string(part.text));
    for (const Segment& piece : finders.normalized.split(normalized)) {
      if (piece.id >= 0) {
        ids.push_back(piece.id);
        continue;
      }
      const bool at_start = first && piece.text.data() == normalized.data();
      for (const Word& word : pre_tokenizer_.split({std::string(piece.text), at_start}))
        model_.encode(word.text, ids);
    }
  }
  return ids;
}

std::vector<int32_t> HfTokenizer::encode(std::string_view text) const {
  return encode(text, words_);
}

std::vector<int32_t> HfTokenizer::encode_prompt(std::string_view text) const {
  return encode(text, all_);
}

std::vector<int32_t> HfTokenizer::encode_like_library(std::string_view text) const {
  return encode(text, all_);
}

std::vector<int32_t> HfTokenizer::with_special(std::vector<int32_t> ids) const {
  ids.insert(ids.begin(), prefix_.begin(), prefix_.end());
  ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

void HfTokenizer::decode_next(int32_t id, bool& at_start, std::string& text) const {
  check_id(id);
  if (is_control(id)) return;
  const std::string piece = label(id);
  text += at_start ? decoder_.start(piece) : decoder_.middle(piece);
  at_start = false;
}

std::string HfTokenizer::label(int32_t id) const {
  check_id(id);
  if (const AddedToken* token = added(id)) return token->content;
  return id < model_.size() ? model_.piece(id) : std::string();
}

bool HfTokenizer::is_control(int32_t id) const {
  const AddedToken* token = added(id);
  return token != nullptr && token->special;
}

int32_t HfTokenizer::find(std::string_view label) const {
  const int32_t place = added_contents_.find(label);
  return place >= 0 ? added_[static_cast<size_t>(place)].id : model_.find(label);
}

std::vector<std::string> HfTokenizer::control_texts() const {
  std::vector<std::string> texts;
  for (const AddedToken& token : added_)
    if (is_control_like(token)) texts.push_back(token.content);
  return texts;
}

std::string HfTokenizer::description() const {
  return fmt::format("tokenizer.json BPE, {} tokens, {} merges, {} added tokens{}", size_,
                     model_.merges(), added_.size(),
                     model_.byte_fallback() ? ", byte fallback" : "");
}

void HfTokenizer::save(const std::filesystem::path& directory) const {
  write_file(directory / kHfTokenizerFile, bytes_);
  for (const TokenizerCompanion& companion : companions_)
    write_file(directory / companion.name, companion.contents);
}

}  // namespace mixtral
