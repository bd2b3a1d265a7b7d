#include "text/stream_decoder.h"

#include <utility>

#include "text/utf8.h"

namespace mixtral {

std::string StreamDecoder::push(int32_t id) {
  tokenizer_.decode_next(id, at_start_, pending_);
  const size_t complete = pending_.size() - incomplete_utf8_tail(pending_);
  std::string text = to_valid_utf8(std::string_view(pending_).substr(0, complete));
  pending_.erase(0, complete);
  return text;
}

std::string StreamDecoder::flush() { return to_valid_utf8(std::exchange(pending_, {})); }

}  // namespace mixtral
