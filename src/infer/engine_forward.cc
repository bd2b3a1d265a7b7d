// The forward passes of an engine's steps.
#include "infer/engine.h"

namespace mixtral {
namespace {

/// The adapter of all rows, or nothing where they differ.
std::optional<int32_t> common_adapter(const std::vector<Sequence*>& sequences) {
  for (const Sequence* sequence : sequences)
    if (sequence->request.adapter != sequences.front()->request.adapter) return std::nullopt;
  return sequences.empty() ? kNoAdapter : sequences.front()->request.adapter;
}

}  // namespace

void Engine::decode(int64_t rows) {
  const ArenaScope scope(arena_);
  Batch batch = rows_.batch(rows);
  batch.sequences.adapters = seat_adapters(rows);
  model_.logits(ctx_, model_.forward(ctx_, batch, &cache_, nullptr, reports_), rows_.logits(rows),
                batch.sequences.adapters);
  rows_.draw(rows);
}

/// Which adapters the first rows use: one, or each its own.
nn::TokenAdapters Engine::seat_adapters(int64_t rows) const {
  if (const auto common = common_adapter(seats_)) return {.all = *common};
  return {.each = rows_.adapters(rows), .count = adapters_ ? adapters_->count() : 1};
}

void Engine::prefill(const Scheduler::Step& step) {
  const ArenaScope scope(arena_);
  HostBatch host;
  std::vector<int32_t>& drawn = drawn_from_;
  drawn.clear();
  const auto decoding = static_cast<std::ptrdiff_t>(step.decode.size());
  host.decode_rows = decoding + drafts_;
  host.sequence_starts.push_back(0);
  std::vector<Sequence*> sequences(seats_.begin(), seats_.begin() + decoding);
  const auto append = [&](const Sequence& sequence, int64_t count) {
    for (int64_t p = sequence.cached; p < sequence.cached + count; ++p) {
      host.tokens.push_back(sequence.tokens[static_cast<size_t>(p)]);
      host.positions.push_back(static_cast<int32_t>(p));
      host.rows.push_back(sequence.cache_row);
      host.adapters.push_back(sequence.request.adapter);
    }
    host.sequence_starts.push_back(static_cast<int32_t>(host.tokens.size()));
  };
  for (int32_t i = 0; i < decoding; ++i) {
    append(*seats_[static_cast<size_t>(i)], 1);
    drawn.push_back(i);
  }
  for (const Sequence* sequence : step.decode)  // in the order of their rows
    for (int64_t i = 0; i < sequence->drafted; ++i) {
      host.tokens.push_back(sequence->draft[static_cast<size_t>(i)]);
      host.positions.push_back(static_cast<int32_t>(sequence->length() + i));
      host.rows.push_back(sequence->cache_row);
      host.adapters.push_back(sequence->request.adapter);
      host.sequence_starts.push_back(static_cast<int32_t>(host.tokens.size()));
    }
  bool wants_logits = false;
  for (const Scheduler::Slice& slice : step.prefill) {
    append(*slice.sequence, slice.count);
    sequences.push_back(slice.sequence);
    if (slice.sequence->seat >= 0) drawn.push_back(host.sequence_starts.back() - 1);
    wants_logits |= slice.sequence->wants_logits();
  }
  CHECK(drawn.size() == seats_.size());
  for (int64_t i = 0; i < drafts_; ++i) drawn.push_back(static_cast<int32_t>(decoding + i));
  if (!wants_logits) host.last = drawn;
  host.adapter_count = adapters_ ? adapters_->count() : 1;
  if (const auto common = common_adapter(sequences)) {
    host.adapter = *common;
    host.adapters.clear();
  }
  const Batch batch = upload_batch(ctx_, host);
  const Tensor hidden = model_.forward(ctx_, batch, &cache_, nullptr, reports_);
  if (drawn.empty() && !wants_logits) return;
  for (size_t i = 0; i < step.prefill.size() && wants_logits; ++i) {
    const auto run = static_cast<size_t>(host.decode_rows) + i;
    if (step.prefill[i].sequence->wants_logits())
      report_prompt_logits(step.prefill[i],
                           hidden.slice(host.sequence_starts[run], host.sequence_starts[run + 1]));
  }
  if (drawn.empty()) return;
  const auto count = static_cast<int64_t>(drawn.size());
  Tensor last = hidden;
  if (!batch.last) {
    const Tensor source = ctx_.allocate({count}, Dtype::i32);
    backend_.upload(Tensor(std::span(drawn)), source);
    last = ctx_.allocate({count, hidden.dim(1)});
    ctx_.run(ops::Embedding{.table = hidden, .tokens = source, .x = last});
  }
  model_.logits(ctx_, last, rows_.logits(count), seat_adapters(count));
  rows_.draw(count);
}

void Engine::report_prompt_logits(const Scheduler::Slice& slice, const Tensor& hidden) {
  const ArenaScope scope(arena_);
  Sequence& sequence = *slice.sequence;
  const int64_t first = std::max(sequence.cached, sequence.reported);
  const int64_t end =
      std::min(sequence.cached + slice.count, static_cast<int64_t>(sequence.request.prompt.size()));
  if (first >= end) return;
  const Tensor logits = ctx_.allocate({end - first, vocabulary()}, ctx_.statistics());
  model_.logits(ctx_, hidden.slice(first - sequence.cached, end - sequence.cached), logits,
                {.all = sequence.request.adapter});
  Event event{.id = sequence.id, .first = first};
  event.logits_buffer = Buffer(host_memory(), logits.bytes());
  event.logits = event.logits_buffer.tensor(logits.shape(), logits.dtype());
  backend_.download(logits, event.logits);
  events_.push_back(std::move(event));
  sequence.reported = end;
}

}  // namespace mixtral
