#include "text/sentencepiece_tokenizer.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"

namespace mixtral {
namespace {

using PieceType = SentencePieceModel::PieceType;

// What Hugging Face keeps beside tokenizer.model.
constexpr std::string_view kCompanions[] = {"tokenizer_config.json", "special_tokens_map.json",
                                            "tokenizer.json", "added_tokens.json",
                                            "chat_template.jinja"};

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

SentencePieceTokenizer::SentencePieceTokenizer(std::string bytes, std::string_view source)
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
}

std::unique_ptr<SentencePieceTokenizer> SentencePieceTokenizer::load(
    const std::filesystem::path& file) {
  auto tokenizer =
      std::make_unique<SentencePieceTokenizer>(read_file(file, kMaxModelBytes), file.string());
  if (file.filename() == kSentencePieceFile) {
    std::error_code ignored;
    for (const std::string_view name : kCompanions) {
      const auto path = file.parent_path() / name;
      if (std::filesystem::is_regular_file(path, ignored)) {
        tokenizer->companions_.push_back({std::string(name), read_file(path, kMaxModelBytes)});
      }
    }
  }
  return tokenizer;
}

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  if (text.empty()) return ids;
  ids.reserve(text.size() / 4 + 8);
  TokenSink sink(model_, ids);
  encoder_->encode(normalizer_->normalize(text), sink);
  return ids;
}

void SentencePieceTokenizer::decode_next(int32_t id, bool& at_start, std::string& text) const {
  check_id(id);
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
  return model_.pieces[static_cast<size_t>(id)].text;
}

bool SentencePieceTokenizer::is_control(int32_t id) const {
  return id >= 0 && id < vocab_size() &&
         model_.pieces[static_cast<size_t>(id)].type == PieceType::control;
}

std::string SentencePieceTokenizer::kind() const {
  return model_.kind == SentencePieceModel::Kind::bpe ? "sentencepiece-bpe"
                                                      : "sentencepiece-unigram";
}

std::string SentencePieceTokenizer::description() const {
  return fmt::format("SentencePiece {}, {} pieces, {} normaliser{}{}",
                     model_.kind == SentencePieceModel::Kind::bpe ? "BPE" : "unigram",
                     model_.pieces.size(), model_.normalizer,
                     model_.byte_fallback ? ", byte fallback" : "",
                     model_.add_dummy_prefix ? ", dummy prefix" : "");
}

void SentencePieceTokenizer::save(const std::filesystem::path& directory) const {
  write_file(directory / kSentencePieceFile, bytes_);
  bool has_config = false;
  for (const Companion& companion : companions_) {
    write_file(directory / companion.name, companion.contents);
    has_config = has_config || companion.name == "tokenizer_config.json";
  }
  if (!has_config) {
    write_file(directory / "tokenizer_config.json", hugging_face_config(model_).dump(2) + "\n");
  }
}

}  // namespace mixtral
