#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "base/random.h"
#include "stories/teller.h"
#include "stories/world.h"

namespace mixtral::stories {

enum class Season { spring, summer, autumn, winter };
enum class Weather { sunny, windy, rainy, cold };
enum class Mood {
  sad,
  happy,
  proud,
  worried,
  cross,
  afraid,
  lonely,
  sorry,
  excited,
  relieved,
  tired,
  curious
};
enum class Theme {
  new_friend,
  friendship,
  honesty,
  courage,
  sharing,
  meal,
  patience,
  home,
  kindness,
  promise,
  clever
};

/// What sets one story apart from all others: these are drawn first, and their hash decides which
/// split a story belongs to, so that no two splits share a combination.
struct Premise {
  int plot = 0;
  bool animals = false;  // people of the animal village
  Gender gender = Gender::female;
  std::string hero;
  int thing = 0;                // thing_kinds() of the story's main thing
  std::string colour, quality;  // of that thing
  int place = 0;                // place_kinds() of the story's main place
};

/// The set on which a story plays: the world, the teller, and scenes that do both at once, which
/// change the world and say so. Letters are bound as in Teller: h is the hero; the scenes put
/// back what they bind, except for those whom they bring in.
class Stage {
 public:
  Stage(const Premise& premise, RandomStream random);
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  World world;
  RandomStream random;
  Teller teller;
  Premise premise;
  Season season;
  Weather weather;
  int home;  // the hero's
  int main;  // the main place

  void say(std::initializer_list<std::string_view> patterns) { teller.say(patterns); }
  void say(std::string_view pattern) { teller.say(pattern); }
  void maybe(double probability, std::initializer_list<std::string_view> patterns) {
    if (chance(probability)) teller.say(patterns);
  }
  void paragraph() { teller.paragraph(); }
  int pick(int count) { return teller.pick(count); }
  bool chance(double probability) { return teller.chance(probability); }
  std::string_view one_of(std::string_view list) { return choice(list, pick(choice_count(list))); }

  // ---- The cast. Each binds the key and returns the index.
  int hero() const { return teller.bound('h'); }
  int being(char key) const { return teller.bound(key); }
  int thing(char key) const { return teller.bound(key); }
  int place(char key) const { return teller.bound(key); }
  /// A child that is the hero's "friend", "sister", "brother", "cousin"; "child" has no relation
  /// yet.
  int child(char key, std::string_view relation, int place);
  /// One of the hero's mother, father, grandmother, grandfather, aunt, uncle.
  int kin(char key, int place);
  /// A grown-up with a trade, at its place of work; `trade` -1 picks one not yet in the story.
  int elder(char key, int trade = -1);
  /// An animal at a place; a pet of `owner` (-1: wild or nobody's yet). `wild` picks the kind.
  int animal(char key, int place, int owner, bool wild);
  /// The same of a given kind ("squirrel").
  int animal_of(char key, int place, int owner, std::string_view noun);
  int add_place(char key, int kind);
  /// A place of one of the zones, not yet in the story.
  int other_place(char key, std::initializer_list<Zone> zones);
  /// A thing with random colour and quality. `holder` -1 leaves it at `place` at a spot.
  int add_thing(char key, int kind, int owner, int holder, int place = -1);
  /// The premise's thing.
  int main_thing(char key, int owner, int holder, int place = -1);
  /// A random kind with all of the categories and none of the excluded nouns of the story.
  int thing_kind_of(unsigned categories);
  /// The trade whose goods include the noun, or -1.
  int maker_of(int kind);
  std::string_view spot(int place);

  // ---- Scenes: told and done.
  /// Says who the hero is and where; sometimes what the hero likes.
  void open();
  /// A time phrase for the day of the plot: "One windy autumn morning".
  std::string day();
  void weather_line();
  void sight(int place);
  void feel(char who, Mood mood);
  /// The beings of `keys` go to the place; the text says so, with the goal `why` ("to look for
  /// help", may be empty). Nothing is said when the first of them is there already.
  void go(std::string_view keys, int place, const std::string& why = {});
  /// The same without words (the text has said it in another way).
  void go_silently(std::string_view keys, int place);
  void give(char from, char to, char thing);
  void take(char who, char thing);
  /// Something that one does at such a place.
  void pastime(char who, int place);
  /// Says how `who` is found at work.
  void meet_elder(char elder);
  void thank(char who, char whom);
  /// Something small on the way that has nothing to do with the plot, yet shows who the hero is.
  void interlude();
  void end(Theme theme);

  /// The hero gets the thing `key` of that kind: from someone who makes, sells, lends or swaps it,
  /// or by finding it outdoors. Companions go along. `depth` bounds swaps within swaps. Returns the
  /// index of the thing, now in the hero's hands.
  int obtain(char key, int kind, std::string_view companions, int depth);
  /// True when obtain() had the thing lent, so that the plot must give it back.
  bool lent = false;
  char lender = 0;

 private:
  int new_name(Being& being, bool girl);
  int add(char key, Being being);
  int obtain_outdoors(char key, int kind, std::string_view companions);
  std::vector<std::string> names_;
  std::vector<int> trades_used_;
};

}  // namespace mixtral::stories
