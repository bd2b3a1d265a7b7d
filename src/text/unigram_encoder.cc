#include "text/unigram_encoder.h"

#include <algorithm>
#include <limits>

namespace mixtral {
namespace {

using PieceType = SentencePieceModel::PieceType;

constexpr float kUnknownPenalty = 10.0f;

}  // namespace

UnigramEncoder::UnigramEncoder(const SentencePieceModel& model) : model_(model) {
  // The least positive float, not the least float, is where SentencePiece starts its maximum.
  float lowest = std::numeric_limits<float>::max(), highest = std::numeric_limits<float>::min();
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const auto& piece = model.pieces[i];
    if (piece.type == PieceType::normal) {
      lowest = std::min(lowest, piece.score);
      highest = std::max(highest, piece.score);
    }
    if (piece.type == PieceType::normal || piece.type == PieceType::user_defined) {
      pieces_.insert(piece.text, static_cast<int32_t>(i));
    }
  }
  unknown_score_ = lowest - kUnknownPenalty;
  highest_score_ = highest;
}

void UnigramEncoder::encode(std::string_view text, TokenSink& sink) const {
  // The best split of the text up to each position: its score and its last piece.
  struct Best {
    float score = 0;
    int32_t id = -1;  // -1: an unknown character
    int64_t from = -1;
  };
  std::vector<Best> best(text.size() + 1);
  const auto offer = [&](size_t from, size_t to, double score, int32_t id) {
    Best& target = best[to];
    score += best[from].score;
    if (target.from < 0 || score > target.score) {
      target = {static_cast<float>(score), id, static_cast<int64_t>(from)};
    }
  };
  for (size_t at = 0; at < text.size();) {
    const size_t character = character_bytes(text.substr(at));
    bool covered = false;
    pieces_.for_each_prefix(text.substr(at), [&](size_t length, int32_t id) {
      const auto& piece = model_.pieces[static_cast<size_t>(id)];
      // A bonus by length makes user-defined pieces win.
      const double score =
          piece.type == PieceType::user_defined
              ? static_cast<double>(static_cast<float>(length) * highest_score_) - 0.1
              : double{piece.score};
      offer(at, at + length, score, id);
      covered = covered || length == character;
    });
    if (!covered) offer(at, at + character, double{unknown_score_}, -1);
    at += character;
  }
  std::vector<size_t> ends;
  for (size_t end = text.size(); end > 0; end = static_cast<size_t>(best[end].from)) {
    ends.push_back(end);
  }
  std::reverse(ends.begin(), ends.end());
  for (const size_t end : ends) {
    const auto from = static_cast<size_t>(best[end].from);
    if (best[end].id >= 0) {
      sink.known(best[end].id);
    } else {
      sink.unknown(text.substr(from, end - from));
    }
  }
}

}  // namespace mixtral
