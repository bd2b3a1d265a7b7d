#include "text/bpe_encoder.h"

#include <algorithm>
#include <utility>

#include "text/normalizer.h"

namespace mixtral {
namespace {

using PieceType = SentencePieceModel::PieceType;

constexpr uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

size_t slot_of(uint64_t key, size_t mask) {
  // Both halves of the key matter: multiply, then fold the well-mixed high bits down.
  key *= 0x9E3779B97F4A7C15u;
  return static_cast<size_t>(key ^ key >> 29) & mask;
}

bool is_space_symbol(std::string_view text, size_t at) {
  return text.substr(at, kSpaceSymbol.size()) == kSpaceSymbol;
}

}  // namespace

BpeEncoder::BpeEncoder(const SentencePieceModel& model, const ByteTrie& user_defined)
    : user_defined_(user_defined) {
  // User-defined pieces are found before merging starts, and merging cannot form one: the symbol
  // that began it would have been the start of a match. So they are no symbols here.
  std::vector<float> score;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const auto& piece = model.pieces[i];
    if (piece.type != PieceType::normal && piece.type != PieceType::unused) continue;
    symbols_.insert(piece.text);
    token_of_.push_back(static_cast<int32_t>(i));
    score.push_back(piece.score);
    unused_.push_back(piece.type == PieceType::unused);
    any_unused_ = any_unused_ || unused_.back();
    longest_ = std::max(longest_, piece.text.size());
  }
  const int32_t pieces = symbols_.size();

  std::vector<float> levels = score;
  std::sort(levels.begin(), levels.end(), std::greater<>());
  levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
  for (const float s : score) {
    const auto level = std::lower_bound(levels.begin(), levels.end(), s, std::greater<>());
    rank_.push_back(static_cast<uint32_t>(level - levels.begin()));
  }

  for (int32_t i = 0; i < pieces; ++i) {
    const std::string text(symbols_.text(i));
    for (size_t at = 0; at < text.size();) {
      const size_t length = character_bytes(std::string_view(text).substr(at));
      symbols_.insert(std::string_view(text).substr(at, length));
      if (at > 0) {
        const auto before = static_cast<unsigned char>(text[at - 1]);
        if (is_space_symbol(text, at)) {
          space_bridges_.set(before);
        } else {
          bridges_.set(size_t{before} * 256 + static_cast<unsigned char>(text[at]));
        }
      }
      at += length;
    }
  }
  token_of_.resize(static_cast<size_t>(symbols_.size()), -1);
  unused_.resize(static_cast<size_t>(symbols_.size()), false);
  for (size_t c = 0; c < 128; ++c) {
    const char byte = static_cast<char>(c);
    ascii_[c] = symbols_.find({&byte, 1});
  }

  for (int32_t i = 0; i < pieces; ++i) {
    const std::string_view text = symbols_.text(i);
    for (size_t at = character_bytes(text); at < text.size();
         at += character_bytes(text.substr(at))) {
      const int32_t left = symbols_.find(text.substr(0, at));
      if (left < 0) continue;
      const int32_t right = symbols_.find(text.substr(at));
      if (right >= 0) add_merge(left, right, i);
    }
  }

  whole_.resize(static_cast<size_t>(symbols_.size()), false);
  Scratch scratch;
  for (int32_t i = 0; i < pieces && !any_unused_; ++i) {
    split_characters(symbols_.text(i), scratch);
    merge(scratch);
    whole_[static_cast<size_t>(i)] = scratch.symbols[0].next < 0 && scratch.symbols[0].id == i;
  }
}

void BpeEncoder::add_merge(int32_t left, int32_t right, int32_t merged) {
  if (2 * (merge_count_ + 1) > merges_.size()) {
    const auto old =
        std::exchange(merges_, std::vector<Merge>(merges_.empty() ? 64 : 2 * merges_.size()));
    merge_count_ = 0;
    for (const Merge& m : old) {
      if (m.key == kNoKey) continue;
      add_merge(static_cast<int32_t>(m.key >> 32), static_cast<int32_t>(m.key), m.merged);
    }
  }
  const uint64_t key = pair_key(left, right);
  const size_t mask = merges_.size() - 1;
  size_t i = slot_of(key, mask);
  while (merges_[i].key != kNoKey) i = (i + 1) & mask;
  merges_[i] = {key, merged};
  ++merge_count_;
}

int32_t BpeEncoder::find_merge(int32_t left, int32_t right) const {
  if (merges_.empty()) return -1;
  const uint64_t key = pair_key(left, right);
  const size_t mask = merges_.size() - 1;
  for (size_t i = slot_of(key, mask); merges_[i].key != kNoKey; i = (i + 1) & mask) {
    if (merges_[i].key == key) return merges_[i].merged;
  }
  return -1;
}

/// Whether some piece could join the characters on both sides of `at`, 0 < at < text.size(). May
/// say yes too often (it looks at the adjacent bytes only), never no wrongly.
bool BpeEncoder::bridged(std::string_view text, size_t at) const {
  const auto before = static_cast<unsigned char>(text[at - 1]);
  if (is_space_symbol(text, at)) return space_bridges_[before];
  return bridges_[size_t{before} * 256 + static_cast<unsigned char>(text[at])];
}

void BpeEncoder::encode(std::string_view text, TokenSink& sink) const {
  Scratch scratch;
  if (any_unused_) {
    scratch.split_of.assign(static_cast<size_t>(symbols_.size()), {-1, -1});
    encode_part(text, scratch, sink);
    return;
  }
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    if (!user_defined_.empty()) {
      if (const auto match = user_defined_.longest_match(text.substr(at)); match.length > 0) {
        if (at > begin) encode_part(text.substr(begin, at - begin), scratch, sink);
        sink.known(match.value);
        begin = at += match.length;
        continue;
      }
    }
    if (at > begin && !bridged(text, at)) {
      encode_part(text.substr(begin, at - begin), scratch, sink);
      begin = at;
    }
    at += static_cast<unsigned char>(text[at]) < 0x80 ? 1 : character_bytes(text.substr(at));
  }
  if (begin < text.size()) encode_part(text.substr(begin), scratch, sink);
}

void BpeEncoder::encode_part(std::string_view part, Scratch& scratch, TokenSink& sink) const {
  // Positions are 32-bit. Only a text without a single cut in a gigabyte meets this limit.
  constexpr size_t most = size_t{1} << 30;
  for (; part.size() > most; part.remove_prefix(most)) {
    encode_part(part.substr(0, most), scratch, sink);
  }
  if (part.empty()) return;
  if (part.size() <= longest_ && !any_unused_) {
    const int32_t symbol = symbols_.find(part);
    if (symbol >= 0 && whole_[static_cast<size_t>(symbol)]) {
      sink.known(token_of_[static_cast<size_t>(symbol)]);
      return;
    }
  }
  split_characters(part, scratch);
  merge(scratch);
  for (int32_t i = 0; i >= 0; i = scratch.symbols[static_cast<size_t>(i)].next) {
    const Symbol& symbol = scratch.symbols[static_cast<size_t>(i)];
    if (symbol.id >= 0) {
      emit(symbol.id, scratch, sink);
    } else if (symbol.token >= 0) {
      sink.known(symbol.token);
    } else {
      sink.unknown(part.substr(symbol.begin, symbol.length));
    }
  }
}

void BpeEncoder::split_characters(std::string_view part, Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  symbols.clear();
  for (size_t at = 0; at < part.size();) {
    Symbol symbol{-1,
                  -1,
                  static_cast<uint32_t>(at),
                  1,
                  static_cast<int32_t>(symbols.size()) - 1,
                  static_cast<int32_t>(symbols.size()) + 1};
    // Cut parts hold no user-defined pieces; a whole text may.
    const auto match =
        any_unused_ ? user_defined_.longest_match(part.substr(at)) : ByteTrie::Match{};
    const auto byte = static_cast<unsigned char>(part[at]);
    if (match.length > 0) {
      symbol.token = match.value;
      symbol.length = static_cast<uint32_t>(match.length);
    } else if (byte < 0x80) {
      symbol.id = ascii_[byte];
    } else {
      symbol.length = static_cast<uint32_t>(character_bytes(part.substr(at)));
      symbol.id = symbols_.find(part.substr(at, symbol.length));
    }
    at += symbol.length;
    symbols.push_back(symbol);
  }
  symbols.back().next = -1;
}

/// Puts the pair on the heap if the two symbols join.
void BpeEncoder::consider(int32_t left, int32_t right, Scratch& scratch) const {
  if (left < 0 || right < 0) return;
  const Symbol &l = scratch.symbols[static_cast<size_t>(left)],
               &r = scratch.symbols[static_cast<size_t>(right)];
  if (l.id < 0 || r.id < 0) return;
  const int32_t merged = find_merge(l.id, r.id);
  if (merged < 0) return;
  const uint64_t order =
      uint64_t{rank_[static_cast<size_t>(merged)]} << 32 | static_cast<uint32_t>(left);
  scratch.heap.push_back({order, right, merged});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(),
                 [](const Candidate& a, const Candidate& b) { return a.order > b.order; });
  if (unused_[static_cast<size_t>(merged)]) {
    scratch.split_of[static_cast<size_t>(merged)] = {l.id, r.id};
  }
}

void BpeEncoder::merge(Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  scratch.heap.clear();
  for (size_t i = 1; i < symbols.size(); ++i) {
    consider(static_cast<int32_t>(i) - 1, static_cast<int32_t>(i), scratch);
  }
  while (!scratch.heap.empty()) {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(),
                  [](const Candidate& a, const Candidate& b) { return a.order > b.order; });
    const Candidate best = scratch.heap.back();
    scratch.heap.pop_back();
    const auto left = static_cast<int32_t>(best.order & 0xFFFFFFFFu);
    Symbol &l = symbols[static_cast<size_t>(left)], &r = symbols[static_cast<size_t>(best.right)];
    // Stale unless both still are what they were: a symbol's text only ever grows, or is taken
    // over.
    if (l.length == 0 || r.length == 0 ||
        l.length + r.length != symbols_.text(best.merged).size()) {
      continue;
    }
    l.id = best.merged;
    l.length += r.length;
    l.next = r.next;
    if (r.next >= 0) symbols[static_cast<size_t>(r.next)].previous = left;
    r.length = 0;
    consider(l.previous, left, scratch);
    consider(left, l.next, scratch);
  }
}

void BpeEncoder::emit(int32_t symbol, const Scratch& scratch, TokenSink& sink) const {
  const auto s = static_cast<size_t>(symbol);
  if (unused_[s] && scratch.split_of[s].first >= 0) {
    emit(scratch.split_of[s].first, scratch, sink);
    emit(scratch.split_of[s].second, scratch, sink);
  } else if (token_of_[s] >= 0) {
    sink.known(token_of_[s]);
  } else {
    sink.unknown(symbols_.text(symbol));
  }
}

}  // namespace mixtral
