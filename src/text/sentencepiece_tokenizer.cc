#include "text/sentencepiece_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "text/spelled_controls.h"

namespace mixtral {
namespace {

using PieceType = SentencePieceModel::PieceType;

ByteTrie user_defined_pieces(const SentencePieceModel& model) {
  ByteTrie trie;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    if (model.pieces[i].type == PieceType::user_defined) {
      trie.insert(model.pieces[i].text, static_cast<int32_t>(i));
    }
  }
  return trie;
}

std::string spaces_for_symbols(std::string_view text) {
  std::string result;
  while (true) {
    const size_t at = text.find(kSpaceSymbol);
    result += text.substr(0, at);
    if (at == std::string_view::npos) return result;
    result += ' ';
    text.remove_prefix(at + kSpaceSymbol.size());
  }
}

nlohmann::ordered_json hugging_face_config(const SentencePieceModel& model) {
  nlohmann::ordered_json added = nlohmann::ordered_json::object();
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const auto& piece = model.pieces[i];
    if (piece.type != PieceType::control && piece.type != PieceType::unknown) continue;
    added[std::to_string(i)] = {{"content", piece.text}, {"lstrip", false},
                                {"normalized", false},   {"rstrip", false},
                                {"single_word", false},  {"special", true}};
  }
  const auto name = [&](int32_t id) -> nlohmann::ordered_json {
    if (id < 0) return nullptr;
    return model.pieces[static_cast<size_t>(id)].text;
  };
  return {{"tokenizer_class", "LlamaTokenizer"},
          {"bos_token", name(model.bos_id)},
          {"eos_token", name(model.eos_id)},
          {"unk_token", name(model.unk_id)},
          {"pad_token", name(model.pad_id)},
          {"add_bos_token", model.bos_id >= 0},
          {"add_eos_token", false},
          {"added_tokens_decoder", added},
          {"clean_up_tokenization_spaces", false},
          {"legacy", true},
          {"sp_model_kwargs", nlohmann::ordered_json::object()},
          {"use_default_system_prompt", false}};
}

}  // namespace

SentencePieceTokenizer::SentencePieceTokenizer(std::string bytes, std::string_view source,
                                               const TokenizerConfig& config)
    : bytes_(std::move(bytes)),
      model_(parse_sentencepiece_model(bytes_, source)),
      user_defined_(user_defined_pieces(model_)),
      normalizer_(std::make_unique<Normalizer>(model_, user_defined_)),
      encoder_(make_piece_encoder(model_, user_defined_)) {
  special_ = {model_.bos_id, model_.eos_id, model_.unk_id, model_.pad_id};
  for (size_t i = 0; i < model_.pieces.size(); ++i) {
    const auto& piece = model_.pieces[i];
    switch (piece.type) {
      case PieceType::control:
        surfaces_.emplace_back();
        break;
      case PieceType::unknown:
        surfaces_.push_back(model_.unk_surface);
        break;
      case PieceType::byte:
        surfaces_.emplace_back();
        break;
      default:
        surfaces_.push_back(spaces_for_symbols(piece.text));
        break;
    }
  }
  for (size_t byte = 0; model_.byte_fallback && byte < 256; ++byte) {
    surfaces_[static_cast<size_t>(model_.byte_ids[byte])].assign(1, static_cast<char>(byte));
  }
  for (const auto& piece : model_.pieces) labels_.insert(piece.text);
  add_tokens(config);
}

void SentencePieceTokenizer::add_tokens(const TokenizerConfig& config) {
  const auto pieces = static_cast<int32_t>(model_.pieces.size());
  std::vector<bool> listed(model_.pieces.size());
  for (const AddedToken& token : config.added) {
    all_.add(token.content, token);
    if (!is_piece(token.id)) library_.add(token.content, token);
    if (!is_piece(token.id) && !is_control_like(token)) words_.add(token.content, token);
    if (is_piece(token.id)) {
      const auto& piece = model_.pieces[static_cast<size_t>(token.id)];
      listed[static_cast<size_t>(token.id)] = true;
      const bool special = piece.type == PieceType::control || piece.type == PieceType::unknown;
      if (special && piece.text == token.content) continue;  // the model has it already
    }
    added_.push_back(token);
  }
  for (int32_t id = 0; id < pieces; ++id) {
    const auto& piece = model_.pieces[static_cast<size_t>(id)];
    if (piece.type == PieceType::control && !listed[static_cast<size_t>(id)])
      all_.add(piece.text, {.id = id, .content = piece.text, .special = true});
  }
  size_ = added_.empty() ? pieces : std::max(pieces, added_.back().id + 1);
  if (!config.legacy) after_token_ = Normalizer::Part::rest;
  adds_bos_ = config.add_bos.value_or(true);
  adds_eos_ = config.add_eos.value_or(false);
  const auto choose = [&](const std::optional<std::string>& name, int32_t& id) {
    if (const int32_t found = name ? find(*name) : -1; found >= 0) id = found;
  };
  choose(config.bos, special_.bos);
  choose(config.eos, special_.eos);
  choose(config.pad, special_.pad);
}

const AddedToken* SentencePieceTokenizer::added(int32_t id) const {
  const auto token = std::ranges::lower_bound(added_, id, {}, &AddedToken::id);
  return token != added_.end() && token->id == id ? &*token : nullptr;
}

std::unique_ptr<SentencePieceTokenizer> SentencePieceTokenizer::load(
    const std::filesystem::path& file) {
  const bool in_directory = file.filename() == kSentencePieceFile;
  auto tokenizer = std::make_unique<SentencePieceTokenizer>(
      read_file(file, kMaxModelBytes), file.string(),
      in_directory ? read_tokenizer_config(file.parent_path()) : TokenizerConfig{});
  if (in_directory)
    tokenizer->companions_ = read_companions(file.parent_path(), kSentencePieceFile);
  return tokenizer;
}

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text,
                                                    const TokenFinder& finder) const {
  std::vector<int32_t> ids;
  if (text.empty()) return ids;
  ids.reserve(text.size() / 4 + 8);
  for (const Segment& part : finder.split(text)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    TokenSink sink(model_, ids);
    const bool whole = part.text.data() == text.data();
    encoder_->encode(
        normalizer_->normalize(part.text, whole ? Normalizer::Part::whole : after_token_), sink);
  }
  return ids;
}

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text) const {
  return encode(text, words_);
}

std::vector<int32_t> SentencePieceTokenizer::encode_prompt(std::string_view text) const {
  if (text.find(kPlainTextMark) == std::string_view::npos) return encode(text, all_);
  std::vector<int32_t> ids;
  for (const Segment& part : all_.split(text)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    TokenSink sink(model_, ids);
    const auto place = part.text.data() == text.data() ? Normalizer::Part::whole : after_token_;
    encoder_->encode(normalizer_->normalize(without_plain_marks(part.text), place), sink);
  }
  return ids;
}

std::vector<int32_t> SentencePieceTokenizer::encode_like_library(std::string_view text) const {
  return encode(text, library_);
}

std::vector<int32_t> SentencePieceTokenizer::with_special(std::vector<int32_t> ids) const {
  if (adds_bos_ && special_.bos >= 0) ids.insert(ids.begin(), special_.bos);
  if (adds_eos_ && special_.eos >= 0) ids.push_back(special_.eos);
  return ids;
}

void SentencePieceTokenizer::decode_next(int32_t id, bool& at_start, std::string& text) const {
  check_id(id);
  if (const AddedToken* token = added(id); token != nullptr || !is_piece(id)) {
    if (token == nullptr || token->special) return;
    text += token->content;
    at_start = false;
    return;
  }
  const auto index = static_cast<size_t>(id);
  std::string_view surface = surfaces_[index];
  const PieceType type = model_.pieces[index].type;
  const bool drops_space = model_.add_dummy_prefix || model_.remove_extra_whitespaces;
  if (at_start && drops_space && type != PieceType::byte && type != PieceType::unknown &&
      model_.pieces[index].text.starts_with(kSpaceSymbol)) {
    if (!surface.empty()) surface.remove_prefix(1);
    // Where encoding strips spaces, every leading one goes; else only the one that it added.
    if (!model_.remove_extra_whitespaces) at_start = false;
  }
  if (!surface.empty()) at_start = false;
  text += surface;
}

std::string SentencePieceTokenizer::label(int32_t id) const {
  check_id(id);
  if (const AddedToken* token = added(id)) return token->content;
  return is_piece(id) ? model_.pieces[static_cast<size_t>(id)].text : std::string();
}

bool SentencePieceTokenizer::is_control(int32_t id) const {
  if (id < 0 || id >= size_) return false;
  if (const AddedToken* token = added(id)) return token->special;
  return !is_piece(id) || model_.pieces[static_cast<size_t>(id)].type == PieceType::control;
}

int32_t SentencePieceTokenizer::find(std::string_view label) const {
  const auto token = std::ranges::find(added_, label, &AddedToken::content);
  return token != added_.end() ? token->id : labels_.find(label);
}

std::vector<std::string> SentencePieceTokenizer::control_texts() const {
  std::vector<std::string> texts;
  for (const AddedToken& token : added_)
    if (is_control_like(token)) texts.push_back(token.content);
  for (size_t i = 0; i < model_.pieces.size(); ++i)
    if (model_.pieces[i].type == PieceType::control && added(static_cast<int32_t>(i)) == nullptr)
      texts.push_back(model_.pieces[i].text);
  return texts;
}

std::string SentencePieceTokenizer::kind() const {
  return model_.kind == SentencePieceModel::Kind::bpe ? "sentencepiece-bpe"
                                                      : "sentencepiece-unigram";
}

std::string SentencePieceTokenizer::description() const {
  const int32_t more = size_ - static_cast<int32_t>(model_.pieces.size());
  return fmt::format("SentencePiece {}, {} pieces{}, {} normaliser{}{}",
                     model_.kind == SentencePieceModel::Kind::bpe ? "BPE" : "unigram",
                     model_.pieces.size(),
                     more > 0 ? fmt::format(" and {} added tokens", more) : "", model_.normalizer,
                     model_.byte_fallback ? ", byte fallback" : "",
                     model_.add_dummy_prefix ? ", dummy prefix" : "");
}

void SentencePieceTokenizer::save(const std::filesystem::path& directory) const {
  write_file(directory / kSentencePieceFile, bytes_);
  bool has_config = false;
  for (const TokenizerCompanion& companion : companions_) {
    write_file(directory / companion.name, companion.contents);
    has_config = has_config || companion.name == "tokenizer_config.json";
  }
  if (!has_config) {
    write_file(directory / "tokenizer_config.json", hugging_face_config(model_).dump(2) + "\n");
  }
}

}  // namespace mixtral
