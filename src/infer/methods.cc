#include "infer/methods.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

namespace mixtral {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

std::vector<int32_t> prompt_tokens(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids;
  if (tokenizer.bos_id() >= 0) ids.push_back(tokenizer.bos_id());
  const auto encoded = tokenizer.encode(text);
  ids.insert(ids.end(), encoded.begin(), encoded.end());
  return ids;
}

void run_requests(Engine& engine, std::span<const RequestId> ids) {
  try {
    for (const RequestId id : ids)
      while (engine.has(id)) engine.step();
  } catch (...) {
    for (const RequestId id : ids) engine.cancel(id);
    throw;
  }
}

RequestId submit_text(Engine& engine, const Tokenizer* tokenizer, std::vector<int32_t> prompt,
                      const TextOptions& options, GeneratedText& result, TextSink sink,
                      std::function<void()> on_finish) {
  struct State {
    TextStream text;
    Clock::time_point start = Clock::now(), first = start;
  };
  const auto state = std::make_shared<State>(State{{tokenizer, options.stop, std::move(sink)}});
  Request request{
      .prompt = std::move(prompt), .options = options.tokens, .adapter = options.adapter};
  request.on_token = [state, &options, &result](const GeneratedToken& token) {
    if (result.tokens.empty()) {
      state->first = Clock::now();
      result.prompt_seconds = seconds_since(state->start);
    }
    result.tokens.push_back(token);
    const bool stopped = state->text.push(token.id);
    const bool cancelled = options.cancelled && options.cancelled();
    return stopped ? Next::stop : cancelled ? Next::cancel : Next::go_on;
  };
  request.on_finish = [state, &result, done = std::move(on_finish)](FinishReason reason) {
    state->text.finish();
    result.reason = reason;
    result.text = state->text.text();
    result.decode_seconds = result.tokens.empty() ? 0 : seconds_since(state->first);
    if (done) done();
  };
  return engine.submit(std::move(request));
}

GeneratedText generate(Engine& engine, const Tokenizer* tokenizer,
                       const std::vector<int32_t>& prompt, const TextOptions& options,
                       const TextSink& sink) {
  GeneratedText result;
  const RequestId id = submit_text(engine, tokenizer, prompt, options, result, sink);
  run_requests(engine, {&id, 1});
  return result;
}

std::vector<float> generate_raw(Engine& engine, const std::vector<int32_t>& prompt,
                                int64_t vocabulary) {
  std::vector<float> logits(prompt.size() * static_cast<size_t>(vocabulary));
  Request request{.prompt = prompt};
  request.options.max_tokens = 0;
  request.on_prompt_logits = [&](int64_t row, const Tensor& values) {
    float* out = logits.data() + row * vocabulary;
    if (values.dtype() == Dtype::f64) {
      const auto span = values.span<double>();
      std::transform(span.begin(), span.end(), out, [](double v) { return static_cast<float>(v); });
    } else {
      const auto span = values.span<float>();
      std::copy(span.begin(), span.end(), out);
    }
  };
  const RequestId id = engine.submit(std::move(request));
  run_requests(engine, {&id, 1});
  return logits;
}

GeneratedToken generate_one_token(Engine& engine, const std::vector<int32_t>& prompt,
                                  const GenerationOptions& options) {
  TextOptions one{.tokens = options};
  one.tokens.max_tokens = 1;
  one.tokens.stop_ids.clear();  // whatever it is, it is the answer
  return generate(engine, nullptr, prompt, one).tokens.front();
}

std::vector<RankedToken> just_generate_one_god_damn_token(Engine& engine,
                                                          const std::vector<int32_t>& prompt,
                                                          int64_t vocabulary, int64_t best) {
  const std::vector<float> all = generate_raw(engine, prompt, vocabulary);
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

GeneratedText generate_after_training(Engine& engine, const Tokenizer& tokenizer,
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
  GeneratedText result = generate(engine, &tokenizer, ids, options, sink);
  if (sink) sink("\n");
  return result;
}

}  // namespace mixtral
