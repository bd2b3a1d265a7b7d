#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "tensor/dtype.h"

namespace mixtral {

/// A type of a GGUF file's tensors (ggml.h, enum ggml_type; sizes: ggml-common.h).
struct GgufType {
  uint32_t number = 0;
  std::string_view name;       // as ggml writes it, in capitals: "Q4_K"
  int64_t block = 1;           // elements of a block
  int64_t bytes = 0;           // of a block
  std::optional<Dtype> dtype;  // of plain numbers, where this program has them
};

/// Every type that ggml has now, whether or not it can be computed with here.
std::span<const GgufType> gguf_types();
/// The type of that number, or null.
const GgufType* find_gguf_type(uint32_t number);
/// The type of that name in capitals or small letters, or null.
const GgufType* find_gguf_type(std::string_view name);

}  // namespace mixtral
