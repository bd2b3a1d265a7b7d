#pragma once

#include <filesystem>
#include <string_view>

#include "model/adapter_file.h"

namespace mixtral {

enum class AdapterFormat : uint8_t { peft, mlx, mistral, gguf };

/// The format of that name. Throws UsageError listing the names where there is none.
AdapterFormat parse_adapter_format(std::string_view name);

/// Writes an adapter for other programs: a directory as PEFT or mlx-lm have it, a directory with
/// Mistral's lora.safetensors, or a GGUF file (`out`). All or nothing appears. Every update is the
/// same there; what the format cannot say is an Error that says why:
/// - mlx: one rank and one scale, the same matrices in each of the last layers, nothing on the
/// head;
/// - mistral: mistral-inference multiplies by 2 unless it is told otherwise, so the scale is put
///   into B where that does not round;
/// - gguf: one alpha, so alpha / rank is each update's scale.
/// What was written is read again and compared: every matrix must be there, with the same update.
/// Returns how many tensors were written.
int64_t write_adapter(const AdapterFile& adapter, const ModelConfig& config, AdapterFormat format,
                      const std::filesystem::path& out);

}  // namespace mixtral
