#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "stories/grammar.h"
#include "stories/lexicon.h"

namespace mixtral::stories {

/// A person or an animal. `place` is where it is now.
struct Being {
  std::string name;   // "Mia", "Mrs Hale", "Biscuit"; empty: spoken of by noun ("the puppy")
  std::string noun;   // "girl", "baker", "puppy", "mother"
  std::string intro;  // how the text first speaks of it, a phrase without possessor: "friend Tom"
  Gender gender = Gender::neuter;
  int kin_of = -1;  // intro and a nameless noun are possessed by this being: "her mother"
  int place = -1;
  int trade = -1;   // index into trades()
  int animal = -1;  // index into animal_kinds()
};

/// Something that can be held. Exactly one of `holder` and `place` is set while it exists.
struct Thing {
  int kind = 0;         // index into thing_kinds()
  std::string colour;   // "red" or ""
  std::string quality;  // "wooden" or ""
  int owner = -1;
  int holder = -1;
  int place = -1;
  std::string spot;   // "under a bench" while it lies at a place
  bool gone = false;  // eaten, melted, broken for good
};

/// What happened, in order. Fields that do not apply are -1 or empty.
struct Event {
  enum class Kind { go, take, give, put, lose, make, consume };
  Kind kind;
  int who = -1, whom = -1, thing = -1, place = -1;
  std::string why;   // the goal that the text states: "to look for her kite"
  bool told = true;  // the text says so (a thing dropped unnoticed is not told)
};

/// The simulated state of one story. Every change goes through a method that checks that it is
/// possible (one can only give what one holds, to someone who is there), so that a text told from
/// these events cannot contradict itself.
class World {
 public:
  std::vector<Being> beings;
  std::vector<Thing> things;
  std::vector<int> places;  // indices into place_kinds(): the places of this story

  int add_place(int kind);
  int add_being(Being being);
  /// A thing in someone's hands (holder >= 0), or at a place.
  int add_thing(Thing thing);

  const PlaceKind& place(int p) const {
    return place_kinds()[static_cast<size_t>(places[index(p)])];
  }
  const ThingKind& kind(int x) const {
    return thing_kinds()[static_cast<size_t>(things[index(x)].kind)];
  }
  Being& being(int b) { return beings[index(b)]; }
  const Being& being(int b) const { return beings[index(b)]; }
  Thing& thing(int x) { return things[index(x)]; }
  const Thing& thing(int x) const { return things[index(x)]; }

  /// `who` goes to a place with all that it holds. `why` is the goal as the text states it.
  void go(int who, int to, std::string why = {});
  /// Picks up a thing that lies where `who` is.
  void take(int who, int thing);
  /// Hands over a thing; both are at the same place.
  void give(int from, int to, int thing);
  /// Lays a thing down at a spot of the place where `who` is.
  void put(int who, int thing, std::string spot);
  /// The same without noticing it; the loser does not learn where it lies.
  void lose(int who, int thing, std::string spot);
  /// A new thing comes into being in the hands of `who`.
  int make(int who, Thing thing);
  /// A thing ceases to be: eaten, used up, broken.
  void consume(int who, int thing);

  /// Where the thing is, in someone's hands or not.
  int place_of(int thing) const;
  /// The place where `who` last saw the thing, or -1.
  int last_seen(int who, int thing) const { return seen_[index(who)][index(thing)]; }

  const std::vector<Event>& events() const { return events_; }
  /// Positions and holders at the beginning, for replaying the events.
  const std::vector<int>& first_places() const { return first_places_; }
  const std::vector<Thing>& first_things() const { return first_things_; }

 private:
  static size_t index(int i) { return static_cast<size_t>(i); }
  void see(int place);  // everyone there sees everything there

  std::vector<Event> events_;
  std::vector<std::vector<int>> seen_;  // [being][thing]
  std::vector<int> first_places_;       // [being]
  std::vector<Thing> first_things_;     // [thing]
};

}  // namespace mixtral::stories
