#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/criterion.h"

namespace mixtral {

/// Watches for experts that no token goes to. One micro-batch without a token for an expert is
/// chance; several lines of the metrics in a row are a router that has given it up.
class DeadExpertWatch {
 public:
  static constexpr int64_t kLines = 10;

  /// Takes in one line's figures. Returns a sentence for each layer in which experts were found to
  /// be dead, or to have come back, with this line.
  std::vector<std::string> look(int64_t step, const RouterFigures& figures);

 private:
  struct Expert {
    int64_t lines = 0;  // in a row without a token
    int64_t since = 0;  // step of the first of them
  };
  std::vector<std::vector<Expert>> experts_;  // [L][E]
};

}  // namespace mixtral
