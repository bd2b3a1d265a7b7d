#include "infer/draft_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

namespace mixtral {
namespace {

constexpr size_t kDraftRecordings = 16;
constexpr int64_t kRowsOfSequence = 2;  // the last token, and one more that was drawn meanwhile

}  // namespace

DraftModel::DraftModel(Backend& backend, const Mixtral& model, const Options& options)
    : backend_(backend),
      model_(model),
      options_(options),
      arena_(backend),
      ctx_(backend, arena_, model.options().compute),
      cache_(backend, model.config(),
             {.sequences = options.sequences,
              .context = options.context,
              .chunk = std::min(options.chunk + options.tokens, options.context),
              .type = model.options().cache_type()}),
      rows_(ctx_, kRowsOfSequence * options.sequences, model.config().vocab_size, options.context),
      recordings_(backend, arena_, kDraftRecordings) {
  ctx_.set_operands(model.options().operands);
  if (options.context > model.context())
    throw Error(fmt::format(
        "the draft model has {} positions, too few for a context of {}; give a draft model with as "
        "many, or a shorter context",
        model.context(), options.context));
}

void DraftModel::prepare(const GenerationOptions& options) {
  if (rows_.prepare(options, false)) recordings_.clear();
}

void DraftModel::forget(RequestId id) {
  const auto found = states_.find(id);
  if (found == states_.end()) return;
  cache_.close(found->second.cache_row);
  states_.erase(found);
}

/// What is known of a sequence. Where the cache has no row for it, one is taken that is none of
/// these sequences'.
DraftModel::State& DraftModel::state_of(RequestId id, std::span<Sequence* const> sequences) {
  const auto found = states_.find(id);
  if (found != states_.end()) return found->second;
  if (cache_.free_sequences() == 0) {
    const auto idle = std::ranges::find_if(states_, [&](const auto& entry) {
      return std::ranges::find(sequences, entry.first, &Sequence::id) == sequences.end();
    });
    CHECK(idle != states_.end());
    forget(idle->first);
  }
  State& state = states_[id];
  state.cache_row = cache_.open();
  return state;
}

/// Drops what the sequence has not: drafts that were not accepted. Its last token is to go through
/// the model in any case.
void DraftModel::rewind(State& state, const Sequence& sequence) {
  const auto most = std::min(state.tokens.size(), sequence.tokens.size() - 1);
  const auto known = std::span(state.tokens).first(most);
  const auto common =
      static_cast<size_t>(std::ranges::mismatch(known, sequence.tokens).in1 - known.begin());
  state.tokens.resize(common);
  if (cache_.truncate(state.cache_row, static_cast<int64_t>(common))) return;
  // Pages behind the window are gone that a token in front of it sees.
  CHECK(cache_.truncate(state.cache_row, 0));
  state.tokens.clear();
}

bool DraftModel::draft(std::span<Sequence* const> sequences, std::span<const int64_t> most) {
  try {
    return make_drafts(sequences, most);
  } catch (...) {
    // What is noted as being in the cache was perhaps not computed.
    while (!states_.empty()) forget(states_.begin()->first);
    throw;
  }
}

bool DraftModel::make_drafts(std::span<Sequence* const> sequences, std::span<const int64_t> most) {
  std::vector<Seat> seats;
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i]->draft.clear();
    if (most[i] == 0) continue;
    State& state = state_of(sequences[i]->id, sequences);
    rewind(state, *sequences[i]);
    seats.push_back({.sequence = sequences[i],
                     .state = &state,
                     .most = std::min(most[i], options_.tokens),
                     .pending = sequences[i]->length() - std::ssize(state.tokens)});
  }
  const bool was_close = !catch_up(seats);
  if (seats.empty()) return was_close;
  std::ranges::stable_sort(seats, std::greater(), &Seat::most);
  place(seats);
  cache_.upload();
  auto count = static_cast<int64_t>(seats.size());
  int64_t rows = taken_rows_;
  for (int64_t depth = 1; count > 0; ++depth) {
    run(rows);
    for (int64_t row = 0; row < count; ++row) {
      const Seat& seat = seats[static_cast<size_t>(row)];
      seat.sequence->draft.push_back(rows_.drawn(row));
      seat.state->tokens.push_back(rows_.drawn(row));
      rows_.penalise(row, {.tokens = seat.state->tokens,
                           .prompt = seat.sequence->request.prompt.size(),
                           .options = &seat.sequence->request.options});
    }
    while (count > 0 && seats[static_cast<size_t>(count - 1)].most == depth) --count;
    for (int64_t row = count; row < rows; ++row) rows_.clear(row);
    rows = count;
  }
  // The last token of each draft has not been through the model.
  for (const Seat& seat : seats) seat.state->tokens.pop_back();
  return was_close;
}

/// Reads what is missing of the sequences, but for the last tokens, and leaves out those for which
/// that is too much for one call. Returns whether there was anything to read.
bool DraftModel::catch_up(std::vector<Seat>& seats) {
  HostBatch host;
  host.sequence_starts.push_back(0);
  int64_t budget = options_.chunk;
  std::erase_if(seats, [&](Seat& seat) {
    if (seat.pending <= kRowsOfSequence) return false;
    const Sequence& sequence = *seat.sequence;
    State& state = *seat.state;
    const auto cached = std::ssize(state.tokens);
    const int64_t count = std::min(seat.pending - 1, budget);
    if (count == 0) return true;
    budget -= count;
    CHECK(cache_.extend(state.cache_row, cached + count));
    for (int64_t p = cached; p < cached + count; ++p) {
      state.tokens.push_back(sequence.tokens[static_cast<size_t>(p)]);
      host.tokens.push_back(state.tokens.back());
      host.positions.push_back(static_cast<int32_t>(p));
      host.rows.push_back(state.cache_row);
    }
    host.sequence_starts.push_back(static_cast<int32_t>(host.tokens.size()));
    seat.pending -= count;
    return seat.pending > 1;
  });
  if (host.tokens.empty()) return false;
  host.last.emplace();  // nothing is drawn
  cache_.upload();
  arena_.reset();
  const ArenaScope scope(arena_);
  const Batch batch = upload_batch(ctx_, host);
  (void)model_.forward(ctx_, batch, &cache_, nullptr, nullptr);
  return true;
}

/// Gives each sequence its row, and behind them a row to each token that was drawn meanwhile.
void DraftModel::place(std::span<const Seat> seats) {
  for (int64_t row = 0; row < taken_rows_; ++row) rows_.clear(row);
  int64_t extra = std::ssize(seats);
  for (size_t i = 0; i < seats.size(); ++i) {
    const auto& [sequence, state, most, pending] = seats[i];
    DecodeRows::Row content{.tokens = sequence->tokens,
                            .prompt = sequence->request.prompt.size(),
                            .cache_row = state->cache_row,
                            .options = &sequence->request.options};
    CHECK(cache_.extend(state->cache_row, sequence->length() + most - 1));
    rows_.set(static_cast<int64_t>(i), content);
    if (pending > 1) {
      content.tokens = content.tokens.first(content.tokens.size() - 1);
      rows_.move(extra++, content);
    }
    state->tokens.assign(sequence->tokens.begin(), sequence->tokens.end());
  }
  taken_rows_ = extra;
}

/// Draws for the first `rows` rows, those that are not padding, and reads what was drawn.
void DraftModel::run(int64_t rows) {
  if (options_.pad)
    rows = std::min(static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows))),
                    kRowsOfSequence * options_.sequences);
  rows_.upload();
  arena_.reset();
  recordings_.run({rows}, [this, rows] { forward(rows); });
  rows_.read(rows);
}

void DraftModel::forward(int64_t rows) {
  const ArenaScope scope(arena_);
  model_.logits(ctx_, model_.forward(ctx_, rows_.batch(rows), &cache_, nullptr, nullptr),
                rows_.logits(rows));
  rows_.draw(rows);
}

}  // namespace mixtral
