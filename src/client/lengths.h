#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/random.h"

namespace mixtral::client {

/// A distribution of lengths in tokens.
class Lengths {
 public:
  /// "N", "LEAST-MOST" (each as probable), or "lognormal:MEDIAN:SIGMA[:MOST]", where SIGMA is the
  /// deviation of the logarithm and longer ones are cut to MOST. Throws UsageError naming
  /// `setting`.
  static Lengths parse(std::string_view text, const std::string& setting);

  /// At least 1 and at most 2^20.
  int64_t draw(RandomStream& random) const;
  double mean() const;  // were none cut

 private:
  int64_t least_ = 1, most_ = 1;
  double median_ = 0, sigma_ = 0;  // of a lognormal one; 0: it is none
};

}  // namespace mixtral::client
