#include "text/gguf_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/printable.h"
#include "text/hf_tokenizer.h"
#include "text/sentencepiece_tokenizer.h"

namespace mixtral {
namespace {

using PieceType = SentencePieceModel::PieceType;

constexpr std::string_view kModel = "tokenizer.ggml.model", kPre = "tokenizer.ggml.pre",
                           kTokens = "tokenizer.ggml.tokens", kScores = "tokenizer.ggml.scores",
                           kTypes = "tokenizer.ggml.token_type", kMerges = "tokenizer.ggml.merges",
                           kAddBos = "tokenizer.ggml.add_bos_token",
                           kAddEos = "tokenizer.ggml.add_eos_token",
                           kAddSpace = "tokenizer.ggml.add_space_prefix",
                           kStrip = "tokenizer.ggml.remove_extra_whitespaces",
                           kCharsmap = "tokenizer.ggml.precompiled_charsmap",
                           kTemplate = "tokenizer.chat_template";

// Words as llama.cpp's pre-tokenizers cut them, in the files' own patterns.
constexpr const char* kGpt2Words =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3Words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekkenWords =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// How a byte-level vocabulary is split into words.
struct PreTokenizer {
  std::string_view name;
  const char* words;
  bool ignores_merges = false;  // a word that is a token is that token
  bool adds_bos = false;        // where the file does not say
};
constexpr PreTokenizer kPreTokenizers[] = {
    {"gpt-2", kGpt2Words},
    {"llama-bpe", kLlama3Words, true, true},
    {"llama3", kLlama3Words, true, true},
    {"llama-v3", kLlama3Words, true, true},
    {"qwen2", kQwen2Words},
    {"tekken", kTekkenWords, true, true},
    {"mistral-bpe", kTekkenWords, true, true},
};

/// Tokens, their scores and types, each as many as there are tokens.
struct Vocabulary {
  std::vector<std::string_view> tokens;
  std::vector<float> scores;
  std::vector<PieceType> types;
};

void require_count(const GgufHeader& header, std::string_view key, size_t count, size_t tokens) {
  if (count != tokens)
    throw Error(
        fmt::format("{} has {} items, but there are {} tokens", header.where(key), count, tokens));
}

Vocabulary read_vocabulary(const GgufHeader& header) {
  Vocabulary vocabulary;
  const auto tokens = header.texts(kTokens);
  if (!tokens) throw Error(fmt::format("{} is missing", header.where(kTokens)));
  if (tokens->empty() || tokens->size() > kMaxPieces)
    throw Error(fmt::format("{} has {} tokens; expected 1 to {}", header.where(kTokens),
                            tokens->size(), kMaxPieces));
  vocabulary.tokens = *tokens;
  const size_t count = tokens->size();
  vocabulary.scores = header.floats(kScores).value_or(std::vector<float>(count));
  require_count(header, kScores, vocabulary.scores.size(), count);
  const auto types = header.integers(kTypes).value_or(std::vector<int64_t>(count, 1));
  require_count(header, kTypes, types.size(), count);
  for (const int64_t type : types) {
    if (type < 0 || type > 6)
      throw Error(fmt::format("{} has the type {}; expected 1 to 6", header.where(kTypes), type));
    // 0 is "undefined" in old files.
    vocabulary.types.push_back(type == 0 ? PieceType::normal : static_cast<PieceType>(type));
  }
  return vocabulary;
}

/// The text of the token that a key names by its id, or nothing.
std::optional<std::string> token_of(const GgufHeader& header, const char* name,
                                    const Vocabulary& vocabulary) {
  const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
  const auto id = header.integer(key);
  if (!id) return std::nullopt;
  if (*id < 0 || *id >= static_cast<int64_t>(vocabulary.tokens.size()))
    throw Error(fmt::format("{} is {}; expected 0 to {}", header.where(key), *id,
                            vocabulary.tokens.size() - 1));
  return std::string(vocabulary.tokens[static_cast<size_t>(*id)]);
}

void read_special(const GgufHeader& header, const Vocabulary& vocabulary, TokenizerConfig& config) {
  config.bos = token_of(header, "bos", vocabulary);
  config.eos = token_of(header, "eos", vocabulary);
  config.unk = token_of(header, "unknown", vocabulary);
  config.pad = token_of(header, "padding", vocabulary);
  config.add_bos = header.boolean(kAddBos);
  config.add_eos = header.boolean(kAddEos);
}

bool is_special(PieceType type) { return type == PieceType::control || type == PieceType::unknown; }

std::unique_ptr<Tokenizer> read_sentencepiece(const GgufHeader& header) {
  const Vocabulary vocabulary = read_vocabulary(header);
  if (!header.texts(kTokens) || !header.floats(kScores))
    throw Error(fmt::format("{} is missing, by which pieces are joined", header.where(kScores)));
  TokenizerConfig config = read_gguf_tokenizer_config(header);
  SentencePieceModel model;
  model.add_dummy_prefix = header.boolean(kAddSpace).value_or(true);
  model.remove_extra_whitespaces = header.boolean(kStrip).value_or(false);
  if (const auto map = header.integers(kCharsmap))
    for (const int64_t byte : *map) model.charsmap.push_back(static_cast<char>(byte));
  if (config.unk) model.unk_piece = *config.unk;
  if (config.bos) model.bos_piece = *config.bos;
  if (config.eos) model.eos_piece = *config.eos;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    SentencePieceModel::Piece piece{std::string(vocabulary.tokens[i]), vocabulary.scores[i],
                                    vocabulary.types[i]};
    model.byte_fallback = model.byte_fallback || piece.type == PieceType::byte;
    if (piece.type == PieceType::user_defined) {
      const AddedToken token{.id = static_cast<int32_t>(i), .content = piece.text};
      // Fine-tunes mark "<|im_start|>" so; text that a user types must not become it.
      if (is_control_like(token)) {
        piece.type = PieceType::control;
        config.added.push_back(token);
      }
    }
    model.pieces.push_back(std::move(piece));
  }
  return std::make_unique<SentencePieceTokenizer>(serialize(model), header.where(kTokens), config);
}

nlohmann::ordered_json special_token(const std::string& text, int64_t id) {
  return {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
}

/// A tokenizer.json of the same vocabulary.
nlohmann::ordered_json hugging_face_json(const GgufHeader& header, const Vocabulary& vocabulary,
                                         const PreTokenizer& pre, const TokenizerConfig& config) {
  nlohmann::ordered_json vocab = nlohmann::ordered_json::object();
  nlohmann::ordered_json added = nlohmann::ordered_json::array();
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const std::string text(vocabulary.tokens[i]);
    if (!vocab.emplace(text, i).second)
      throw Error(fmt::format("{} has \"{}\" twice", header.where(kTokens), printable(text)));
    const PieceType type = vocabulary.types[i];
    if (is_special(type) || type == PieceType::user_defined)
      added.push_back({{"id", i},
                       {"content", text},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", is_special(type)}});
  }
  const auto merges = header.texts(kMerges);
  if (!merges)
    throw Error(fmt::format("{} is missing, by which pieces are joined", header.where(kMerges)));
  nlohmann::ordered_json rules = nlohmann::ordered_json::array();
  for (const std::string_view merge : *merges) rules.push_back(std::string(merge));
  const nlohmann::ordered_json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  nlohmann::ordered_json json = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers", nlohmann::ordered_json::array({{{"type", "Split"},
                                                          {"pattern", {{"Regex", pre.words}}},
                                                          {"behavior", "Isolated"},
                                                          {"invert", false}},
                                                         byte_level})}}},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"byte_fallback", false},
        {"ignore_merges", pre.ignores_merges},
        {"vocab", vocab},
        {"merges", rules}}}};
  nlohmann::ordered_json single = nlohmann::ordered_json::array();
  nlohmann::ordered_json tokens = nlohmann::ordered_json::object();
  const auto put = [&](const std::optional<std::string>& token, const char* name) {
    if (!token) return;
    const auto id = header.integer(fmt::format("tokenizer.ggml.{}_token_id", name));
    single.push_back({{"SpecialToken", {{"id", *token}, {"type_id", 0}}}});
    tokens[*token] = special_token(*token, *id);
  };
  if (config.add_bos.value_or(pre.adds_bos)) put(config.bos, "bos");
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (config.add_eos.value_or(false)) put(config.eos, "eos");
  if (!tokens.empty())
    json["post_processor"] = {
        {"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", tokens}};
  return json;
}

std::unique_ptr<Tokenizer> read_byte_level(const GgufHeader& header) {
  const auto name = header.text(kPre);
  if (!name)
    throw Error(
        fmt::format("{} is missing, which says how text is split into words", header.where(kPre)));
  const auto* pre = std::ranges::find(kPreTokenizers, *name, &PreTokenizer::name);
  if (pre == std::end(kPreTokenizers)) {
    std::string known;
    for (const PreTokenizer& one : kPreTokenizers)
      known += fmt::format("{}{}", known.empty() ? "" : ", ", one.name);
    throw Error(fmt::format("{} is \"{}\", which is not known; expected one of {}",
                            header.where(kPre), printable(*name), known));
  }
  const Vocabulary vocabulary = read_vocabulary(header);
  const TokenizerConfig config = read_gguf_tokenizer_config(header);
  const auto json = hugging_face_json(header, vocabulary, *pre, config);
  return std::make_unique<HfTokenizer>(
      json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::strict),
      header.where(kTokens), config);
}

}  // namespace

std::optional<std::string_view> gguf_pre_tokenizer(std::string_view pattern, bool ignores_merges) {
  for (const PreTokenizer& pre : kPreTokenizers)
    if (pre.words == pattern && pre.ignores_merges == ignores_merges) return pre.name;
  return std::nullopt;
}

TokenizerConfig read_gguf_tokenizer_config(const GgufHeader& header) {
  TokenizerConfig config;
  if (header.texts(kTokens)) read_special(header, read_vocabulary(header), config);
  const auto add_template = [&](const std::string& name, const std::string& key) {
    if (const auto text = header.text(key))
      config.templates.push_back({name, std::string(*text), header.where(key)});
  };
  add_template("default", std::string(kTemplate));
  if (const auto names = header.texts("tokenizer.chat_templates"))
    for (const std::string_view name : *names)
      add_template(std::string(name), fmt::format("{}.{}", kTemplate, name));
  return config;
}

std::unique_ptr<Tokenizer> read_gguf_tokenizer(const GgufHeader& header) {
  const auto model = header.text(kModel);
  if (!model || *model == "none" || *model == "no_vocab") return nullptr;
  if (*model == "llama") return read_sentencepiece(header);
  if (*model == "gpt2") return read_byte_level(header);
  throw Error(
      fmt::format("{} is \"{}\", which is not read; expected \"llama\" (SentencePiece) or "
                  "\"gpt2\" (byte-level BPE)",
                  header.where(kModel), printable(*model)));
}

}  // namespace mixtral
