#include "infer/generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace mixtral {
namespace {

constexpr int64_t kChunk = 256;  // prompt tokens read at once

}  // namespace

struct Generator::Step {
  Batch batch;             // one token
  Tensor settings;         // [1, sizeof(SamplingSettings)]
  Tensor history;          // [1, W], or empty
  Tensor drawn;            // [1] i32
  Tensor log_probability;  // [1] statistics
};

Generator::Generator(Backend& backend, const Mixtral& model, int64_t context)
    : backend_(backend),
      model_(model),
      arena_(backend),
      step_arena_(backend),
      ctx_(backend, arena_, model.options().compute),
      cache_(backend, model.config(),
             {.context = context > 0 ? context : model.context(),
              .chunk = std::min(kChunk, context > 0 ? context : model.context()),
              .dtype = model.options().compute}),
      sequence_(cache_.open()) {
  if (cache_.context() > model.context())
    throw Error(
        fmt::format("a context of {} tokens was asked for, but the model was prepared for {}",
                    cache_.context(), model.context()));
}

Generator::~Generator() = default;

void Generator::check_prompt(std::span<const int32_t> prompt, int64_t room) const {
  if (prompt.empty()) throw Error("the prompt has no tokens; give at least one");
  if (static_cast<int64_t>(prompt.size()) + room > context())
    throw Error(
        fmt::format("a prompt of {} tokens does not fit a context of {} with room for {} "
                    "more; shorten it, or raise --context where the model has more positions",
                    prompt.size(), context(), room));
}

void Generator::extend_cache(int64_t tokens) {
  CHECK(cache_.extend(sequence_, tokens), "a cache of one sequence has room for it");
  cache_.upload();
}

Tensor Generator::prefill(std::span<const int32_t> prompt, int64_t begin, int64_t end) {
  if (begin == 0) CHECK(cache_.truncate(sequence_, 0));
  extend_cache(end);
  HostBatch host;
  for (int64_t i = begin; i < end; ++i) {
    host.tokens.push_back(prompt[static_cast<size_t>(i)]);
    host.positions.push_back(static_cast<int32_t>(i));
    host.rows.push_back(sequence_);
  }
  host.sequence_starts = {0, static_cast<int32_t>(end - begin)};
  const Batch batch = upload(ctx_, host, model_.config().vocab_size, context());
  return model_.forward(ctx_, batch, &cache_, nullptr, nullptr);
}

FinishReason Generator::generate(std::span<const int32_t> prompt, const GenerationOptions& options,
                                 const std::function<bool(const GeneratedToken&)>& on_token) {
  check_prompt(prompt, 1);
  const auto length = static_cast<int64_t>(prompt.size());
  const int64_t vocabulary = model_.config().vocab_size;
  step_arena_.reset();
  arena_.reset();
  auto upload_new = [&](const auto& values, Shape shape, Dtype dtype) {
    const Tensor device = step_arena_.allocate(shape, dtype);
    using Value = std::remove_cvref_t<decltype(*values.data())>;
    backend_.upload(Tensor(const_cast<Value*>(values.data()), shape, dtype), device);
    return device;
  };

  Step step;
  const auto last = static_cast<int32_t>(length - 1);
  std::vector<uint8_t> settings(sizeof options.sampling);
  std::memcpy(settings.data(), &options.sampling, settings.size());
  step.settings = upload_new(settings, {1, static_cast<int64_t>(settings.size())}, Dtype::u8);
  if (options.sampling.repeat_penalty != 1 && options.repeat_last_n > 0) {
    // A ring: the token at position p stands at p mod W, as ops::Advance keeps it.
    const int64_t width = options.repeat_last_n;
    std::vector<int32_t> history(static_cast<size_t>(width), -1);
    for (int64_t p = std::max<int64_t>(0, length - width); p < length; ++p)
      history[static_cast<size_t>(p % width)] = prompt[static_cast<size_t>(p)];
    step.history = upload_new(history, {1, width}, Dtype::i32);
  }
  const std::vector<int32_t> token{prompt.back()}, position{last}, row{sequence_}, starts{0, 1};
  step.batch.tokens = upload_new(token, {1}, Dtype::i32);
  step.batch.sequences = {.positions = upload_new(position, {1}, Dtype::i32),
                          .starts = upload_new(starts, {2}, Dtype::i32),
                          .longest = 1,
                          .rows = upload_new(row, {1}, Dtype::i32),
                          .decode_rows = 1};
  step.drawn = step_arena_.allocate({1}, Dtype::i32);
  step.log_probability = step_arena_.allocate({1}, ctx_.statistics());

  auto draw = [&](const Tensor& hidden) {
    const Tensor logits = ctx_.allocate({1, vocabulary}, ctx_.statistics());
    model_.logits(ctx_, hidden, logits);
    ctx_.run(ops::Sample{.logits = logits,
                         .settings = step.settings,
                         .history = step.history,
                         .positions = step.batch.sequences.positions,
                         .tokens = step.drawn,
                         .log_probability = step.log_probability});
    ctx_.run(ops::Advance{.drawn = step.drawn,
                          .inputs = step.batch.tokens,
                          .positions = step.batch.sequences.positions,
                          .history = step.history});
  };
  auto read = [&] {
    GeneratedToken result;
    backend_.download(step.drawn, Tensor(&result.id, {1}, Dtype::i32));
    if (ctx_.statistics() == Dtype::f64) {
      backend_.download(step.log_probability, Tensor(&result.log_probability, {1}, Dtype::f64));
    } else {
      float value = 0;
      backend_.download(step.log_probability, Tensor(&value, {1}, Dtype::f32));
      result.log_probability = static_cast<double>(value);
    }
    return result;
  };

  for (int64_t begin = 0; begin < length; begin += cache_.chunk()) {
    const ArenaScope scope(arena_);
    const int64_t end = std::min(length, begin + cache_.chunk());
    const Tensor hidden = prefill(prompt, begin, end);
    if (end == length) draw(hidden.slice(end - begin - 1, end - begin));
  }
  std::unique_ptr<Program> program;
  for (int64_t count = 0; count < options.max_tokens; ++count) {
    if (count > 0) {
      if (length + count >= context() + 1) return FinishReason::length;
      extend_cache(length + count);
      if (program) {
        program->replay();
      } else {
        program = backend_.record([&] {
          const ArenaScope scope(arena_);
          draw(model_.forward(ctx_, step.batch, &cache_, nullptr, nullptr));
        });
      }
    }
    const GeneratedToken next = read();
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), next.id) !=
        options.stop_ids.end())
      return FinishReason::stop;
    if (!on_token(next)) return FinishReason::cancelled;
  }
  return FinishReason::length;
}

void Generator::prompt_logits(
    std::span<const int32_t> prompt,
    const std::function<void(int64_t first_row, const Tensor& host_logits)>& take) {
  check_prompt(prompt, 0);
  const auto length = static_cast<int64_t>(prompt.size());
  const int64_t vocabulary = model_.config().vocab_size;
  arena_.reset();
  for (int64_t begin = 0; begin < length; begin += cache_.chunk()) {
    const ArenaScope scope(arena_);
    const int64_t rows = std::min(length - begin, cache_.chunk());
    const Tensor hidden = prefill(prompt, begin, begin + rows);
    const Tensor logits = ctx_.allocate({rows, vocabulary}, ctx_.statistics());
    model_.logits(ctx_, hidden, logits);
    const Buffer host(host_memory(), logits.bytes());
    const Tensor values = host.tensor(logits.shape(), logits.dtype());
    backend_.download(logits, values);
    take(begin, values);
  }
}

}  // namespace mixtral
