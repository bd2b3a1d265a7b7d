#include "text/piece_encoder.h"

#include <algorithm>

#include "text/bpe_encoder.h"
#include "text/unigram_encoder.h"
#include "text/utf8.h"

namespace mixtral {

size_t character_bytes(std::string_view text) { return std::max<size_t>(1, utf8_length(text)); }

std::unique_ptr<PieceEncoder> make_piece_encoder(const SentencePieceModel& model,
                                                 const ByteTrie& user_defined) {
  // A unigram model weighs its user-defined pieces like the others, with a bonus.
  if (model.kind == SentencePieceModel::Kind::unigram) {
    return std::make_unique<UnigramEncoder>(model);
  }
  return std::make_unique<BpeEncoder>(model, user_defined);
}

}  // namespace mixtral
