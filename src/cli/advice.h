#pragma once

#include <string>

#include "base/advice.h"

namespace mixtral {

/// An error's whole message, with the settings that it names worded as flags: "--context 512".
std::string in_flags(const Error& error);

}  // namespace mixtral
