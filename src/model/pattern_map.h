#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixtral {

/// A map from patterns to numbers: `rank_pattern` or `alpha_pattern` of a PEFT adapter. A pattern
/// is a regular expression for the end of a name, from its start or from a dot on; of several that
/// match, the first counts (PEFT's get_pattern_key: re.match(rf"(.*\.)?({key})$", name)). Matching
/// takes time linear in the name, whatever the patterns are (RE2).
class PatternMap {
 public:
  struct Entry {
    std::string pattern;
    double value = 0;
  };
  static constexpr size_t kMostPatterns = 8192;
  static constexpr size_t kLongestPattern = 256;  // bytes

  /// Compiles all patterns once. `where` names their place in errors ("adapter_config.json:
  /// rank_pattern"). Throws Error naming the pattern that is too long or no expression of RE2's,
  /// and when there are too many.
  explicit PatternMap(std::vector<Entry> entries = {}, std::string where = "");
  ~PatternMap();
  PatternMap(PatternMap&&) noexcept;
  PatternMap& operator=(PatternMap&&) noexcept;

  /// The value of the first pattern that matches.
  std::optional<double> find(std::string_view name) const;

 private:
  struct Compiled;

  std::vector<Entry> entries_;
  std::string where_;
  std::unique_ptr<Compiled> compiled_;  // null without patterns
};

}  // namespace mixtral
