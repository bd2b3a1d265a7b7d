#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mixtral {

/// Text to token ids and back. Immutable, so one tokenizer may serve many threads.
class Tokenizer {
 public:
  Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;
  virtual ~Tokenizer() = default;

  /// The tokens of text that a user typed, without BOS or EOS. Takes any bytes; the time is near
  /// linear in their number. No text becomes a control token: "</s>" is ordinary pieces. Throws
  /// Error only where a tokenizer.json has a pattern that takes too many steps.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;

  /// The tokens of a rendered prompt: control and added tokens that are spelled out in it are
  /// found, each one id. Nothing is added in front. Throws as encode().
  virtual std::vector<int32_t> encode_prompt(std::string_view text) const = 0;

  /// The tokens that the library of the file's format makes of `text`. Hugging Face's finds added
  /// tokens in any text; SentencePiece finds no control pieces. Throws as encode().
  virtual std::vector<int32_t> encode_like_library(std::string_view text) const {
    return encode(text);
  }

  /// `ids` with what Hugging Face's libraries put around a text: BOS, and EOS where its files ask
  /// for it.
  virtual std::vector<int32_t> with_special(std::vector<int32_t> ids) const;

  /// The bytes that `ids` stand for, as SentencePiece decodes them: without the space that encoding
  /// put in front, and nothing for control tokens. Bytes that were no valid UTF-8 come back as they
  /// were. Throws Error on an id outside the vocabulary.
  std::string decode(std::span<const int32_t> ids) const;

  /// The bytes that a token adds in the middle of a text; empty for control tokens. Throws Error on
  /// an id outside the vocabulary.
  std::string piece(int32_t id) const;

  /// One step of decode(): appends what `id` adds to `text`. `at_start` says whether the text has
  /// yet to begin, so that a leading space is still to be dropped; begin with true.
  virtual void decode_next(int32_t id, bool& at_start, std::string& text) const = 0;

  /// The token as the vocabulary writes it ("▁the", "<0x0A>", "</s>"), for people to read.
  virtual std::string label(int32_t id) const = 0;
  /// Whether the token stands for no text (BOS, EOS, padding).
  virtual bool is_control(int32_t id) const = 0;
  /// The id of the token that the vocabulary writes so; -1 when there is none.
  virtual int32_t find(std::string_view label) const = 0;
  /// The texts that encode_prompt() takes for control tokens, and encode() does not.
  virtual std::vector<std::string> control_texts() const = 0;

  virtual int32_t vocab_size() const = 0;
  // The special tokens; -1 for one that this vocabulary lacks.
  int32_t bos_id() const { return special_.bos; }
  int32_t eos_id() const { return special_.eos; }
  int32_t unk_id() const { return special_.unk; }
  int32_t pad_id() const { return special_.pad; }

  /// "sentencepiece-bpe", "sentencepiece-unigram", "json-bpe" or "bytes".
  virtual std::string kind() const = 0;
  /// One line for people: kind, size and what is peculiar.
  virtual std::string description() const = 0;

  /// Writes the files that load_tokenizer() and other programs need into `directory`, which must
  /// exist. Throws Error when writing fails.
  virtual void save(const std::filesystem::path& directory) const = 0;

 protected:
  struct Special {
    int32_t bos = -1, eos = -1, unk = -1, pad = -1;
  };
  /// Throws Error unless 0 <= id < vocab_size().
  void check_id(int32_t id) const;
  Special special_;
};

inline constexpr std::string_view kSentencePieceFile = "tokenizer.model";
inline constexpr std::string_view kHfTokenizerFile = "tokenizer.json";
inline constexpr std::string_view kByteTokenizerFile = "byte_tokenizer.json";

/// Loads a tokenizer from a SentencePiece model file, a tokenizer.json of Hugging Face, a byte
/// tokenizer's JSON file, a GGUF file, or a directory (a model's, say) with a file of such a name,
/// looked for in this order (no GGUF file). Where nothing of that name exists, "bytes" and
/// "bytes-256" are the built-in byte tokenizers with and without BOS and EOS. Throws Error, which
/// says what was looked for, or what is wrong with the file.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path);

/// The tokenizer in `directory`, which may also be a GGUF file, or null when it holds none. Throws
/// Error when it holds a bad one.
std::unique_ptr<Tokenizer> find_tokenizer(const std::filesystem::path& directory);

}  // namespace mixtral
