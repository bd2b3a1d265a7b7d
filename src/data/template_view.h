#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/corpus.h"

namespace mixtral {

/// One token sequence of a record as training sees it, with what its writer should know.
struct TemplateView {
  RecordKind kind = RecordKind::text;
  std::string answer;  // of a preference pair: "chosen" or "rejected"; else empty
  std::vector<int32_t> ids;
  std::vector<uint8_t> learnt;  // by token: 1 where a loss is taken of it
  int64_t kept = 0;             // tokens within the context; the others are cut off
  int64_t bos = 0, eos = 0;     // of the kept tokens
  int64_t learnt_tokens = 0;    // of the kept tokens
  /// Sentences: a doubled BOS, control tokens spelled out in the text, a response that is never
  /// trained on, an end that is cut off.
  std::vector<std::string> warnings;
};

/// The sequences that a record becomes: one, or two of a preference pair. `context` is the tokens
/// of a row, from which on tokens are cut off; 0: none are. `tokenizer` may be null for rows of
/// ids. Throws Error naming the source, as encode_record().
std::vector<TemplateView> view_record(const Record& record, const Tokenizer* tokenizer,
                                      const EncodeOptions& options, int64_t context,
                                      std::string_view source);

}  // namespace mixtral
