#pragma once

#include <filesystem>

namespace mixtral {

/// Whether a directory is a run's checkpoint: it has a state.json, or the name of a step.
bool is_checkpoint(const std::filesystem::path& directory);

/// What of a checkpoint is wanted: everything, or what inference reads, for which the optimizer's
/// state may be gone.
enum class CheckpointUse { resume, inference };

/// Throws Error unless the checkpoint is whole: its manifest can be read and lists every file that
/// this program reads of it, and all that it lists are as they were written. For inference the
/// model's weights and config.json are left out: opening them checks them.
void verify_checkpoint(const std::filesystem::path& directory, CheckpointUse use);

}  // namespace mixtral
