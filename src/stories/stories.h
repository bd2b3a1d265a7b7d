#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/threads.h"
#include "data/record.h"
#include "stories/stage.h"

namespace mixtral {

namespace stories {

struct Story {
  std::string text;
  std::string plot;
  std::string hero;
  Premise premise;
};

/// The split that a premise belongs to: 18 of 20 to train, one each to val and test, by a hash of
/// hero, plot, main thing and main place, whatever the seed. Two splits thus never share such a
/// combination.
Split split_of(const Premise& premise);
/// The same of any combination of words.
Split split_of(std::span<const std::string_view> combination);

/// A premise for a scene about which questions are asked (its plot is -1).
Premise draw_scene_premise(RandomStream& random);

/// The `index`-th story of a split: a function of (seed, split, index) alone. 60 to 250 words.
Story tell_story(uint64_t seed, Split split, uint64_t index);

}  // namespace stories
}  // namespace mixtral
