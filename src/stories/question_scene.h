#pragma once

#include <functional>
#include <vector>

#include "stories/stage.h"

namespace mixtral::stories {

/// What a scene for questions is about.
struct SceneCast {
  std::vector<int> people, things, places;
};

/// Tells a short scene in which people go about, carry things, give, swap, leave and find them, all
/// in so many words that every question about it can be answered. From `least` to `most` things
/// happen; `between`, if given, is called after each but the last.
SceneCast tell_scene(Stage& stage, int least, int most,
                     const std::function<void(const SceneCast&)>& between = {});

}  // namespace mixtral::stories
