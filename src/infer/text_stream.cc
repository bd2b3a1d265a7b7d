#include "infer/text_stream.h"

#include <algorithm>
#include <utility>

namespace mixtral {

TextStream::TextStream(const Tokenizer* tokenizer, std::vector<std::string> stops, TextSink sink)
    : stops_(std::move(stops)), sink_(std::move(sink)) {
  std::erase(stops_, "");
  if (!tokenizer) return;
  vocabulary_ = tokenizer->vocab_size();
  decoder_.emplace(*tokenizer, StreamDecoder::Position::middle);
}

bool TextStream::push(int32_t id) {
  if (!stopped_ && decoder_ && id < vocabulary_) stopped_ = add(decoder_->push(id));
  return stopped_;
}

void TextStream::finish() {
  if (stopped_ || !decoder_) return;
  stopped_ = add(decoder_->flush());
  if (!stopped_) release(held_.size());
}

bool TextStream::add(std::string_view text) {
  held_ += text;
  size_t found = std::string::npos;
  for (const auto& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at >= found) continue;
    found = at;
    stop_text_ = stop;
  }
  if (found != std::string::npos) {
    release(found);
    held_.clear();
    return true;
  }
  size_t keep = 0;  // the longest tail that begins some stop text
  for (const auto& stop : stops_)
    for (size_t n = std::min(stop.size(), held_.size()); n > keep; --n)
      if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) keep = n;
  release(held_.size() - keep);
  return false;
}

void TextStream::release(size_t count) {
  if (count == 0) return;
  const std::string ready = held_.substr(0, count);
  held_.erase(0, count);
  text_ += ready;
  if (sink_) sink_(ready);
}

}  // namespace mixtral
