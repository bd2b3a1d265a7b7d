#pragma once

#include <string>

#include "cli/common.h"
#include "convert/convert_model.h"

namespace mixtral {

/// What `convert` and `quantize` are told about what they write.
struct TargetOptions {
  CommonOptions common;
  std::string out;
  int group_size = 64;
  bool overwrite = false, no_check = false, no_tokenizer = false;

  /// Adds the flags; --out has been added already. Both commands compute in f32 on the CPU and draw
  /// nothing, so flags about that are left out.
  void add_to(cli::App& command);
};

/// Shows on a terminal how far a conversion is; elsewhere nothing.
ConvertProgress conversion_progress(const CommonOptions& common);

/// Throws Error where replacing `out` would remove what no program that writes models puts there.
void refuse_foreign(const std::string& out);

/// What was done, in lines for people.
void print_receipt(const Receipt& receipt, const std::string& out);

/// How two models' logits compare, in words.
std::string in_words(const LogitComparison& logits);

}  // namespace mixtral
