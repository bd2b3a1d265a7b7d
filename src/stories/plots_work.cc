// Stories about making: cooking, growing, building, following a map.
#include <string>
#include <vector>

#include "stories/plots.h"

namespace mixtral::stories {

void tell_cooking(Stage& s) {
  s.kin('k', s.home);
  s.open();
  s.paragraph();
  s.teller.bind_text('t', s.day());
  constexpr std::string_view kDishes =
      "a birthday supper|a picnic|a feast for the whole street|a surprise supper";
  s.teller.bind_text('d', std::string(s.one_of(kDishes)));
  s.say(
      {"{T}, {h.n} and {k} wanted to prepare {d}. But when they looked in the cupboard, something "
       "was "
       "missing.",
       "{T}, guests were coming, and {k} wanted to prepare {d}. `Oh dear,` {k.he} said, `the "
       "cupboard "
       "is half empty!`"});
  // What is missing: the main thing first, then one or two more.
  std::vector<int> kinds{s.premise.thing};
  kinds.push_back(s.thing_kind_of(kFood));
  if (s.maker_of(kinds[1]) < 0 && s.chance(0.5)) kinds[1] = s.thing_kind_of(kVessel | kFragile);
  // "A jar of honey and a jar" would be hard to follow.
  const auto noun_of = [](int kind) { return thing_kinds()[static_cast<size_t>(kind)].noun; };
  while (noun_of(kinds[0]).find(noun_of(kinds[1])) != std::string_view::npos) {
    kinds[1] = s.thing_kind_of(kFood);
  }
  std::vector<std::string> phrases;
  phrases.reserve(kinds.size());
  for (int kind : kinds)
    phrases.push_back(with_article(thing_kinds()[static_cast<size_t>(kind)].noun));
  s.teller.bind_text('n', join_list(phrases));
  s.say({"`We still need {n},` said {k.n}.",
         "`I need {n},` said {k.n}, `and I cannot leave the stove.`"});
  s.say({"`I will go!` cried {h.n}, and was out of the door.",
         "`Leave that to me,` said {h.n}, and took the basket."});
  s.paragraph();
  const int x = s.obtain('x', kinds[0], "", 0);
  (void)x;
  s.maybe(0.4, {"That was the first thing.", "One down, one to go!"});
  s.paragraph();
  if (s.teller.words() < 120) {
    s.lent = true;  // what goes into a meal is not lent
    s.obtain('y', kinds[1], "", 0);
  } else {
    const int e = s.elder('e');
    const int here = s.world.being(s.hero()).place;
    s.world.go(e, here);
    const int y = s.add_thing('y', kinds[1], e, e);
    s.say(
        {"{h} was just about to go on when {e} came by with {y.a}. `Take it,` {e.he} said. `I have "
         "two.`",
         "Then {e} came along, and in {e.s} bag was {y.a}. {E.n} gave it to {h.o} with a wink."});
    s.world.give(e, s.hero(), y);
  }
  s.maybe(0.4, {"Now {h} had everything."});
  s.paragraph();
  s.go("h", s.home);
  s.give('h', 'k', 'x');
  s.world.give(s.hero(), s.being('k'), s.thing('y'));
  s.say({"`And here is {y},` said {h.n}. `What would I do without you?` said {k.n}.",
         "Then came {y}. `You have thought of everything,` said {k.n}."});
  s.say({"They stirred and tasted, and tasted again.",
         "{h} was allowed to stir. There was flour on the floor, on the chair, and on {h.s} nose.",
         "They set the table with flowers and folded every napkin into a boat."});
  s.maybe(0.5, {"Once it almost burned, but only almost."});
  s.say(
      {"They ate until the candles burned low, and there was still a second helping.",
       "In the evening they all sat round the table. `Who made this?` asked the guests. `We did,` "
       "said {k.n}, and winked at {h.n}.",
       "It was so good that nobody spoke until all the plates were empty."});
  s.end(s.chance(0.6) ? Theme::meal : Theme::home);
}

void tell_garden(Stage& s) {
  const int garden = s.add_place('b', place_kind("the garden"));
  s.open();
  s.say({"{h} had a little bed in the garden, no bigger than a table.",
         "Behind the house was a small patch of earth, and it belonged to {h.o}."});
  s.paragraph();
  constexpr std::string_view kPlants =
      "sunflower|pumpkin|bean|tomato plant|strawberry plant|pea plant";
  s.teller.bind_text('n', std::string(s.one_of(kPlants)));
  const int g = s.elder('g');
  s.go_silently("h", s.main);
  s.world.go(g, s.main);
  s.say(
      {"One day in spring, {p.in}, {g} gave {h.o} a single seed. `What will it be?` asked {h.n}. "
       "`Wait and see,` said {g.n}.",
       "One spring morning, {h} met {g.o} {p.in} and got a present: one small brown seed."});
  const std::string noun(thing_kinds()[static_cast<size_t>(s.premise.thing)].noun);
  s.teller.bind_text('w', with_article(noun));
  s.say({"To plant it well, {h} needed {w}.",
         "`You will need {w} for it,` said {g.n}, `and a lot of patience.`"});
  s.paragraph();
  const int x = s.obtain('x', s.premise.thing, "", 0);
  s.paragraph();
  s.go_silently("h", garden);
  s.say({"At home, {h} planted the seed with the help of {x}, and watered it.",
         "With {x} in {h.his} arms, {h} ran into the garden and put the seed into the ground."});
  s.say({"Nothing happened for a long time. `Perhaps it has forgotten me,` said {h.n}.",
         "The first day, nothing happened. The second day, nothing happened. `It is asleep,` said "
         "{h.n}.",
         "Every morning {h} went to look, and every morning there was only earth."});
  s.say({"Then, after two weeks, a tiny green tip came out.",
         "But on the tenth day, there was a green dot, no bigger than a pea."});
  s.say({"One night there was a storm, and {h} ran out and held a board over it.",
         "A snail came and wanted to eat it, and {h} carried it away, not once but eleven times.",
         "It was a hot summer, and {h} carried water every evening, even when {h.his} arms ached.",
         "A hen got into the garden and scratched, and {h} built a little fence of sticks."});
  s.say({"{h} told it stories in the evening, for plants like company.",
         "It grew up to {h.his} knees, then up to {h.his} nose.",
         "It grew and grew, leaf by leaf."});
  if (s.lent) {
    s.teller.bind_being('u', s.being(s.lender));
    s.go_silently("h", s.world.being(s.being(s.lender)).place);
    s.say({"{h} had long since brought back {x}, and {u} asked about the seed whenever they met."});
    s.world.give(s.hero(), s.being(s.lender), x);
    s.go_silently("h", garden);
  }
  s.paragraph();
  s.say({"At the end of summer it stood there: the finest {n} in the whole street.",
         "And in the end it was a {n}, and what a {n}!"});
  s.say({"{g.n} came to see it and took off {g.his} hat.",
         "{h} invited {g.n}, and they sat beside it all afternoon."});
  s.maybe(
      0.6,
      {"{h} kept the new seeds in a paper bag, and gave one of them to every child in the street.",
       "{h} saved one seed for the next year."});
  s.end(Theme::patience);
}

void tell_building(Stage& s) {
  const int f = s.child('f', s.chance(0.6) ? "friend" : "brother", s.home);
  s.open();
  s.paragraph();
  const bool water = s.world.place(s.main).zone == Zone::water;
  const bool winter = s.season == Season::winter;
  constexpr std::string_view kWater = "a raft|a little boat",
                             kLand = "a tree house|a hut made of branches|a bridge over the brook";
  const std::string what(s.one_of(water ? kWater : kLand));
  s.teller.bind_text('n', what);
  s.teller.bind_text('m', "the " + what.substr(what.find(' ') + 1));
  s.teller.bind_text('t', s.day());
  s.go_silently("hf", s.main);
  s.say({"{T}, {h.n} and {f} had nothing to do. `Let us build {n},` said {h.n}. `Here, {p.in}.`",
         "{T}, {h} was {p.in} with {f.o}. `I know,` said {f.n} suddenly. `We will build {n}!`"});
  s.say({"They dragged branches and boards together[ until their arms were sore|].",
         "They drew a plan in the earth with a stick."});
  s.say({"The first try fell apart with a crash.", "It looked wonderful, until the wind blew.",
         "{f.n} sat down on it to test it, and it broke."});
  if (winter) s.maybe(0.5, {"Their fingers were red with cold, but they did not stop."});
  const std::string noun(thing_kinds()[static_cast<size_t>(s.premise.thing)].noun);
  s.teller.bind_text('w', with_article(noun));
  s.say({"`We need {w},` said {f.n}. `Without it, it will never hold.`",
         "`With {w}, it would work,` said {h.n}."});
  s.paragraph();
  const int x = s.obtain('x', s.premise.thing, "f", s.chance(0.4) ? 1 : 0);
  (void)x;
  (void)f;
  s.paragraph();
  s.go("hf", s.main);
  s.say({"With {x}, everything went better.", "Now they had {x}, and the work went quickly."});
  s.maybe(0.6, {"{h.n} wanted to do it one way, and {f.n} another. In the end they tried both and "
                "took the better one.",
                "{f.n} had the ideas, and {h.n} had the patience."});
  s.say({"By the evening {m} was ready. It was a little crooked, but it held.",
         "And when the sun went down, {m} was finished."});
  s.say({"Everyone who came by had to try it, and everyone wanted one, too.",
         "They sat on it side by side and ate their bread.",
         "They gave it a name and hung up a flag made of an old shirt."});
  if (s.lent) {
    s.paragraph();
    const int g = s.being(s.lender);
    s.go("hf", s.world.being(g).place, "to give back the " + noun);
    s.give('h', s.lender, 'x');
    s.teller.bind_being('u', g);
    s.say({"`May I come and see it?` asked {u.n}. `You will be our first guest,` said {h.n}.",
           "`Nothing broken? Good,` said {u.n}. `You may have {x.them} again any time.`"});
  }
  s.end(s.chance(0.5) ? Theme::friendship : Theme::patience);
}

void tell_treasure(Stage& s) {
  const int g = s.kin('k', s.home);
  const int q = s.other_place('q', {Zone::village, Zone::nature});
  const int r = s.other_place('r', {Zone::nature, Zone::water});
  const int x = s.main_thing('x', g, -1, s.main);
  s.open();
  s.paragraph();
  s.teller.bind_text('t', s.day());
  const bool with_friend = s.chance(0.5);
  std::string keys = "h";
  s.say(
      {"{T}, {h} found an old piece of paper [in a book|under a loose board|in a coat pocket]. On "
       "it was written: `Begin {q.in}.`",
       "{T}, a letter lay under {h.s} pillow. It said: `A treasure waits for you. Begin {q.in}!`"});
  if (with_friend) {
    s.child('f', s.chance(0.5) ? "friend" : "cousin", s.home);
    s.say({"{h} ran to fetch {f}, for nobody should look for a treasure alone.",
           "`Can I come?` asked {f.n}. `Of course,` said {h.n}."});
    keys += 'f';
  }
  s.feel('h', Mood::excited);
  s.paragraph();
  s.go(keys, q);
  s.teller.bind_text('w', std::string(s.spot(q)));
  if (with_friend) {
    s.say({"They searched until {f.n} found a second note, {w}.",
           "There, {w}, was the next note. {f.n} read it out loud."});
  } else {
    s.say(
        {"{h} searched until {h.he} found a second note, {w}.", "There, {w}, was the next note."});
  }
  constexpr std::string_view kRiddles =
      "Go where it is wide and green or wet|Follow your nose and then your ears|Go on, and do not "
      "be slow";
  s.teller.bind_text('m', std::string(s.one_of(kRiddles)));
  s.say({"`{M},` it said. `Now look {r.in}.`", "`Well done,` it said. `The next place is {r}.`"});
  s.go(keys, r);
  s.pastime('h', r);
  s.say(
      {"The third note hung from a [branch|string]. `You are nearly there,` it said. `Look "
       "{p.in}.`",
       "Under a stone was the last note. `Now go {p.to},` it said."});
  s.maybe(0.4, {"By now {h.s} legs were tired, but {h.he} did not stop."});
  s.paragraph();
  s.go(keys, s.main);
  s.teller.bind_text('w', s.world.thing(x).spot);
  s.world.take(s.hero(), x);
  s.world.thing(x).owner = s.hero();
  s.say({"And there, {w}, {h} found {x.a}, with a ribbon round {x.them}.",
         "{W} lay the treasure. It was {x.a}!"});
  s.go_silently("k", s.main);
  s.say(
      {"`So you have found {x.them},` said a voice. It was {k}, and {k.he} was laughing. `When I "
       "was small, {x.it} belonged to me.`",
       "Behind a tree stood {k}, smiling. `I wrote the notes,` {k.he} said. `I wanted to see how "
       "clever you are.`"});
  if (with_friend) {
    s.say({"`And what does {f.n} get?` asked {h.n}. `We will take turns,` {h.he} said at once.",
           "{h.n} and {f.n} decided to share {x}, because they had found {x.them} together."});
  }
  s.thank('h', 'k');
  s.end(with_friend ? Theme::friendship : Theme::clever);
}

}  // namespace mixtral::stories
