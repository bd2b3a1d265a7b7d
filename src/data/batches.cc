#include "data/batches.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/advice.h"
#include "base/error.h"
#include "base/random.h"
#include "ops/vocab.h"

namespace mixtral {
namespace {

/// Streams of the seed that belong to the data; others are the model's and the sampler's.
constexpr uint64_t kShuffleStream = uint64_t{1} << 32, kWindowStream = uint64_t{2} << 32;
/// Rows that are open at a time while whole records are packed: enough to fill rows to a few
/// percent, few enough that an epoch's order stays random.
constexpr size_t kOpenRows = 32;

}  // namespace

Packing parse_packing(std::string_view name) {
  if (name == "off") return Packing::off;
  if (name == "on") return Packing::on;
  if (name == "fill") return Packing::fill;
  throw AdvisedUsageError(fmt::format("‹pack› is off, on or fill, not \"{}\"", name));
}

Batches::Batches(const Corpus& corpus, const BatchOptions& options)
    : corpus_(corpus), options_(options) {
  if (options_.context < 1) throw AdvisedUsageError("‹context› must be at least 1");
  if (options_.rows < 1) throw AdvisedUsageError("‹batch-size› must be at least 1");
  if (corpus_.tokens() < 2)
    throw Error(fmt::format("{}: there are fewer than two tokens, so there is nothing to learn",
                            options_.data));
  if (corpus_.is_paired()) {
    if (options_.random_windows) throw UsageError("preference pairs cannot be cut into windows");
    options_.packing = Packing::off;
  }
  cut_pieces();
  if (options_.labelled_only) leave_out_unlabelled();
  arrange();
}

void Batches::cut_pieces() {
  const int64_t context = options_.context;
  for (int64_t d = 0; d < corpus_.documents(); ++d) {
    const int64_t begin = corpus_.starts()[static_cast<size_t>(d)], length = corpus_.length(d);
    long_records_ += length > context;
    if (options_.random_windows) continue;
    if (options_.packing == Packing::off) {
      pieces_.push_back({begin, static_cast<int32_t>(std::min(length, context)), false});
      dropped_tokens_ += std::max<int64_t>(0, length - context);
      continue;
    }
    for (int64_t at = 0; at < length; at += context) {
      const int64_t left = length - at;
      // A last piece of one token would have neither anything to predict nor anything before it:
      // the window ahead of it already has that token as its last label.
      if (at > 0 && left == 1) break;
      pieces_.push_back(
          {begin + at, static_cast<int32_t>(std::min(left, context)), left > context});
    }
  }
  if (options_.random_windows) {
    const int64_t tokens = corpus_.tokens();
    rows_per_epoch_ = std::max<int64_t>(1, (tokens + context - 1) / context);
    tokens_per_epoch_ = rows_per_epoch_ * std::min(tokens, context);
  }
}

void Batches::leave_out_unlabelled() {
  const auto has_label = [&](const Piece& piece) {
    return corpus_.has_label(piece.begin + 1, piece.begin + piece.length + (piece.goes_on ? 1 : 0));
  };
  const auto starts = corpus_.starts();
  if (options_.random_windows) {
    int64_t labelled = 0;
    for (int64_t d = 0; d < corpus_.documents(); ++d)
      labelled +=
          corpus_.has_label(starts[static_cast<size_t>(d)] + 1, starts[static_cast<size_t>(d) + 1]);
    unlabelled_records_ = corpus_.documents() - labelled;
    if (labelled == 0) refuse_unlabelled();
    return;
  }
  std::vector<Piece> kept;
  kept.reserve(pieces_.size());
  if (corpus_.is_paired()) {
    for (size_t i = 0; i + 1 < pieces_.size(); i += 2) {
      // Without labels an answer has no log-probability to compare with the other's.
      if (has_label(pieces_[i]) && has_label(pieces_[i + 1]))
        kept.insert(kept.end(), {pieces_[i], pieces_[i + 1]});
      else
        ++unlabelled_records_;
    }
  } else {
    unlabelled_records_ = corpus_.documents();
    int64_t last_begin = -1;  // of the last record that was kept
    for (const Piece& piece : pieces_) {
      if (!has_label(piece)) continue;
      kept.push_back(piece);
      const auto after = std::upper_bound(starts.begin(), starts.end(), piece.begin);
      unlabelled_records_ -= *(after - 1) != last_begin;
      last_begin = *(after - 1);
    }
  }
  if (kept.empty()) refuse_unlabelled();
  pieces_ = std::move(kept);
}

int64_t Batches::row_of_a_label(int64_t document) const {
  const int64_t begin = corpus_.starts()[static_cast<size_t>(document)];
  for (int64_t length = 2; length <= corpus_.length(document); ++length)
    if (corpus_.has_label(begin + length - 1, begin + length)) return length;
  return std::numeric_limits<int64_t>::max();
}

void Batches::refuse_unlabelled() const {
  const bool pairs = corpus_.is_paired();
  if (corpus_.counts().label_tokens == 0)
    throw Error(
        fmt::format("{}: none of {} records has a label, so there is nothing to learn; a record "
                    "needs two tokens at least, and one that is not masked",
                    options_.data, corpus_.documents()));
  // The shortest row that keeps a label, or of a pair one of each answer.
  const int64_t group = pairs ? 2 : 1;
  int64_t shortest = std::numeric_limits<int64_t>::max();
  for (int64_t first = 0; first + group <= corpus_.documents(); first += group) {
    int64_t needed = 0;
    for (int64_t d = first; d < first + group; ++d) needed = std::max(needed, row_of_a_label(d));
    shortest = std::min(shortest, needed);
  }
  throw AdvisedError(
      fmt::format("{}: none of {} {} has a label within ‹context {}›, so there is nothing to "
                  "learn: every prompt fills its row, and the answer is cut off; give ‹context› "
                  "{} or more{}",
                  options_.data, corpus_.documents() / (pairs ? 2 : 1), pairs ? "pairs" : "records",
                  options_.context, shortest, pairs ? "" : ", or ‹pack on›"));
}

void Batches::arrange() {
  if (options_.random_windows) return;
  std::vector<Piece> order = pieces_;
  const int64_t group = corpus_.is_paired() ? 2 : 1;
  if (options_.shuffle) {
    RandomStream random(options_.seed, kShuffleStream + epoch_);
    for (uint64_t i = order.size() / static_cast<uint64_t>(group); i > 1; --i) {
      const uint64_t j = random.below(i);
      for (int64_t k = 0; k < group; ++k) {
        std::swap(order[(i - 1) * static_cast<uint64_t>(group) + static_cast<uint64_t>(k)],
                  order[j * static_cast<uint64_t>(group) + static_cast<uint64_t>(k)]);
      }
    }
  }
  row_starts_.assign(1, 0);
  arranged_.clear();
  switch (options_.packing) {
    case Packing::off:
      arranged_ = std::move(order);
      for (int64_t i = group; i <= static_cast<int64_t>(arranged_.size()); i += group) {
        row_starts_.push_back(i);
      }
      break;
    case Packing::on:
      pack_whole(order);
      break;
    case Packing::fill:
      pack_exact(order);
      break;
  }
  rows_per_epoch_ = static_cast<int64_t>(row_starts_.size()) - 1;
  tokens_per_epoch_ = 0;
  for (const Piece& piece : arranged_) tokens_per_epoch_ += piece.length;
}

/// Best fit among the open rows; when nothing fits, the fullest row is done.
void Batches::pack_whole(const std::vector<Piece>& pieces) {
  struct Row {
    int64_t used = 0;
    std::vector<Piece> pieces;
  };
  std::vector<Row> open;
  auto finish = [&](size_t r) {
    arranged_.insert(arranged_.end(), open[r].pieces.begin(), open[r].pieces.end());
    row_starts_.push_back(static_cast<int64_t>(arranged_.size()));
    open.erase(open.begin() + static_cast<int64_t>(r));
  };
  // In file order, rows are filled one after another.
  const size_t limit = options_.shuffle ? kOpenRows : 1;
  for (const Piece& piece : pieces) {
    size_t best = open.size(), fullest = 0;
    for (size_t r = 0; r < open.size(); ++r) {
      if (open[r].used > open[fullest].used) fullest = r;
      if (open[r].used + piece.length > options_.context) continue;
      if (best == open.size() || open[r].used > open[best].used) best = r;
    }
    if (best == open.size()) {
      if (open.size() == limit) finish(fullest);
      best = open.size();
      open.emplace_back();
    }
    open[best].used += piece.length;
    open[best].pieces.push_back(piece);
    if (open[best].used == options_.context) finish(best);
  }
  while (!open.empty()) finish(0);
}

void Batches::pack_exact(const std::vector<Piece>& pieces) {
  int64_t used = 0;
  for (Piece piece : pieces) {
    while (piece.length > 0) {
      Piece head = piece;
      head.length = static_cast<int32_t>(std::min<int64_t>(piece.length, options_.context - used));
      if (head.length < piece.length) head.goes_on = true;
      arranged_.push_back(head);
      piece.begin += head.length;
      piece.length -= head.length;
      used += head.length;
      if (used == options_.context) {
        row_starts_.push_back(static_cast<int64_t>(arranged_.size()));
        used = 0;
      }
      // As in cut_pieces(): a last token alone is the last label of the row that was just cut.
      if (piece.length == 1 && !piece.goes_on) break;
    }
  }
  if (used > 0) row_starts_.push_back(static_cast<int64_t>(arranged_.size()));
}

bool Batches::mostly_full() const {
  if (options_.random_windows) return corpus_.tokens() > options_.context;
  int64_t full = 0;
  for (int64_t row = 0; row < rows_per_epoch_; ++row) {
    const auto at = static_cast<size_t>(row);
    const int64_t begin = row_starts_[at];
    full += row_starts_[at + 1] == begin + 1 &&
            arranged_[static_cast<size_t>(begin)].length == options_.context;
  }
  return 2 * full >= rows_per_epoch_;
}

void Batches::append(const Piece& piece, HostBatch& batch) const {
  if (batch.sequence_starts.empty()) batch.sequence_starts.push_back(0);
  for (int32_t i = 0; i < piece.length; ++i) {
    const int64_t at = piece.begin + i;
    batch.tokens.push_back(corpus_.token(at));
    batch.positions.push_back(i);
    const bool has_next = i + 1 < piece.length || piece.goes_on;
    batch.labels.push_back(has_next ? corpus_.label(at + 1) : ops::kIgnoredLabel);
  }
  batch.sequence_starts.push_back(static_cast<int32_t>(batch.tokens.size()));
}

void Batches::append_random_window(HostBatch& batch) const {
  const int64_t tokens = corpus_.tokens();
  const int64_t length = std::min(options_.context, tokens - 1);
  RandomStream random(options_.seed, kWindowStream + epoch_, static_cast<uint64_t>(row_) * 4);
  const auto begin = static_cast<int64_t>(random.below(static_cast<uint64_t>(tokens - length)));
  const auto starts = corpus_.starts();
  size_t d =
      static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin()) -
      1;
  for (int64_t at = begin; at < begin + length; ++d) {
    const int64_t end = std::min(begin + length, starts[d + 1]);
    append({at, static_cast<int32_t>(end - at), end < starts[d + 1]}, batch);
    at = end;
  }
}

std::optional<HostBatch> Batches::next(int64_t rows) {
  auto batch = next_of_any_kind(rows);
  // Rows that are cut anywhere can lie within a prompt. There is a label somewhere, so this ends.
  while (batch && options_.labelled_only && batch->label_count() == 0)
    batch = next_of_any_kind(rows);
  return batch;
}

std::optional<HostBatch> Batches::next_of_any_kind(int64_t rows) {
  CHECK(rows > 0);
  HostBatch batch;
  for (int64_t i = 0; i < rows; ++i) {
    if (row_ == rows_per_epoch_) {
      if (!options_.endless) break;
      ++epoch_;
      row_ = 0;
      arrange();
    }
    if (options_.random_windows) {
      append_random_window(batch);
    } else {
      const auto r = static_cast<size_t>(row_);
      for (int64_t p = row_starts_[r]; p < row_starts_[r + 1]; ++p) {
        append(arranged_[static_cast<size_t>(p)], batch);
      }
    }
    ++row_;
  }
  if (batch.tokens.empty()) return std::nullopt;
  return batch;
}

void Batches::rewind() {
  const bool other_epoch = epoch_ != 0;
  epoch_ = 0;
  row_ = 0;
  if (other_epoch) arrange();
}

std::string Batches::position() const {
  return nlohmann::ordered_json{{"seed", static_cast<int64_t>(options_.seed)},
                                {"epoch", epoch_},
                                {"row", row_},
                                {"documents", corpus_.documents()},
                                {"tokens", corpus_.tokens()}}
      .dump();
}

void Batches::restore(const Json& position) {
  auto same = [&](std::string_view key, uint64_t now) {
    const int64_t saved = position.at(key).as_int();
    if (static_cast<uint64_t>(saved) != now) {
      throw Error(fmt::format("{}: {} is {} there and {} now: resume with the same data and seed",
                              position.where(), key, saved, now));
    }
  };
  same("seed", options_.seed);
  same("documents", static_cast<uint64_t>(corpus_.documents()));
  same("tokens", static_cast<uint64_t>(corpus_.tokens()));
  const int64_t epoch = position.at("epoch").as_int(), row = position.at("row").as_int();
  if (epoch < 0 || row < 0) {
    throw Error(fmt::format("{}: epoch and row must not be negative", position.where()));
  }
  epoch_ = static_cast<uint64_t>(epoch);
  arrange();
  if (row > rows_per_epoch_) {
    throw AdvisedError(fmt::format("{}: row {} of {}: resume with the same ‹context› and ‹pack›",
                                   position.where(), row, rows_per_epoch_));
  }
  row_ = row;
}

}  // namespace mixtral
