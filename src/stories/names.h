#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mixtral::stories {

/// How far the names in a story of the built-in worlds stay what they were.
struct NameCount {
  int64_t mentions = 0;            // of any name of those worlds
  int64_t introduced = 0;          // of these, of a name that the story had introduced by then
  std::vector<std::string> stray;  // names that it never introduced, in order
};

/// Counts the names in a story. A name is introduced where it first stands after a word that says
/// who is meant ("named", "called", "friend", "brother", "girl", …).
NameCount count_names(std::string_view story);

}  // namespace mixtral::stories
