#pragma once

#include <string>
#include <vector>

#include "cli/command_table.h"

namespace mixtral {

/// A heading of a command's short help, and the options under it.
struct HelpGroup {
  std::string heading;
  std::vector<std::string> options;  // long names
};

/// The options of a command that people use, in groups: about a dozen. Where nobody has chosen
/// them, its first ones.
std::vector<HelpGroup> common_options(const CommandRow& command);

/// The commands whose options were chosen, and the choice, for tests.
const std::vector<std::pair<std::string, std::vector<HelpGroup>>>& chosen_options();

}  // namespace mixtral
