#include "infer/methods.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <optional>

#include "text/stream_decoder.h"

namespace mixtral {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Passes text on, except a tail that a stop text might begin in; notices when one is complete.
class StopFilter {
 public:
  StopFilter(const std::vector<std::string>& stops, const TextSink& sink)
      : stops_(stops), sink_(sink) {}

  /// Returns whether a stop text is complete; nothing from its beginning on is passed.
  bool push(std::string_view text) {
    held_ += text;
    size_t found = std::string::npos;
    for (const auto& stop : stops_)
      if (!stop.empty()) found = std::min(found, held_.find(stop));
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

  void flush() { release(held_.size()); }
  const std::string& text() const { return text_; }

 private:
  void release(size_t count) {
    if (count == 0) return;
    const std::string ready = held_.substr(0, count);
    held_.erase(0, count);
    text_ += ready;
    if (sink_) sink_(ready);
  }

  const std::vector<std::string>& stops_;
  const TextSink& sink_;
  std::string held_, text_;
};

}  // namespace

std::vector<int32_t> prompt_tokens(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids;
  if (tokenizer.bos_id() >= 0) ids.push_back(tokenizer.bos_id());
  const auto encoded = tokenizer.encode(text);
  ids.insert(ids.end(), encoded.begin(), encoded.end());
  return ids;
}

GeneratedText generate(Generator& generator, const Tokenizer* tokenizer,
                       const std::vector<int32_t>& prompt, const TextOptions& options,
                       const TextSink& sink) {
  GeneratedText result;
  StopFilter filter(options.stop, sink);
  std::optional<StreamDecoder> decoder;
  if (tokenizer) decoder.emplace(*tokenizer, StreamDecoder::Position::middle);
  const auto start = Clock::now();
  auto first = start;
  bool stopped = false, cancelled = false;
  result.reason = generator.generate(prompt, options.tokens, [&](const GeneratedToken& token) {
    if (result.tokens.empty()) {
      first = Clock::now();
      result.prompt_seconds = seconds_since(start);
    }
    result.tokens.push_back(token);
    // A model's vocabulary may be larger than its tokenizer's: what is drawn from there has no
    // text.
    if (decoder && token.id < tokenizer->vocab_size())
      stopped = filter.push(decoder->push(token.id));
    cancelled = options.cancelled && options.cancelled();
    return !stopped && !cancelled;
  });
  if (stopped) {
    result.reason = FinishReason::stop;
  } else if (decoder && !filter.push(decoder->flush())) {
    filter.flush();
  }
  result.text = filter.text();
  result.decode_seconds = result.tokens.empty() ? 0 : seconds_since(first);
  return result;
}

std::vector<float> generate_raw(Generator& generator, const std::vector<int32_t>& prompt,
                                int64_t vocabulary) {
  std::vector<float> logits(prompt.size() * static_cast<size_t>(vocabulary));
  generator.prompt_logits(prompt, [&](int64_t row, const Tensor& values) {
    float* out = logits.data() + row * vocabulary;
    if (values.dtype() == Dtype::f64) {
      const auto span = values.span<double>();
      std::transform(span.begin(), span.end(), out, [](double v) { return static_cast<float>(v); });
    } else {
      const auto span = values.span<float>();
      std::copy(span.begin(), span.end(), out);
    }
  });
  return logits;
}

GeneratedToken generate_one_token(Generator& generator, const std::vector<int32_t>& prompt,
                                  const GenerationOptions& options) {
  GenerationOptions one = options;
  one.max_tokens = 1;
  one.stop_ids.clear();  // whatever it is, it is the answer
  GeneratedToken result;
  generator.generate(prompt, one, [&](const GeneratedToken& token) {
    result = token;
    return true;
  });
  return result;
}

std::vector<RankedToken> just_generate_one_god_damn_token(Generator& generator,
                                                          const std::vector<int32_t>& prompt,
                                                          int64_t vocabulary, int64_t best) {
  const std::vector<float> all = generate_raw(generator, prompt, vocabulary);
  const float* last = all.data() + (prompt.size() - 1) * static_cast<size_t>(vocabulary);
  std::vector<int32_t> order(static_cast<size_t>(vocabulary));
  std::iota(order.begin(), order.end(), 0);
  best = std::min(best, vocabulary);
  std::partial_sort(order.begin(), order.begin() + best, order.end(), [&](int32_t a, int32_t b) {
    return last[a] != last[b] ? last[a] > last[b] : a < b;
  });
  const double greatest = static_cast<double>(last[order[0]]);
  double sum = 0;
  for (int64_t v = 0; v < vocabulary; ++v) sum += std::exp(static_cast<double>(last[v]) - greatest);
  std::vector<RankedToken> ranked;
  for (int64_t i = 0; i < best; ++i) {
    const int32_t id = order[static_cast<size_t>(i)];
    ranked.push_back({id, std::exp(static_cast<double>(last[id]) - greatest) / sum});
  }
  return ranked;
}

GeneratedText generate_after_training(Generator& generator, const Tokenizer& tokenizer,
                                      std::string_view prompt, int64_t max_tokens, uint64_t seed,
                                      const TextSink& sink) {
  TextOptions options;
  options.tokens.sampling.temperature = 0.8f;
  options.tokens.sampling.top_p = 0.95f;
  options.tokens.sampling.seed = seed;
  options.tokens.max_tokens = max_tokens;
  if (tokenizer.eos_id() >= 0) options.tokens.stop_ids = {tokenizer.eos_id()};
  std::vector<int32_t> ids = prompt_tokens(tokenizer, prompt);
  if (ids.empty()) ids = tokenizer.encode("\n");  // a tokenizer without BOS, and no prompt
  GeneratedText result = generate(generator, &tokenizer, ids, options, sink);
  if (sink) sink("\n");
  return result;
}

}  // namespace mixtral
