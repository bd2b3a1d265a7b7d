#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "io/tensor_source.h"

namespace mixtral {

/// Copies of the base's tensors that an adapter's file may hold: PEFT stores embeddings and head
/// with adapters of lm_head or of a resized vocabulary, and whatever modules_to_save names.
class BaseCopies {
 public:
  /// `base` is the model directory to compare with; empty when there is none.
  explicit BaseCopies(std::filesystem::path base) : base_(std::move(base)) {}

  /// Accepts a tensor whose name without PEFT's prefix is `name` when it is a copy of one of the
  /// base's tensors, of equal value or rounded to the copy's type. Returns false when `name` is no
  /// name of a model's tensor. Throws Error naming file and tensor when they differ, or when there
  /// is nothing to compare with.
  bool accept(const TensorSource& adapter, const TensorEntry& entry, std::string_view name);

 private:
  std::filesystem::path base_;
  std::unique_ptr<TensorSource> tensors_;  // opened for the first copy
};

}  // namespace mixtral
