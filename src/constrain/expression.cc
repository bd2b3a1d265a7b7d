#include "constrain/expression.h"

#include <algorithm>

#include "base/error.h"
#include "constrain/emitter.h"
#include "text/unicode.h"

namespace mixtral::constrain {
namespace {

constexpr uint64_t kMostParts = 1'000'000;  // with the parts of each
constexpr int kMostWordDepth = 200;

std::u32string characters(std::string_view text) {
  std::u32string codes;
  while (!text.empty()) {
    const Character c = first_character(text);
    CHECK(c.code >= 0, "text of a grammar that is not UTF-8");
    codes += static_cast<char32_t>(c.code);
    text.remove_prefix(c.length);
  }
  return codes;
}

}  // namespace

Expression::Expression() : nodes_{Node{.kind = Kind::empty}, Node{.kind = Kind::never}} {}

Expression::Part Expression::add(Node node) {
  size_ += 1 + node.parts.size();
  if (size_ > kMostParts)
    throw Error("the grammar has more than 1,000,000 parts; use a smaller one");
  nodes_.push_back(std::move(node));
  return static_cast<Part>(nodes_.size() - 1);
}

Expression::Part Expression::chars(const CharSet& set) {
  if (set.empty()) return never();
  const uint32_t id = classes_.add(set);
  const auto known = chars_.find(id);
  if (known != chars_.end()) return known->second;
  return chars_[id] = add({.kind = Kind::chars, .value = id});
}

Expression::Part Expression::text(std::string_view text) {
  std::vector<Part> parts;
  for (const char32_t c : characters(text))
    parts.push_back(chars(CharSet::one(static_cast<int32_t>(c))));
  return sequence(std::move(parts));
}

Expression::Part Expression::words(const std::vector<std::string>& texts) {
  std::vector<std::u32string> sorted;
  sorted.reserve(texts.size());
  for (const std::string& text : texts) sorted.push_back(characters(text));
  std::ranges::sort(sorted);
  sorted.erase(std::ranges::unique(sorted).begin(), sorted.end());
  return words(sorted, 0, sorted.size(), 0, 0);
}

Expression::Part Expression::words(const std::vector<std::u32string>& texts, size_t begin,
                                   size_t end, size_t at, int depth) {
  const auto letter = [&](char32_t c) { return chars(CharSet::one(static_cast<int32_t>(c))); };
  const auto tail = [&](const std::u32string& text) {
    std::vector<Part> parts;
    for (size_t i = at; i < text.size(); ++i) parts.push_back(letter(text[i]));
    return sequence(std::move(parts));
  };
  std::vector<Part> choices;
  if (depth > kMostWordDepth) {
    for (size_t i = begin; i < end; ++i) choices.push_back(tail(texts[i]));
    return choice(std::move(choices));
  }
  if (end - begin == 1) return tail(texts[begin]);
  while (begin < end) {
    if (texts[begin].size() == at) {
      choices.push_back(empty());
      ++begin;
      continue;
    }
    // Those that go on with the same characters.
    size_t last = begin;
    while (last + 1 < end && texts[last + 1][at] == texts[begin][at]) ++last;
    const std::u32string &low = texts[begin], &high = texts[last];  // sorted: the most different
    std::vector<Part> parts;
    size_t next = at;
    for (; next < std::min(low.size(), high.size()) && low[next] == high[next]; ++next)
      parts.push_back(letter(low[next]));
    parts.push_back(words(texts, begin, last + 1, next, depth + 1));
    choices.push_back(sequence(std::move(parts)));
    begin = last + 1;
  }
  return choice(std::move(choices));
}

Expression::Part Expression::sequence(std::vector<Part> parts) {
  if (std::ranges::count(parts, never())) return never();
  std::erase(parts, empty());
  if (parts.empty()) return empty();
  if (parts.size() == 1) return parts[0];
  return add({.kind = Kind::sequence, .parts = std::move(parts)});
}

Expression::Part Expression::choice(std::vector<Part> parts) {
  std::erase(parts, never());
  if (parts.empty()) return never();
  if (parts.size() == 1) return parts[0];
  return add({.kind = Kind::choice, .parts = std::move(parts)});
}

Expression::Part Expression::repeat(Part part, uint64_t least, std::optional<uint64_t> most) {
  CHECK(!most || *most >= least);
  if (part == empty() || (most && *most == 0)) return empty();
  if (part == never()) return least == 0 ? empty() : never();
  if (least == 1 && most == uint64_t{1}) return part;
  return add({.kind = Kind::repeat, .least = least, .most = most, .parts = {part}});
}

Expression::Rule Expression::add_rule(std::string name) {
  rules_.push_back({.name = std::move(name)});
  if (rules_.size() > kMostParts / 10)
    throw Error("the grammar has more than 100,000 rules; use a smaller one");
  return static_cast<Rule>(rules_.size() - 1);
}

Expression::Part Expression::call(Rule rule) {
  const auto known = calls_.find(rule);
  if (known != calls_.end()) return known->second;
  return calls_[rule] = add({.kind = Kind::call, .value = rule});
}

std::shared_ptr<const Network> Expression::compile(Rule root) { return Emitter(*this).emit(root); }

}  // namespace mixtral::constrain
