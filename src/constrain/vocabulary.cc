#include "constrain/vocabulary.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "constrain/char_set.h"
#include "text/unicode.h"

namespace mixtral::constrain {
namespace {

// The number of plain characters that `text` consists of; -1 where there is anything else.
int count_plain(std::string_view text) {
  int count = 0;
  while (!text.empty()) {
    const Character c = first_character(text);
    if (c.code < 0 || !plain_chars().contains(c.code)) return -1;
    text.remove_prefix(c.length);
    ++count;
  }
  return count;
}

bool at_character_end(std::string_view text) {
  while (!text.empty()) {
    const Character c = first_character(text);
    if (c.code < 0) return false;
    text.remove_prefix(c.length);
  }
  return true;
}

// `ids` are in the order of their tokens' bytes.
Vocabulary::Trie make_trie(const std::vector<std::string>& tokens, const std::vector<int32_t>& ids,
                           bool plain) {
  using Node = Vocabulary::Node;
  Vocabulary::Trie trie;
  trie.nodes.push_back(Node{.chars = 255});
  std::vector<uint32_t> path{0};  // nodes from the root to the last token's end
  std::string at;
  const auto leave = [&](size_t depth) {
    for (; path.size() > depth + 1; path.pop_back())
      trie.nodes[path.back()].end = static_cast<uint32_t>(trie.nodes.size());
    at.resize(depth);
  };
  for (const int32_t id : ids) {
    const std::string& bytes = tokens[static_cast<size_t>(id)];
    const auto shared = std::ranges::mismatch(at, bytes).in1 - at.begin();
    leave(static_cast<size_t>(shared));
    while (at.size() < bytes.size()) {
      at += bytes[at.size()];
      path.push_back(static_cast<uint32_t>(trie.nodes.size()));
      trie.nodes.push_back({.byte = static_cast<uint8_t>(at.back()),
                            .depth = static_cast<uint8_t>(at.size()),
                            .chars = static_cast<uint8_t>(plain && at_character_end(at) ? 0 : 255),
                            .first = static_cast<uint32_t>(trie.tokens.size())});
    }
    Node& node = trie.nodes[path.back()];
    CHECK(node.own < 0xFFFF, "65535 tokens of the same bytes");
    ++node.own;
    trie.tokens.push_back(id);
    if (!plain) continue;
    for (size_t depth = 1; depth < path.size(); ++depth) {
      Node& above = trie.nodes[path[depth]];
      if (above.chars == 255) continue;
      const int below = count_plain(std::string_view(bytes).substr(above.depth));
      above.chars = std::max(above.chars, static_cast<uint8_t>(below));
    }
  }
  leave(0);
  trie.nodes[0].end = static_cast<uint32_t>(trie.nodes.size());
  trie.nodes.push_back({.chars = 255, .first = static_cast<uint32_t>(trie.tokens.size())});
  return trie;
}

}  // namespace

Vocabulary::Vocabulary(const Tokenizer& tokenizer, std::span<const int64_t> stops,
                       std::span<const std::string> spelled)
    : tokens_(static_cast<size_t>(tokenizer.vocab_size())), stops_(stops.begin(), stops.end()) {
  for (int32_t id = 0; id < size(); ++id)
    if (!tokenizer.is_control(id) && id != tokenizer.unk_id())
      tokens_[static_cast<size_t>(id)] = tokenizer.piece(id);
  for (const std::string& name : spelled)
    if (const int32_t id = tokenizer.find(name); id >= 0) tokens_[static_cast<size_t>(id)] = name;
  build();
}

Vocabulary::Vocabulary(std::vector<std::string> tokens, std::span<const int64_t> stops)
    : tokens_(std::move(tokens)), stops_(stops.begin(), stops.end()) {
  build();
}

bool Vocabulary::is_stop(int32_t id) const { return std::ranges::count(stops_, id) > 0; }

void Vocabulary::build() {
  std::erase_if(stops_, [&](int32_t id) { return id < 0 || id >= size(); });
  for (const int32_t id : stops_) tokens_[static_cast<size_t>(id)].clear();
  std::vector<int32_t> plain, rest;
  plain_mask_.resize((static_cast<size_t>(size()) + 31) / 32);
  for (int32_t id = 0; id < size(); ++id) {
    const std::string& token = bytes(id);
    if (token.empty() || token.size() > kLongestToken) continue;
    const int chars = count_plain(token);
    const bool is_plain = chars >= 0 && chars <= kMostPlainChars;
    (is_plain ? plain : rest).push_back(id);
    if (is_plain) plain_mask_[static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32);
  }
  const auto text = [&](int32_t id) -> const std::string& { return bytes(id); };
  std::ranges::stable_sort(plain, {}, text);
  std::ranges::stable_sort(rest, {}, text);
  plain_ = make_trie(tokens_, plain, true);
  rest_ = make_trie(tokens_, rest, false);
}

}  // namespace mixtral::constrain
