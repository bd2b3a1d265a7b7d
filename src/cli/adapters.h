#pragma once

#include <filesystem>
#include <string>

namespace mixtral {

/// What --adapter names: an adapter directory, or the best (else the latest) checkpoint of a run
/// that trained one. Throws Error, which says what was looked for.
std::filesystem::path resolve_adapter(const std::string& adapter);

/// Where --model names a run that trained an adapter, and --adapter is not given: makes `adapter`
/// that adapter, and `model` the base that it was trained on. Otherwise changes nothing. Throws
/// Error when the base is not known, or not where it was.
void settle_adapter(std::string& model, std::string& adapter);

}  // namespace mixtral
