#pragma once

#include <string>
#include <string_view>

#include "model/config.h"
#include "model/tensor_names.h"

namespace mixtral {

/// The kinds of files that a model is read from and written to.
enum class ModelFormat : uint8_t { hugging_face, gguf, mlx, mistral };

/// "hf", "gguf", "mlx", "mistral".
std::string_view name(ModelFormat format);
/// The format of that name. Throws UsageError listing the names where there is none.
ModelFormat parse_model_format(std::string_view name);
/// Which of them a model's files are in.
ModelFormat format_of(const TensorSource& tensors);

/// How the format names a kind of tensor, and packs it.
const TensorNaming& naming_in(ModelFormat format, TensorKind kind);

/// Throws Error naming the first thing in a model's configuration that the format has no word for,
/// so that the model would compute something else: a window, a tied head, a head width.
void refuse_what_cannot_be_said(const ModelConfig& config, ModelFormat format);

}  // namespace mixtral
