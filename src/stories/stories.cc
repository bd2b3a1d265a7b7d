#include "stories/stories.h"

#include <array>

#include "base/error.h"
#include "stories/plots.h"
#include "stories/questions.h"

namespace mixtral {

namespace stories {
namespace {

constexpr int kMinWords = 60, kMaxWords = 250;
/// How many of the stories are days followed by riddles: they make a model keep track of who has
/// what and who is where, which few sentences of a plot depend on.
constexpr double kRiddleShare = 0.65;

uint64_t hash_text(uint64_t hash, std::string_view text) {
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001B3u;
  return (hash ^ 0xFF) * 0x100000001B3u;
}

Premise draw(RandomStream& random, int plot_index, const Plot& plot) {
  auto pick = [&](size_t n) { return static_cast<size_t>(random.below(n)); };
  auto pick_word = [&](std::string_view list) {
    return std::string(
        choice(list, static_cast<int>(pick(static_cast<size_t>(choice_count(list))))));
  };
  Premise p;
  p.plot = plot_index;
  p.animals = !plot.people_only && random.uniform() < 0.2;
  p.gender = random.uniform() < 0.5 ? Gender::female : Gender::male;
  const auto names = p.animals                    ? animal_child_names()
                     : p.gender == Gender::female ? girl_names()
                                                  : boy_names();
  p.hero = names[pick(names.size())];
  const auto things = thing_kinds();
  do {
    p.thing = static_cast<int>(pick(things.size()));
  } while (!(things[static_cast<size_t>(p.thing)].categories & plot.things));
  const ThingKind& thing = things[static_cast<size_t>(p.thing)];
  if (!thing.colours.empty()) p.colour = pick_word(thing.colours);
  if (!thing.qualities.empty() && random.uniform() < 0.6) p.quality = pick_word(thing.qualities);
  const auto places = place_kinds();
  while (true) {
    p.place = 1 + static_cast<int>(pick(places.size() - 1));
    const PlaceKind& place = places[static_cast<size_t>(p.place)];
    const bool in_zone = (1u << static_cast<unsigned>(place.zone) & plot.zones) != 0;
    if (in_zone && (place.air & plot.air) == plot.air) return p;
  }
}

Premise draw_premise(RandomStream& random) {
  const auto all = plots();
  const auto plot = static_cast<size_t>(random.below(all.size()));
  return draw(random, static_cast<int>(plot), all[plot]);
}

}  // namespace

Split split_of(std::span<const std::string_view> combination) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const std::string_view word : combination) hash = hash_text(hash, word);
  const uint64_t bucket = (hash ^ (hash >> 29)) % 20;
  return bucket < 18 ? Split::train : bucket == 18 ? Split::val : Split::test;
}

Split split_of(const Premise& p) {
  const std::array<std::string_view, 4> combination = {
      p.hero, p.plot < 0 ? "scene" : plots()[static_cast<size_t>(p.plot)].name,
      thing_kinds()[static_cast<size_t>(p.thing)].noun,
      place_kinds()[static_cast<size_t>(p.place)].name};
  return split_of(combination);
}

Premise draw_scene_premise(RandomStream& random) {
  while (true) {
    Premise premise = draw(random, -1, {"scene", nullptr, ~0u, ~0u});
    const ThingKind& thing = thing_kinds()[static_cast<size_t>(premise.thing)];
    if (!thing.plural && !thing.colours.empty()) return premise;
  }
}

Story tell_story(uint64_t seed, Split split, uint64_t index) {
  // Each story has a stream of its own; 2^8 splits and kinds of text, 2^56 stories.
  RandomStream random(seed, index << 8 | static_cast<uint64_t>(split));
  const bool riddles = random.uniform() < kRiddleShare;
  while (true) {
    const Premise premise = riddles ? draw_scene_premise(random) : draw_premise(random);
    if (split_of(premise) != split) continue;
    Stage stage(premise, RandomStream(random.next(), 0));
    if (riddles)
      tell_riddle_story(stage);
    else
      plots()[static_cast<size_t>(premise.plot)].tell(stage);
    const int words = stage.teller.words();
    if (words < kMinWords || words > kMaxWords) continue;
    const std::string_view name =
        riddles ? "riddles" : plots()[static_cast<size_t>(premise.plot)].name;
    return {stage.teller.text(), std::string(name), premise.hero, premise};
  }
}

}  // namespace stories
}  // namespace mixtral
