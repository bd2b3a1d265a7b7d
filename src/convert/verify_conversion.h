#pragma once

#include <filesystem>

#include "convert/receipt.h"
#include "open/model_source.h"

namespace mixtral {

/// What a second look at a conversion found. No problems: all is as the receipt says.
struct Verification {
  Receipt receipt;
  bool source_present = false;        // the source is where the receipt says, and was read again
  LogitComparison logits;             // of source and target, or of the receipt and the target
  std::vector<std::string> problems;  // a sentence each
};

/// Checks a converted model against its receipt: every tensor of the model is in it, every tensor
/// of the target is there with the same bytes, and no other; the files beside them; and the logits.
/// Where the source is still there, its tensors, too. Throws Error where there is no receipt, or
/// the target cannot be read.
Verification verify_conversion(const std::filesystem::path& target, int threads);

}  // namespace mixtral
