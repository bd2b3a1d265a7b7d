#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "convert/part_reader.h"
#include "io/gguf.h"
#include "io/gguf_writer.h"

namespace mixtral {

// What a target's format has no word for and other programs do not read, but a conversion back
// needs: the files beside the weights as they were, and the types of tensors that were widened.

/// The name under which a Mistral directory keeps Hugging Face's config.json, whose own name would
/// make it look like one of theirs.
inline constexpr std::string_view kKeptConfig = "hf_config.json";

/// The text files of a model's directory that stay true in another format, by name: config.json,
/// and the companions (open/companions.h).
std::map<std::string, std::string> kept_files(const std::filesystem::path& directory);

/// Adds them to a GGUF file's keys ("mixtral.file.NAME", or "mixtral.base64.NAME" of a file that is
/// not UTF-8), and finds them again.
void add_kept_files(const std::map<std::string, std::string>& files, GgufKeys& keys);
std::map<std::string, std::string> find_kept_files(const GgufHeader& header);

/// The tensors' types by Hugging Face's names, as a line each: "NAME TYPE".
using OriginalTypes = std::map<std::string, ops::WeightFormat>;
void add_original_types(const OriginalTypes& types, GgufKeys& keys);
OriginalTypes find_original_types(const GgufHeader& header);
/// The same as the text of a safetensors file's metadata.
inline constexpr std::string_view kOriginalTypesKey = "mixtral.original_types";
std::string to_text(const OriginalTypes& types);
OriginalTypes parse_original_types(std::string_view text, std::string_view source);

}  // namespace mixtral
