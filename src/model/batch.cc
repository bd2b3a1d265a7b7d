#include "model/batch.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/advice.h"

namespace mixtral {
namespace {

/// Keys in a cache that tokens at these positions see together, without a window.
int64_t seen_keys(const std::vector<int32_t>& positions) {
  int64_t count = 0;
  for (const int32_t position : positions)
    if (position != ops::kPadding) count += position + 1;
  return count;
}

}  // namespace

int64_t HostBatch::longest() const {
  int32_t most = 0;
  for (size_t s = 1; s < sequence_starts.size(); ++s)
    most = std::max(most, sequence_starts[s] - sequence_starts[s - 1]);
  return most;
}

int64_t HostBatch::label_count() const {
  return std::count_if(labels.begin(), labels.end(), [](int32_t label) { return label >= 0; });
}

void HostBatch::append(std::span<const int32_t> sequence, std::span<const int32_t> targets) {
  CHECK(targets.empty() || targets.size() == sequence.size());
  if (sequence_starts.empty()) sequence_starts.push_back(0);
  const auto& source = targets.empty() ? sequence : targets;
  for (size_t i = 0; i < sequence.size(); ++i) {
    tokens.push_back(sequence[i]);
    positions.push_back(static_cast<int32_t>(i));
    labels.push_back(i + 1 < sequence.size() ? source[i + 1] : ops::kIgnoredLabel);
  }
  sequence_starts.push_back(static_cast<int32_t>(tokens.size()));
}

void check_batch(const HostBatch& host, int64_t vocabulary, int64_t context) {
  for (size_t i = 0; i < host.tokens.size(); ++i) {
    if (host.tokens[i] < 0 || host.tokens[i] >= vocabulary)
      throw Error(
          fmt::format("token id {} is outside the model's vocabulary of {}; use the model's "
                      "own tokenizer",
                      host.tokens[i], vocabulary));
    if (host.positions[i] == ops::kPadding && !host.rows.empty()) continue;
    if (host.positions[i] < 0 || host.positions[i] >= context)
      throw AdvisedError(
          fmt::format("a sequence of {} tokens does not fit a context of {}; shorten it, or "
                      "raise ‹context› where the model has more positions",
                      host.positions[i] + 1, context));
  }
}

Batch upload_batch(Context& ctx, const HostBatch& host) {
  auto send = [&](const std::vector<int32_t>& values) {
    if (values.empty()) return Tensor();
    const Tensor device = ctx.allocate({static_cast<int64_t>(values.size())}, Dtype::i32);
    // The view is only read from.
    ctx.backend().upload(Tensor(const_cast<int32_t*>(values.data()), device.shape(), Dtype::i32),
                         device);
    return device;
  };
  Batch batch;
  batch.tokens = send(host.tokens);
  batch.labels = send(host.labels);
  batch.sequences = {
      .positions = send(host.positions),
      .starts = send(host.sequence_starts),
      .longest = host.longest(),
      .rows = send(host.rows),
      .decode_rows = host.decode_rows,
      .seen_keys = host.rows.empty() ? 0 : seen_keys(host.positions),
      .adapters = {.all = host.adapter, .each = send(host.adapters), .count = host.adapter_count}};
  if (!host.last) return batch;
  const auto chosen = [&](const std::vector<int32_t>& values) {
    std::vector<int32_t> of_last;
    if (!values.empty())
      for (const int32_t token : *host.last) of_last.push_back(values[static_cast<size_t>(token)]);
    return of_last;
  };
  const auto of_last = [&](const std::vector<int32_t>& values) { return send(chosen(values)); };
  batch.last = {.source = send(*host.last),
                .sequences = {.positions = of_last(host.positions),
                              .starts = {},
                              .longest = 1,
                              .rows = of_last(host.rows),
                              .decode_rows = static_cast<int64_t>(host.last->size()),
                              .seen_keys = seen_keys(chosen(host.positions)),
                              .adapters = {.all = host.adapter,
                                           .each = of_last(host.adapters),
                                           .count = host.adapter_count}}};
  return batch;
}

Batch upload(Context& ctx, const HostBatch& host, int64_t vocabulary, int64_t context) {
  check_batch(host, vocabulary, context);
  return upload_batch(ctx, host);
}

}  // namespace mixtral
