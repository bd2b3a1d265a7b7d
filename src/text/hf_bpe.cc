#include "text/hf_bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "text/sentencepiece_model.h"
#include "text/unicode.h"

namespace mixtral {
namespace {

bool flag(const Json& json, const char* key) {
  const Json* value = json.find(key);
  return value != nullptr && !value->is_null() && value->as_bool();
}

void refuse_text(const Json& json, const char* key) {
  const Json* value = json.find(key);
  if (value == nullptr || value->is_null() || value->as_string().empty()) return;
  throw Error(fmt::format("{}: is \"{}\", which is not supported; expected null", value->where(),
                          printable(value->as_string())));
}

uint64_t key_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

size_t slot_of_merge(uint64_t key, size_t slots) {
  return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> 20) & (slots - 1);
}

}  // namespace

HfBpe::HfBpe(const Json& json) {
  if (const Json* type = json.find("type"); type != nullptr && type->as_string() != "BPE") {
    throw Error(fmt::format("{}: the model is {}, which is not supported; expected BPE",
                            type->where(), printable(type->as_string())));
  }
  if (const Json* dropout = json.find("dropout");
      dropout != nullptr && !dropout->is_null() && dropout->as_double() != 0) {
    throw Error(fmt::format("{}: is {}: pieces would be drawn by chance; expected null",
                            dropout->where(), dropout->as_double()));
  }
  refuse_text(json, "continuing_subword_prefix");
  refuse_text(json, "end_of_word_suffix");
  byte_fallback_ = flag(json, "byte_fallback");
  fuse_unknown_ = flag(json, "fuse_unk");
  ignore_merges_ = flag(json, "ignore_merges");
  read_vocabulary(json.at("vocab"));
  if (const Json* unknown = json.find("unk_token"); unknown != nullptr && !unknown->is_null()) {
    unknown_ = find(unknown->as_string());
    if (unknown_ < 0) {
      throw Error(fmt::format("{}: \"{}\" is not in the vocabulary", unknown->where(),
                              printable(unknown->as_string())));
    }
  }
  for (int32_t byte = 0; byte < 256; ++byte)
    byte_ids_[static_cast<size_t>(byte)] = find(fmt::format("<0x{:02X}>", byte));
  read_merges(json.at("merges"));
}

void HfBpe::read_vocabulary(const Json& json) {
  const Json::Object& members = json.members();
  if (members.empty()) throw Error(fmt::format("{}: there are no pieces", json.where()));
  if (members.size() > kMaxPieces) {
    throw Error(fmt::format("{}: {} pieces; at most {} are accepted", json.where(), members.size(),
                            kMaxPieces));
  }
  int64_t highest = 0;
  for (const auto& [piece, value] : members) {
    const int64_t id = value.as_int();
    if (id < 0 || id >= static_cast<int64_t>(kMaxPieces)) {
      throw Error(fmt::format("{}: the id {} of the piece \"{}\" is out of range; expected 0 to {}",
                              json.where(), id, printable(piece), kMaxPieces - 1));
    }
    highest = std::max(highest, id);
  }
  pieces_.resize(static_cast<size_t>(highest) + 1);
  std::vector<bool> taken(pieces_.size());
  for (const auto& [piece, value] : members) {
    const auto id = static_cast<size_t>(value.as_int());
    if (taken[id]) {
      throw Error(fmt::format("{}: the id {} is given twice, to \"{}\" and \"{}\"", json.where(),
                              id, printable(pieces_[id]), printable(piece)));
    }
    taken[id] = true;
    pieces_[id] = piece;
    table_.insert(piece);
    ids_.push_back(static_cast<int32_t>(id));
  }
  forbidden_.resize(pieces_.size());
}

int32_t HfBpe::find(std::string_view piece) const {
  const int32_t place = table_.find(piece);
  return place < 0 ? -1 : ids_[static_cast<size_t>(place)];
}

void HfBpe::read_merges(const Json& json) {
  const Json::Array& items = json.items();
  if (items.size() > 4 * kMaxPieces) {
    throw Error(fmt::format("{}: {} merges; at most {} are accepted", json.where(), items.size(),
                            4 * kMaxPieces));
  }
  merges_.resize(std::bit_ceil(2 * items.size() + 2));
  uint32_t rank = 0;
  for (const Json& item : items) {
    if (item.is_array()) {
      if (item.items().size() != 2) {
        throw Error(fmt::format("{}: the merge has {} pieces; expected 2", item.where(),
                                item.items().size()));
      }
      read_merge(item.items()[0].as_string(), item.items()[1].as_string(), rank++, item);
      continue;
    }
    const std::string_view text = item.as_string();
    if (rank == 0 && text.starts_with("#version")) continue;
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
      throw Error(fmt::format("{}: the merge \"{}\" is not two pieces with a space between",
                              item.where(), printable(text)));
    }
    read_merge(text.substr(0, space), text.substr(space + 1), rank++, item);
  }
}

void HfBpe::read_merge(std::string_view left, std::string_view right, uint32_t rank,
                       const Json& json) {
  const auto require = [&](std::string_view piece, std::string_view what) {
    const int32_t id = find(piece);
    if (id >= 0) return id;
    throw Error(fmt::format("{}: the merge \"{} {}\" {} \"{}\", which is not in the vocabulary",
                            json.where(), printable(left), printable(right), what,
                            printable(piece)));
  };
  const int32_t left_id = require(left, "joins"), right_id = require(right, "joins");
  add_merge(left_id, right_id, rank, require(std::string(left) + std::string(right), "makes"));
}

void HfBpe::add_merge(int32_t left, int32_t right, uint32_t rank, int32_t merged) {
  const uint64_t key = key_of(left, right);
  size_t slot = slot_of_merge(key, merges_.size());
  while (merges_[slot].key != kNoKey && merges_[slot].key != key)
    slot = (slot + 1) & (merges_.size() - 1);
  merge_count_ += merges_[slot].key == kNoKey ? 1 : 0;
  merges_[slot] = {key, rank, merged};  // of a merge that is listed twice the later one holds
}

const HfBpe::Merge* HfBpe::find_merge(int32_t left, int32_t right) const {
  const uint64_t key = key_of(left, right);
  for (size_t slot = slot_of_merge(key, merges_.size()); merges_[slot].key != kNoKey;
       slot = (slot + 1) & (merges_.size() - 1))
    if (merges_[slot].key == key) return &merges_[slot];
  return nullptr;
}

void HfBpe::encode(std::string_view word, std::vector<int32_t>& ids) const {
  // Positions are 32-bit. Only a word of a gigabyte meets this limit.
  constexpr size_t most = size_t{1} << 30;
  for (; word.size() > most; word.remove_prefix(most)) encode(word.substr(0, most), ids);
  if (ignore_merges_) {
    if (const int32_t id = find(word); id >= 0 && !forbidden_[static_cast<size_t>(id)]) {
      ids.push_back(id);
      return;
    }
  }
  std::vector<Symbol> symbols = characters(word);
  if (symbols.empty()) return;
  merge(symbols);
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next)
    ids.push_back(symbols[static_cast<size_t>(i)].id);
}

/// The characters of a word as pieces; others as bytes, or as the unknown piece. A run of unknown
/// characters is one where the model says so.
std::vector<HfBpe::Symbol> HfBpe::characters(std::string_view word) const {
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  bool unknown = false;  // whether an unknown piece waits to be added
  const auto add = [&](int32_t id) { symbols.push_back({id, 0, 0, true}); };
  const auto add_unknown = [&] {
    if (unknown) add(unknown_);
    unknown = false;
  };
  while (!word.empty()) {
    const std::string_view character = word.substr(0, first_character(word).length);
    word.remove_prefix(character.size());
    if (const int32_t id = find(character); id >= 0) {
      add_unknown();
      add(id);
      continue;
    }
    if (byte_fallback_ && std::ranges::all_of(character, [&](char c) {
          return byte_ids_[static_cast<unsigned char>(c)] >= 0;
        })) {
      for (const char c : character) add(byte_ids_[static_cast<unsigned char>(c)]);
      continue;
    }
    if (unknown_ < 0) continue;  // such a model leaves the character out
    if (unknown && !fuse_unknown_) add(unknown_);
    unknown = true;
  }
  add_unknown();
  for (size_t i = 0; i < symbols.size(); ++i) {
    symbols[i].previous = static_cast<int32_t>(i) - 1;
    symbols[i].next = i + 1 < symbols.size() ? static_cast<int32_t>(i) + 1 : -1;
  }
  return symbols;
}

void HfBpe::consider(const std::vector<Symbol>& symbols, int32_t left,
                     std::vector<Candidate>& heap) const {
  if (left < 0) return;
  const Symbol& symbol = symbols[static_cast<size_t>(left)];
  if (symbol.next < 0) return;
  const Merge* merge = find_merge(symbol.id, symbols[static_cast<size_t>(symbol.next)].id);
  if (merge == nullptr) return;
  heap.push_back({uint64_t{merge->rank} << 32 | static_cast<uint32_t>(left), merge->merged});
  std::push_heap(heap.begin(), heap.end(),
                 [](const Candidate& a, const Candidate& b) { return a.order > b.order; });
}

void HfBpe::merge(std::vector<Symbol>& symbols) const {
  std::vector<Candidate> heap;
  for (size_t i = 0; i + 1 < symbols.size(); ++i) consider(symbols, static_cast<int32_t>(i), heap);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(),
                  [](const Candidate& a, const Candidate& b) { return a.order > b.order; });
    const Candidate best = heap.back();
    heap.pop_back();
    const auto at = static_cast<int32_t>(best.order & 0xFFFFFFFFu);
    Symbol& left = symbols[static_cast<size_t>(at)];
    if (!left.alive || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    const Merge* merge = find_merge(left.id, right.id);
    if (merge == nullptr || merge->merged != best.merged) continue;  // one of them has changed
    left.id = best.merged;
    right.alive = false;
    left.next = right.next;
    if (right.next >= 0) symbols[static_cast<size_t>(right.next)].previous = at;
    consider(symbols, left.previous, heap);
    consider(symbols, at, heap);
  }
}

}  // namespace mixtral
