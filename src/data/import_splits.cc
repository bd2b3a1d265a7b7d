#include "data/import_splits.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/advice.h"
#include "base/error.h"
#include "base/random.h"

namespace mixtral {

namespace fs = std::filesystem;

void SplitShares::validate() const {
  if (!(val >= 0 && test >= 0 && val + test < 1))
    throw AdvisedUsageError(
        "‹val› and ‹test› are shares of the whole: 0 or more, below 1 together");
}

std::vector<Split> deal_out(size_t units, const SplitShares& shares, std::string_view unit_name,
                            std::string_view advice) {
  std::vector<size_t> order(units);
  for (size_t i = 0; i < units; ++i) order[i] = i;
  RandomStream random(shares.seed);
  for (size_t i = units; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  const auto count_of = [&](double share) -> size_t {
    if (share == 0 || units < 3) return 0;
    return std::max<size_t>(
        1, static_cast<size_t>(std::floor(share * static_cast<double>(units) + 0.5)));
  };
  const size_t val = count_of(shares.val), test = count_of(shares.test);
  if (val + test >= units)
    throw AdvisedError(
        fmt::format("{} {} leave none to train on with ‹val {}› and ‹test {}›: lower these{}",
                    units, unit_name, shares.val, shares.test, advice));
  std::vector<Split> splits(units, Split::train);
  for (size_t i = 0; i < val + test; ++i) splits[order[i]] = i < val ? Split::val : Split::test;
  return splits;
}

SplitFiles::SplitFiles(const fs::path& folder, const std::vector<Split>& splits,
                       Existing existing) {
  fs::create_directories(folder);
  for (Split split : kSplits) {
    const bool wanted = std::ranges::find(splits, split) != splits.end();
    const fs::path path = folder / (std::string(split_name(split)) + ".jsonl");
    if (!wanted && fs::exists(path))
      throw AdvisedError(
          fmt::format("{} exists, but this import makes no such split: remove it, or choose "
                      "another ‹out›",
                      path.string()));
    if (wanted && existing == Existing::refuse && fs::exists(path))
      throw AdvisedError(fmt::format(
          "{} exists: replace it with ‹overwrite›, or choose another ‹out›", path.string()));
    if (wanted) files_[static_cast<size_t>(split)].emplace(path);
  }
}

void SplitFiles::write(Split split, std::string_view line) {
  AtomicFile& file = *files_[static_cast<size_t>(split)];
  file.write(line);
  file.write("\n");
}

void SplitFiles::commit() {
  for (auto& file : files_)
    if (file) file->commit();
}

}  // namespace mixtral
