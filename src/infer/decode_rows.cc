#include "infer/decode_rows.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "tensor/cutter.h"

namespace mixtral {
namespace {

/// Calls body(begin, end) for each run of rows that are marked, and unmarks them.
template <class Body>
void for_marked_runs(std::vector<uint8_t>& marks, const Body& body) {
  const auto count = static_cast<int64_t>(marks.size());
  for (int64_t begin = 0; begin < count; ++begin) {
    int64_t end = begin;
    while (end < count && marks[static_cast<size_t>(end)] != 0)
      marks[static_cast<size_t>(end++)] = 0;
    if (end > begin) body(begin, end);
    begin = end;
  }
}

}  // namespace

DecodeRows::DecodeRows(Context& ctx, int64_t rows, int64_t vocabulary, int64_t context)
    : ctx_(ctx), rows_(rows), context_(context) {
  const auto settings_bytes = static_cast<int64_t>(sizeof(ops::SamplingSettings));
  const auto cut = [&](void* base) {
    Cutter cutter(base);
    tokens_ = cutter.take({rows}, Dtype::i32);
    positions_ = cutter.take({rows}, Dtype::i32);
    cache_rows_ = cutter.take({rows}, Dtype::i32);
    adapters_ = cutter.take({rows}, Dtype::i32);
    starts_ = cutter.take({rows + 1}, Dtype::i32);
    settings_ = cutter.take({rows, settings_bytes}, Dtype::u8);
    logits_ = cutter.take({rows, vocabulary}, ctx.statistics());
    return cutter.size();
  };
  state_buffer_ = Buffer(ctx.backend(), cut(nullptr));
  cut(state_buffer_.data());
  const int64_t bytes = cut_results({}, rows, ctx.statistics()).all.numel();
  results_buffer_ = Buffer(ctx.backend(), bytes);
  host_results_buffer_ = Buffer(host_memory(), bytes);
  results_ = cut_results(results_buffer_, rows, ctx.statistics());
  host_results_ = cut_results(host_results_buffer_, rows, ctx.statistics());

  const auto count = static_cast<size_t>(rows);
  std::vector<int32_t> starts(count + 1);
  std::iota(starts.begin(), starts.end(), 0);
  send(starts, starts_, 0, rows + 1);
  host_tokens_.assign(count, 0);
  host_positions_.assign(count, ops::kPadding);
  host_cache_rows_.assign(count, 0);
  host_adapters_.assign(count, kNoAdapter);
  host_settings_.assign(count, {});
  changed_.assign(count, 1);
  mask_changed_.assign(count, 0);
  bias_changed_.assign(count, 0);
  masked_.assign(count, 0);
  biased_.assign(count, 0);
}

DecodeRows::Results DecodeRows::cut_results(const Buffer& buffer, int64_t rows, Dtype statistics) {
  Cutter cutter(buffer.data());
  Results results;
  results.drawn = cutter.take({rows}, Dtype::i32);
  results.log_probability = cutter.take({rows}, statistics);
  results.all = Tensor(buffer.data(), {cutter.size()}, Dtype::u8);
  return results;
}

bool DecodeRows::remembers(const GenerationOptions& options) const {
  return options.sampling.repeat_penalty != 1 && options.repeat_last_n > 0;
}

bool DecodeRows::prepare(const GenerationOptions& options, bool masked) {
  bool moved = false;
  if (remembers(options)) {
    const int64_t needed = std::min(options.repeat_last_n, context_ + 1);
    const auto width = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(needed)));
    if (history_.empty() || history_.dim(1) < width) {
      history_buffer_ = Buffer();
      history_buffer_ = Buffer(ctx_.backend(), rows_ * width * size_of(Dtype::i32));
      history_ = history_buffer_.tensor({rows_, width}, Dtype::i32);
      host_history_.assign(static_cast<size_t>(rows_ * width), -1);
      moved = true;
    }
  }
  if (masked && mask_.empty()) {
    const int64_t words = ops::allowed_words(logits_.dim(1));
    mask_buffer_ = Buffer(ctx_.backend(), rows_ * words * size_of(Dtype::i32));
    mask_ = mask_buffer_.tensor({rows_, words}, Dtype::i32);
    host_mask_.assign(static_cast<size_t>(rows_ * words), ~uint32_t{0});
    std::ranges::fill(mask_changed_, uint8_t{1});
    moved = true;
  }
  if ((!options.logit_bias.empty() || options.penalises()) && bias_.empty()) {
    bias_buffer_ = Buffer(ctx_.backend(), rows_ * logits_.dim(1) * size_of(Dtype::f32));
    bias_ = bias_buffer_.tensor({rows_, logits_.dim(1)}, Dtype::f32);
    host_bias_.assign(static_cast<size_t>(bias_.numel()), 0.0F);
    std::ranges::fill(bias_changed_, uint8_t{1});
    moved = true;
  }
  return moved;
}

void DecodeRows::place(int64_t row, const Row& content, std::span<const int32_t> draft) {
  const auto r = static_cast<size_t>(row);
  const auto drawn = static_cast<int64_t>(content.tokens.size());
  const int64_t count = drawn + static_cast<int64_t>(draft.size());
  const auto token_at = [&](int64_t p) {
    return p < drawn ? content.tokens[static_cast<size_t>(p)]
                     : draft[static_cast<size_t>(p - drawn)];
  };
  host_tokens_[r] = token_at(count - 1);
  host_positions_[r] = static_cast<int32_t>(count - 1);
  host_cache_rows_[r] = content.cache_row;
  host_adapters_[r] = content.adapter;
  ops::SamplingSettings& settings = host_settings_[r] = content.options->sampling;
  if (remembers(*content.options))
    settings.repeat_last_n =
        static_cast<int32_t>(std::min(content.options->repeat_last_n, context_ + 1));
  else
    settings.repeat_penalty = 1;
  if (history_) {
    const int64_t width = history_.dim(1);
    int32_t* history = host_history_.data() + row * width;
    std::fill_n(history, width, -1);
    for (int64_t p = std::max<int64_t>(0, count - width); p < count; ++p)
      history[p % width] = token_at(p);
  }
  changed_[r] = 1;
}

Batch DecodeRows::batch(int64_t count) const {
  Batch batch;
  batch.tokens = tokens(count);
  batch.sequences = {.positions = positions(count),
                     .starts = starts(count),
                     .longest = 1,
                     .rows = cache_rows(count),
                     .decode_rows = count};
  return batch;
}

void DecodeRows::set(int64_t row, const Row& content) {
  place(row, content, {});
  if (bias_) set_bias(row, content);
  allow_all(row);
}

void DecodeRows::move(int64_t row, const Row& content) { place(row, content, {}); }

void DecodeRows::set_draft(int64_t row, int64_t base, const Row& content,
                           std::span<const int32_t> draft) {
  CHECK(row != base && !draft.empty());
  place(row, content, draft);
  allow_all(row);
  const auto r = static_cast<size_t>(row);
  const GenerationOptions& options = *content.options;
  const bool biased = bias_ && biased_[static_cast<size_t>(base)] != 0;
  if (bias_ && (biased || biased_[r] != 0)) {
    std::ranges::copy(bias_of(base), bias_of(row).begin());
    biased_[r] = biased;
    bias_changed_[r] = 1;
  }
  if (!options.penalises()) return;
  const auto drawn = content.tokens.subspan(content.prompt);
  for (size_t i = 0; i < draft.size(); ++i) {
    const auto before = draft.first(i);
    subtract_penalty(row, options, draft[i],
                     std::ranges::find(drawn, draft[i]) != drawn.end() ||
                         std::ranges::find(before, draft[i]) != before.end());
  }
}

void DecodeRows::set_bias(int64_t row, const Row& content) {
  const GenerationOptions& options = *content.options;
  const auto r = static_cast<size_t>(row);
  if (biased_[r] == 0 && options.logit_bias.empty() && !options.penalises()) return;
  const std::span<float> bias = bias_of(row);
  std::ranges::fill(bias, 0.0F);
  biased_[r] = !options.logit_bias.empty();
  bias_changed_[r] = 1;
  for (const auto& [token, value] : options.logit_bias) bias[static_cast<size_t>(token)] += value;
  if (!options.penalises()) return;
  for (size_t end = content.prompt + 1; end <= content.tokens.size(); ++end)
    penalise(row, {.tokens = content.tokens.first(end),
                   .prompt = content.prompt,
                   .options = content.options});
}

void DecodeRows::penalise(int64_t row, const Row& content) {
  if (!content.options->penalises()) return;
  const int32_t token = content.tokens.back();
  const auto before = content.tokens.first(content.tokens.size() - 1).subspan(content.prompt);
  subtract_penalty(row, *content.options, token, std::ranges::find(before, token) != before.end());
}

/// `again`: the token was drawn before, too.
void DecodeRows::subtract_penalty(int64_t row, const GenerationOptions& options, int32_t token,
                                  bool again) {
  const auto r = static_cast<size_t>(row);
  bias_of(row)[static_cast<size_t>(token)] -=
      options.frequency_penalty + (again ? 0.0F : options.presence_penalty);
  biased_[r] = bias_changed_[r] = 1;
}

void DecodeRows::allow_all(int64_t row) {
  const auto r = static_cast<size_t>(row);
  if (masked_[r] == 0) return;
  const int64_t words = mask_.dim(1);
  std::fill_n(host_mask_.begin() + row * words, words, ~uint32_t{0});
  masked_[r] = 0;
  mask_changed_[r] = 1;
}

std::span<float> DecodeRows::bias_of(int64_t row) {
  const int64_t width = bias_.dim(1);
  return std::span(host_bias_)
      .subspan(static_cast<size_t>(row * width), static_cast<size_t>(width));
}

void DecodeRows::clear(int64_t row) {
  const auto r = static_cast<size_t>(row);
  host_positions_[r] = ops::kPadding;
  host_adapters_[r] = kNoAdapter;
  host_settings_[r] = {};
  changed_[r] = 1;
}

void DecodeRows::set_mask(int64_t row, const TokenMask& mask) {
  CHECK(mask_ && static_cast<int64_t>(mask.size()) == mask_.dim(1));
  std::ranges::copy(mask, host_mask_.begin() + row * mask_.dim(1));
  masked_[static_cast<size_t>(row)] = 1;
  mask_changed_[static_cast<size_t>(row)] = 1;
}

template <class T>
void DecodeRows::send(const std::vector<T>& host, const Tensor& device, int64_t begin,
                      int64_t end) const {
  const Tensor to = device.slice(begin, end);
  const int64_t row_bytes = to.bytes() / (end - begin);
  // The view is only read from.
  auto* from = const_cast<T*>(host.data()) + begin * row_bytes / static_cast<int64_t>(sizeof(T));
  ctx_.backend().upload(Tensor(from, to.shape(), to.dtype()), to);
}

void DecodeRows::upload() {
  // Few transfers cost less than few bytes: those between changed rows are as on the device.
  const auto first = std::ranges::find(changed_, 1) - changed_.begin();
  if (first < std::ssize(changed_)) {
    auto end = std::ssize(changed_);
    while (changed_[static_cast<size_t>(end - 1)] == 0) --end;
    send(host_tokens_, tokens_, first, end);
    send(host_positions_, positions_, first, end);
    send(host_cache_rows_, cache_rows_, first, end);
    send(host_adapters_, adapters_, first, end);
    send(host_settings_, settings_, first, end);
  }
  for_marked_runs(changed_, [&](int64_t begin, int64_t end) {
    if (history_) send(host_history_, history_, begin, end);
  });
  if (mask_)
    for_marked_runs(mask_changed_,
                    [&](int64_t begin, int64_t end) { send(host_mask_, mask_, begin, end); });
  if (bias_)
    for_marked_runs(bias_changed_,
                    [&](int64_t begin, int64_t end) { send(host_bias_, bias_, begin, end); });
}

void DecodeRows::draw(int64_t count) {
  const Tensor history = history_ ? history_.slice(0, count) : Tensor();
  ctx_.run(ops::Sample{.logits = logits(count),
                       .settings = settings_.slice(0, count),
                       .history = history,
                       .allowed = mask_ ? mask_.slice(0, count) : Tensor(),
                       .bias = bias_ ? bias_.slice(0, count) : Tensor(),
                       .positions = positions(count),
                       .tokens = results_.drawn.slice(0, count),
                       .log_probability = results_.log_probability.slice(0, count)});
  ctx_.run(ops::Advance{.drawn = results_.drawn.slice(0, count),
                        .inputs = tokens(count),
                        .positions = positions(count),
                        .history = history});
}

void DecodeRows::read(int64_t count) {
  ctx_.backend().download(results_.all, host_results_.all);
  for (int64_t row = 0; row < count; ++row) {
    const auto r = static_cast<size_t>(row);
    if (host_positions_[r] == ops::kPadding) continue;
    const int32_t token = host_tokens_[r] = drawn(row);
    const int32_t position = ++host_positions_[r];
    if (history_)
      host_history_[static_cast<size_t>(row * history_.dim(1) + position % history_.dim(1))] =
          token;
  }
}

int32_t DecodeRows::drawn(int64_t row) const { return host_results_.drawn.as<int32_t>()[row]; }

double DecodeRows::log_probability(int64_t row) const {
  const Tensor& values = host_results_.log_probability;
  return values.dtype() == Dtype::f64 ? values.as<double>()[row]
                                      : static_cast<double>(values.as<float>()[row]);
}

}  // namespace mixtral
