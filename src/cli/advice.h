#pragma once

#include <string>

#include "base/advice.h"

namespace mixtral {

/// An error's whole message, with the settings that it names worded as flags: "--context 512".
std::string in_flags(const Error& error);
/// A sentence with its settings (base/advice.h) as flags.
std::string in_flags(std::string_view sentence);

}  // namespace mixtral
