// Any bytes as a SentencePiece model file: refused with an Error, or a tokenizer that takes any
// bytes (the file's own among them) without a throw or a control token, and gives them back where
// the model promises to.
#include <algorithm>
#include <cstdint>
#include <string>

#include "base/error.h"
#include "text/sentencepiece_tokenizer.h"

namespace mixtral {
namespace {

/// Whether this model keeps every byte: nothing rewritten, and a piece or byte pieces for all.
bool promises_round_trip(const SentencePieceModel& model) {
  return model.byte_fallback && model.charsmap.empty() && model.add_dummy_prefix &&
         model.escape_whitespaces && !model.remove_extra_whitespaces &&
         !model.whitespace_as_suffix && std::ranges::any_of(model.pieces, [](const auto& piece) {
           return piece.text == kSpaceSymbol && piece.type == SentencePieceModel::PieceType::normal;
         });
}

/// A space and U+2581 are the same to SentencePiece.
std::string with_spaces(std::string text) {
  for (size_t at = 0; (at = text.find(kSpaceSymbol, at)) != std::string::npos; ++at) {
    text.replace(at, kSpaceSymbol.size(), 1, ' ');
  }
  return text;
}

void check_text(const SentencePieceTokenizer& tokenizer, const std::string& text) {
  const auto ids = tokenizer.encode(text);
  for (const int32_t id : ids) {
    CHECK(id >= 0 && id < tokenizer.vocab_size() && !tokenizer.is_control(id));
  }
  const std::string decoded = tokenizer.decode(ids);
  if (promises_round_trip(tokenizer.model())) CHECK(decoded == with_spaces(text));
}

}  // namespace
}  // namespace mixtral

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  try {
    const mixtral::SentencePieceTokenizer tokenizer(bytes, "fuzz");
    for (const std::string& text :
         {bytes, std::string("a ab  abc\xE2\x96\x81<s></s>\t\n\xFF\xEF\xAC\x81")}) {
      try {
        mixtral::check_text(tokenizer, text);
      } catch (const mixtral::Error& error) {
        CHECK(false, std::string("encoding or decoding threw: ") + error.what());
      }
    }
  } catch (const mixtral::Error&) {
    return 0;  // refused
  }
  return 0;
}
