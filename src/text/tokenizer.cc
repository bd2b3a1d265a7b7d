#include "text/tokenizer.h"

#include <fmt/format.h>

#include <array>

#include "base/error.h"
#include "io/gguf.h"
#include "io/json.h"
#include "text/byte_tokenizer.h"
#include "text/gguf_tokenizer.h"
#include "text/hf_tokenizer.h"
#include "text/sentencepiece_tokenizer.h"

namespace mixtral {
namespace {

/// SentencePiece models as Mistral names them in its own folders, the newest first.
constexpr std::array<std::string_view, 4> kVersionedFiles = {
    "tokenizer.model.v7", "tokenizer.model.v3", "tokenizer.model.v2", "tokenizer.model.v1"};

/// Whether a JSON file is small and says that it is a byte tokenizer.
bool is_byte_tokenizer(const std::filesystem::path& file) {
  std::error_code ignored;
  if (std::filesystem::file_size(file, ignored) > 4096) return false;
  const Json json = Json::load(file);
  const Json* kind = json.is_object() ? json.find("kind") : nullptr;
  return kind != nullptr && kind->is_string() && kind->as_string() == "bytes";
}

}  // namespace

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

std::vector<int32_t> Tokenizer::with_special(std::vector<int32_t> ids) const {
  if (special_.bos >= 0) ids.insert(ids.begin(), special_.bos);
  return ids;
}

void Tokenizer::check_id(int32_t id) const {
  if (id < 0 || id >= vocab_size()) {
    throw Error(fmt::format("token id {} is outside the tokenizer's vocabulary of {} tokens", id,
                            vocab_size()));
  }
}

std::unique_ptr<Tokenizer> find_tokenizer(const std::filesystem::path& directory) {
  if (is_gguf_file(directory)) return read_gguf_tokenizer(GgufFile(directory).header());
  std::error_code ignored;
  if (const auto file = directory / kSentencePieceFile; std::filesystem::exists(file, ignored)) {
    return SentencePieceTokenizer::load(file);
  }
  for (const std::string_view name : kVersionedFiles)
    if (const auto file = directory / name; std::filesystem::exists(file, ignored))
      return SentencePieceTokenizer::load(file);
  if (const auto file = directory / kHfTokenizerFile; std::filesystem::exists(file, ignored)) {
    return HfTokenizer::load(file);
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
    throw Error(fmt::format("{}: found no tokenizer; looked for {}, {} and {} in this directory",
                            path.string(), kSentencePieceFile, kHfTokenizerFile,
                            kByteTokenizerFile));
  }
  if (!std::filesystem::exists(path, ignored)) {
    if (path == "bytes") return std::make_unique<ByteTokenizer>();
    if (path == "bytes-256") {
      return std::make_unique<ByteTokenizer>(ByteTokenizer::Specials::none);
    }
    throw Error(fmt::format(
        "{}: no such tokenizer; expected a SentencePiece model file, a {}, a {}, a GGUF file, a "
        "directory with one of these, or one of the names bytes and bytes-256",
        path.string(), kHfTokenizerFile, kByteTokenizerFile));
  }
  if (path.extension() == ".gguf" || is_gguf_file(path)) {
    if (auto tokenizer = read_gguf_tokenizer(GgufFile(path).header())) return tokenizer;
    throw Error(
        fmt::format("{}: the file has no tokenizer (the key tokenizer.ggml.model)", path.string()));
  }
  if (path.extension() == ".json") {
    const bool bytes = path.filename() == kByteTokenizerFile || is_byte_tokenizer(path);
    if (bytes) return ByteTokenizer::load(path);
    return HfTokenizer::load(path);
  }
  return SentencePieceTokenizer::load(path);
}

}  // namespace mixtral
