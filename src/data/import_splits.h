#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "data/record.h"

namespace mixtral {

/// Shares of what is imported, and the seed that deals it out.
struct SplitShares {
  double val = 0.05, test = 0.05;
  uint64_t seed = 1;

  /// Throws UsageError unless both are shares that leave something to train on.
  void validate() const;
};

/// The split of each of so many units, in a random order: a split with a share gets at least one
/// unit where there are three. Throws Error, which ends in `advice`, when none is left to train on.
std::vector<Split> deal_out(size_t units, const SplitShares& shares, std::string_view unit_name,
                            std::string_view advice);

/// The files train, val and test .jsonl of a folder, as far as there is something for them.
class SplitFiles {
 public:
  enum class Existing { refuse, replace };

  /// Throws Error when one of them exists that is not to be replaced, or that this import would not
  /// make.
  SplitFiles(const std::filesystem::path& folder, const std::vector<Split>& splits,
             Existing existing);

  void write(Split split, std::string_view line);
  /// Makes all of them appear.
  void commit();

 private:
  std::optional<AtomicFile> files_[3];
};

}  // namespace mixtral
