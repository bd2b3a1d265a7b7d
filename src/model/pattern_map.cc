#include "model/pattern_map.h"

#include <fmt/format.h>
#include <re2/re2.h>
#include <re2/set.h>

#include <algorithm>

#include "base/error.h"
#include "io/json.h"

namespace mixtral {
namespace {

constexpr int64_t kMatcherBytes = int64_t{64} << 20;

/// `a{,3}` is one to Python's re and plain text to RE2: the only form that both accept with
/// different meanings.
bool has_open_repetition(std::string_view pattern) {
  return pattern.find("{,") != std::string_view::npos;
}

}  // namespace

struct PatternMap::Compiled {
  explicit Compiled(const RE2::Options& options) : set(options, RE2::ANCHOR_BOTH) {}
  RE2::Set set;
};

PatternMap::PatternMap(std::vector<Entry> entries, std::string where)
    : entries_(std::move(entries)), where_(std::move(where)) {
  if (entries_.empty()) return;
  if (entries_.size() > kMostPatterns)
    throw Error(fmt::format("{}: has {} patterns; at most {} are accepted", where_, entries_.size(),
                            kMostPatterns));
  RE2::Options options;
  options.set_log_errors(false);
  options.set_max_mem(kMatcherBytes);
  compiled_ = std::make_unique<Compiled>(options);
  for (const auto& [pattern, value] : entries_) {
    if (pattern.size() > kLongestPattern)
      throw Error(fmt::format("{}: the pattern '{}' has {} bytes; at most {} are accepted", where_,
                              printable(pattern), pattern.size(), kLongestPattern));
    std::string problem = "{, is read differently by different programs";
    if (has_open_repetition(pattern) ||
        compiled_->set.Add("(?:.*\\.)?(?:" + pattern + ")", &problem) < 0)
      throw Error(
          fmt::format("{}: '{}' is not a regular expression that is understood here ({}); write "
                      "the names of modules in its place",
                      where_, printable(pattern), printable(problem)));
  }
  if (!compiled_->set.Compile())
    throw Error(
        fmt::format("{}: its patterns need more than {} MiB together; write the names of "
                    "modules in their place",
                    where_, kMatcherBytes >> 20));
}

PatternMap::~PatternMap() = default;
PatternMap::PatternMap(PatternMap&&) noexcept = default;
PatternMap& PatternMap::operator=(PatternMap&&) noexcept = default;

std::optional<double> PatternMap::find(std::string_view name) const {
  if (!compiled_) return std::nullopt;
  std::vector<int> matches;
  RE2::Set::ErrorInfo error{};
  const re2::StringPiece text(name.data(), name.size());
  if (!compiled_->set.Match(text, &matches, &error)) {
    if (error.kind == RE2::Set::kNoError) return std::nullopt;
    throw Error(
        fmt::format("{}: its patterns need more than {} MiB together; write the names of "
                    "modules in their place",
                    where_, kMatcherBytes >> 20));
  }
  return entries_[static_cast<size_t>(*std::min_element(matches.begin(), matches.end()))].value;
}

}  // namespace mixtral
