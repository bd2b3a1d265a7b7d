#include "stories/names.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <set>

#include "stories/lexicon.h"

namespace mixtral::stories {
namespace {

bool is_name(std::string_view word) {
  for (const auto& names : {girl_names(), boy_names(), animal_child_names()})
    if (std::ranges::find(names, word) != names.end()) return true;
  return false;
}

/// Whether a word says who the name after it belongs to.
bool introduces(std::string_view word) {
  constexpr std::array<std::string_view, 22> kWords = {
      "named",  "called", "friend",   "girl",     "boy",    "child",    "brother", "sister",
      "cousin", "mother", "father",   "baby",     "rabbit", "mouse",    "fox",     "hedgehog",
      "bear",   "badger", "squirrel", "duckling", "frog",   "neighbour"};
  return std::ranges::find(kWords, word) != kWords.end();
}

}  // namespace

NameCount count_names(std::string_view story) {
  NameCount count;
  std::set<std::string, std::less<>> known;
  std::string_view before;
  for (size_t at = 0; at < story.size();) {
    const auto letter = [&](size_t i) {
      return std::isalpha(static_cast<unsigned char>(story[i])) != 0;
    };
    if (!letter(at)) {
      ++at;
      continue;
    }
    size_t end = at;
    while (end < story.size() && letter(end)) ++end;
    const std::string_view word = story.substr(at, end - at);
    at = end;
    if (is_name(word)) {
      ++count.mentions;
      if (introduces(before)) known.emplace(word);
      if (known.contains(word))
        ++count.introduced;
      else if (std::ranges::find(count.stray, word) == count.stray.end())
        count.stray.emplace_back(word);
    }
    before = word;
  }
  return count;
}

}  // namespace mixtral::stories
