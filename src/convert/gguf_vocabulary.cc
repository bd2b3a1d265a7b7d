#include "convert/gguf_vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>

#include "base/advice.h"
#include "base/error.h"
#include "base/file.h"
#include "convert/pre_tokenizer_names.h"
#include "io/json.h"
#include "text/tokenizer.h"
#include "text/tokenizer_config.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

using Type = GgufVocabulary::Type;

constexpr float kAddedScore = -1000;  // as llama.cpp's converter gives added tokens

[[noreturn]] void refuse(const fs::path& file, const std::string& what) {
  throw AdvisedError(
      fmt::format("{}: GGUF has no word for {}; leave the tokenizer out of the file "
                  "(‹no-tokenizer›), or convert to another format",
                  file.string(), what));
}

/// Adds a token of Hugging Face's files, behind the vocabulary or in the place of a token.
void put(GgufVocabulary& vocabulary, const AddedToken& token) {
  const auto id = static_cast<size_t>(token.id);
  while (vocabulary.tokens.size() <= id) {
    vocabulary.tokens.push_back(fmt::format("[PAD{}]", vocabulary.tokens.size()));
    vocabulary.scores.push_back(kAddedScore);
    vocabulary.types.push_back(Type::unused);
  }
  const bool kept = vocabulary.tokens[id] == token.content && vocabulary.types[id] != Type::normal;
  if (kept) return;
  vocabulary.tokens[id] = token.content;
  vocabulary.scores[id] = kAddedScore;
  vocabulary.types[id] = is_control_like(token) ? Type::control : Type::user_defined;
}

void read_sentencepiece(const fs::path& file, GgufVocabulary& vocabulary) {
  const SentencePieceModel model =
      parse_sentencepiece_model(read_file(file, kMaxModelBytes), file.string());
  if (model.kind != SentencePieceModel::Kind::bpe) refuse(file, "a unigram model");
  if (!model.charsmap.empty()) refuse(file, "the normalizer " + model.normalizer);
  if (model.remove_extra_whitespaces) refuse(file, "remove_extra_whitespaces");
  if (model.whitespace_as_suffix) refuse(file, "treat_whitespace_as_suffix");
  if (!model.byte_fallback) refuse(file, "a vocabulary without byte pieces");
  vocabulary.model = "llama";
  vocabulary.space_prefix = model.add_dummy_prefix;
  for (const SentencePieceModel::Piece& piece : model.pieces) {
    vocabulary.tokens.push_back(piece.text);
    vocabulary.scores.push_back(piece.score);
    vocabulary.types.push_back(piece.type);
  }
}

/// The merges of a tokenizer.json, as "LEFT RIGHT"; newer files have pairs.
std::vector<std::string> read_merges(const Json& model) {
  std::vector<std::string> merges;
  for (const Json& merge : model.at("merges").items()) {
    if (merge.is_string()) {
      merges.push_back(merge.as_string());
      continue;
    }
    const auto& pair = merge.items();
    if (pair.size() != 2) throw Error(fmt::format("{}: expected two texts", merge.where()));
    merges.push_back(pair[0].as_string() + " " + pair[1].as_string());
  }
  return merges;
}

std::vector<std::string> read_vocab(const Json& model) {
  std::vector<std::string> tokens;
  for (const auto& [text, id] : model.at("vocab").members()) {
    const int64_t at = id.as_int();
    if (at < 0 || at >= static_cast<int64_t>(kMaxPieces))
      throw Error(fmt::format("{}: the id {} is out of range", id.where(), at));
    if (tokens.size() <= static_cast<size_t>(at)) tokens.resize(static_cast<size_t>(at) + 1);
    tokens[static_cast<size_t>(at)] = text;
  }
  return tokens;
}

bool is_true(const Json& json, const char* key) {
  const Json* value = json.find(key);
  return value && value->is_bool() && value->as_bool();
}

bool is_byte_piece(std::string_view text) {
  return text.size() == 6 && text.starts_with("<0x") && text.ends_with('>');
}

/// Whether texts get a mark of a space in front: a normalizer that prepends it, or Metaspace.
bool puts_space_in_front(const Json& json) {
  if (json.is_array()) return std::ranges::any_of(json.items(), puts_space_in_front);
  if (!json.is_object()) return false;
  if (const Json* type = json.find("type"); type && type->is_string()) {
    if (type->as_string() == "Prepend") return true;
    if (type->as_string() == "Metaspace") {
      const Json* scheme = json.find("prepend_scheme");
      return scheme && scheme->is_string() ? scheme->as_string() != "never"
                                           : is_true(json, "add_prefix_space");
    }
  }
  for (const char* list : {"normalizers", "pretokenizers"})
    if (const Json* parts = json.find(list); parts && puts_space_in_front(*parts)) return true;
  return false;
}

/// A BPE model with byte fallback is SentencePiece's in other words: a piece's score says how early
/// a merge makes it.
void read_byte_fallback(const Json& json, const Json& model, GgufVocabulary& vocabulary) {
  vocabulary.model = "llama";
  vocabulary.tokens = read_vocab(model);
  std::unordered_map<std::string, size_t> rank;
  for (const std::string& merge : read_merges(model)) {
    const size_t space = merge.find(' ');
    if (space == std::string::npos) continue;
    rank.try_emplace(merge.substr(0, space) + merge.substr(space + 1), rank.size());
  }
  const auto none = static_cast<float>(rank.size());
  for (const std::string& token : vocabulary.tokens) {
    const auto found = rank.find(token);
    vocabulary.scores.push_back(found == rank.end() ? -none : -static_cast<float>(found->second));
    vocabulary.types.push_back(token.empty()          ? Type::unused
                               : is_byte_piece(token) ? Type::byte
                                                      : Type::normal);
  }
  if (const Json* unk = model.find("unk_token"); unk && unk->is_string()) {
    const auto at = std::ranges::find(vocabulary.tokens, unk->as_string());
    if (at != vocabulary.tokens.end())
      vocabulary.types[static_cast<size_t>(at - vocabulary.tokens.begin())] = Type::unknown;
  }
  vocabulary.space_prefix = false;
  for (const char* key : {"normalizer", "pre_tokenizer"})
    if (const Json* part = json.find(key); part && puts_space_in_front(*part))
      vocabulary.space_prefix = true;
}

void read_byte_level(const fs::path& file, const Json& json, const Json& model,
                     GgufVocabulary& vocabulary) {
  vocabulary.model = "gpt2";
  const auto pre = pre_tokenizer_name(json);
  if (!pre) refuse(file, "its pre_tokenizer (none of those that llama.cpp knows by name)");
  vocabulary.pre = *pre;
  vocabulary.tokens = read_vocab(model);
  vocabulary.merges = read_merges(model);
  vocabulary.types.assign(vocabulary.tokens.size(), Type::normal);
  vocabulary.scores.assign(vocabulary.tokens.size(), 0);
  vocabulary.space_prefix = false;
}

void read_tokenizer_json(const fs::path& file, GgufVocabulary& vocabulary) {
  const Json json = Json::load(file, {.bytes = kMaxModelBytes, .depth = 64});
  const Json& model = json.at("model");
  if (const Json* type = model.find("type"); type && type->as_string() != "BPE")
    refuse(file, "a model of the type " + type->as_string());
  if (is_true(model, "byte_fallback"))
    read_byte_fallback(json, model, vocabulary);
  else
    read_byte_level(file, json, model, vocabulary);
  const Json* added = json.find("added_tokens");
  if (!added || added->is_null()) return;
  for (const Json& item : added->items()) {
    AddedToken token = read_added_token(item);
    const int64_t id = item.at("id").as_int();
    if (id < 0 || id >= static_cast<int64_t>(kMaxPieces))
      throw Error(fmt::format("{}: the id {} is out of range", item.where(), id));
    token.id = static_cast<int32_t>(id);
    const auto at = static_cast<size_t>(id);
    const bool is_unknown = at < vocabulary.types.size() && vocabulary.types[at] == Type::unknown;
    if (!is_unknown) put(vocabulary, token);
  }
}

}  // namespace

GgufVocabulary gguf_vocabulary(const fs::path& directory, const ModelConfig& config) {
  GgufVocabulary vocabulary;
  const fs::path spm = directory / kSentencePieceFile, json = directory / kHfTokenizerFile;
  std::error_code error;
  if (fs::exists(spm, error)) {
    read_sentencepiece(spm, vocabulary);
  } else if (fs::exists(json, error)) {
    read_tokenizer_json(json, vocabulary);
  } else if (fs::exists(directory / kByteTokenizerFile, error)) {
    refuse(directory / kByteTokenizerFile, "a tokenizer of plain bytes");
  } else {
    vocabulary.model = "none";
    return vocabulary;
  }
  const TokenizerConfig more = read_tokenizer_config(directory);
  for (const AddedToken& token : more.added) {
    const auto at = static_cast<size_t>(token.id);
    const bool is_piece = at < vocabulary.tokens.size() && vocabulary.tokens[at] == token.content;
    if (!is_piece) put(vocabulary, token);
  }
  const auto size = static_cast<size_t>(config.vocab_size);
  if (vocabulary.tokens.size() > size)
    throw Error(
        fmt::format("{}: the tokenizer has {} tokens but the model a vocabulary of {}; "
                    "they do not belong together",
                    directory.string(), vocabulary.tokens.size(), size));
  if (vocabulary.tokens.size() < size)
    put(vocabulary,
        {.id = static_cast<int32_t>(size - 1), .content = fmt::format("[PAD{}]", size - 1)});
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i)
    if (vocabulary.tokens[i].empty() || vocabulary.tokens[i] == fmt::format("[PAD{}]", i)) {
      vocabulary.tokens[i] = fmt::format("[PAD{}]", i);
      vocabulary.types[i] = Type::unused;
    }
  const auto tokenizer = load_tokenizer(directory);
  vocabulary.bos = tokenizer->bos_id();
  vocabulary.eos = tokenizer->eos_id();
  vocabulary.unk = tokenizer->unk_id();
  vocabulary.pad = tokenizer->pad_id();
  if (vocabulary.eos < 0 && !config.eos_ids.empty()) vocabulary.eos = config.eos_ids.front();
  if (vocabulary.bos < 0) vocabulary.bos = config.bos_id;
  vocabulary.add_bos = more.add_bos.value_or(vocabulary.bos >= 0);
  vocabulary.add_eos = more.add_eos.value_or(false);
  for (const TokenizerConfig::Template& chat : more.templates)
    if (chat.name == "default") vocabulary.chat_template = chat.text;
  return vocabulary;
}

void add_vocabulary(const GgufVocabulary& v, GgufKeys& keys) {
  keys.add_text("tokenizer.ggml.model", v.model);
  if (v.model == "none") return;
  keys.add_text("tokenizer.ggml.pre", v.pre.empty() ? "default" : v.pre);
  keys.add_texts("tokenizer.ggml.tokens", v.tokens);
  if (v.model == "llama") keys.add_f32s("tokenizer.ggml.scores", v.scores);
  std::vector<int32_t> types;
  types.reserve(v.types.size());
  for (const Type type : v.types) types.push_back(static_cast<int32_t>(type));
  keys.add_i32s("tokenizer.ggml.token_type", types);
  if (v.model == "gpt2") keys.add_texts("tokenizer.ggml.merges", v.merges);
  const auto add_id = [&](const char* key, int64_t id) {
    if (id >= 0) keys.add_u32(key, static_cast<uint32_t>(id));
  };
  add_id("tokenizer.ggml.bos_token_id", v.bos);
  add_id("tokenizer.ggml.eos_token_id", v.eos);
  add_id("tokenizer.ggml.unknown_token_id", v.unk);
  add_id("tokenizer.ggml.padding_token_id", v.pad);
  keys.add_bool("tokenizer.ggml.add_bos_token", v.add_bos);
  keys.add_bool("tokenizer.ggml.add_eos_token", v.add_eos);
  keys.add_bool("tokenizer.ggml.add_space_prefix", v.space_prefix);
  if (!v.chat_template.empty()) keys.add_text("tokenizer.chat_template", v.chat_template);
}

}  // namespace mixtral
