#include "text/tokenizer.h"

#include <fmt/format.h>

#include "base/error.h"
#include "text/byte_tokenizer.h"
#include "text/sentencepiece_tokenizer.h"

namespace mixtral {

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  bool at_start = true;
  for (const int32_t id : ids) decode_next(id, at_start, text);
  return text;
}

std::string Tokenizer::piece(int32_t id) const {
  std::string text;
  bool at_start = false;
  decode_next(id, at_start, text);
  return text;
}

void Tokenizer::check_id(int32_t id) const {
  if (id < 0 || id >= vocab_size()) {
    throw Error(fmt::format("token id {} is outside the tokenizer's vocabulary of {} tokens", id,
                            vocab_size()));
  }
}

std::unique_ptr<Tokenizer> find_tokenizer(const std::filesystem::path& directory) {
  std::error_code ignored;
  if (const auto file = directory / kSentencePieceFile; std::filesystem::exists(file, ignored)) {
    return SentencePieceTokenizer::load(file);
  }
  if (const auto file = directory / kByteTokenizerFile; std::filesystem::exists(file, ignored)) {
    return ByteTokenizer::load(file);
  }
  return nullptr;
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    if (auto tokenizer = find_tokenizer(path)) return tokenizer;
    const bool hf_only = std::filesystem::exists(path / "tokenizer.json", ignored);
    throw Error(fmt::format(
        "{}: found no tokenizer; looked for {} and {} in this directory{}", path.string(),
        kSentencePieceFile, kByteTokenizerFile,
        hf_only ? " (its tokenizer.json is not read: add the model's tokenizer.model)" : ""));
  }
  if (!std::filesystem::exists(path, ignored)) {
    if (path == "bytes") return std::make_unique<ByteTokenizer>();
    if (path == "bytes-256") {
      return std::make_unique<ByteTokenizer>(ByteTokenizer::Specials::none);
    }
    throw Error(
        fmt::format("{}: no such tokenizer; expected a SentencePiece model file, a {}, a directory "
                    "with a {} or "
                    "{}, or one of the names bytes and bytes-256",
                    path.string(), kByteTokenizerFile, kSentencePieceFile, kByteTokenizerFile));
  }
  if (path.extension() == ".json") {
    if (path.filename() == "tokenizer.json") {
      throw Error(fmt::format(
          "{}: Hugging Face's tokenizer.json is not read; give the model's tokenizer.model",
          path.string()));
    }
    return ByteTokenizer::load(path);
  }
  return SentencePieceTokenizer::load(path);
}

}  // namespace mixtral
