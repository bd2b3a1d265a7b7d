#pragma once

#include <cstdint>

#include "stories/questions.h"
#include "stories/stories.h"

namespace mixtral::stories {

// A world of few words: three people, three things of different colours, four places of eight, and
// one way to say each thing. A small model learns to tell its stories in minutes. Splits share no
// combination of hero, friend, thing and place, as in the full world.

/// The `index`-th text of a split: a function of (seed, split, index) alone. Seven of ten are
/// lessons: what two or three people have and where they are, and questions about all of it, with
/// the answers. The others are the story of a day; four of five of these begin with "Listen well."
/// and ask what happened, with the answers.
Story tell_small_story(uint64_t seed, Split split, uint64_t index);

/// The `index`-th question of a split, as ask(): whom the story is about, where somebody is, or who
/// has something.
Question ask_small(uint64_t seed, Split split, uint64_t stream, uint64_t index, int turns = 1);

}  // namespace mixtral::stories
