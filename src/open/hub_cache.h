#pragma once

#include <filesystem>
#include <optional>
#include <string_view>

namespace mixtral {

/// Whether a name can be that of a model on the Hugging Face hub: "ORGANISATION/NAME".
bool is_hub_name(std::string_view name);

/// The folder in which Hugging Face's tools keep what they downloaded: HF_HUB_CACHE, or hub/ in
/// HF_HOME or XDG_CACHE_HOME/huggingface, or ~/.cache/huggingface/hub (huggingface_hub,
/// constants.py). Empty where none of these is known.
std::filesystem::path hub_cache_folder();

/// The folder of the model's newest download in that cache: models--ORG--NAME/snapshots/REVISION,
/// by what refs/main says; without it, where there is only one revision. Nothing when there is
/// none.
std::optional<std::filesystem::path> find_in_hub_cache(std::string_view name);

}  // namespace mixtral
