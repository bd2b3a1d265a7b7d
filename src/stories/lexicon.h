#pragma once

#include <span>
#include <string_view>

namespace mixtral::stories {

/// Tables of words that the small world is made of. A field that lists several words separates them
/// by '|'; `choices(list)` counts and picks them.

enum class Zone { house, village, nature, water };

enum Air : unsigned {
  kIndoors = 0,
  kOpen = 1,  // under the sky: games, storms
  kWild = 3,  // and far enough out to lose one's way
};

struct PlaceKind {
  std::string_view name;  // "the market"
  std::string_view in;    // "at the market"
  std::string_view to;    // "to the market"
  Zone zone;
  Air air;
  std::string_view spots;    // where a thing may lie there: "under a stall|behind the barrels"
  std::string_view sight;    // one thing to see or hear there, a clause
  std::string_view reasons;  // why one goes there: "to buy eggs|to buy carrots"
};

enum Category : unsigned {
  kToy = 1,        // what a child plays with
  kTreasure = 2,   // small and dear
  kWear = 4,       // worn, and can be lost
  kTool = 8,       // good for a task
  kFood = 16,      // can be eaten and shared
  kNature = 32,    // lies about outdoors
  kMade = 64,      // a grown-up with a trade makes or sells it
  kMusic = 128,    // makes a sound
  kVessel = 256,   // holds things
  kFragile = 512,  // breaks when it falls
  kReach = 1024,   // helps to get someone out of a hole or off a ledge
  kSkill = 2048,   // takes practice
  kGrow = 4096,    // helps to plant a seed
  kBuild = 8192,   // helps to build a hut
};

struct ThingKind {
  std::string_view noun;  // "kite"
  unsigned categories;
  std::string_view colours;    // adjectives of colour; empty: has none worth saying
  std::string_view qualities;  // size, material or age: "little|wooden|old"
  bool plural = false;         // "boots": they, were
};

struct Chore {
  std::string_view ask;  // "sweep the floor"
  std::string_view did;  // "swept every corner of the floor"
};

/// A grown-up's work: where, with what, and how a child can help.
struct Trade {
  std::string_view noun;   // "baker"
  std::string_view place;  // a PlaceKind's name
  std::string_view goods;  // thing nouns that this person makes, sells or can spare
  std::string_view busy;   // what this person is seen doing: "was pulling loaves from the oven"
  std::span<const Chore> chores;
};

struct AnimalKind {
  std::string_view noun;   // "puppy"
  std::string_view looks;  // adjectives: "brown|spotted|small"
  std::string_view sound;  // past tense: "barked"
  std::string_view names;  // when it is somebody's pet: "Biscuit|Patch"
  std::string_view home;   // a wild one's home: "its nest"; empty for pets
  std::string_view food;   // "a crust of bread"
  bool pet;
  bool water = false;  // lives in or on the water
};

struct SpeciesKind {          // people of the animal village
  std::string_view young;     // "rabbit"
  std::string_view old_name;  // "Mr Badger"'s noun: "Badger"
};

std::span<const std::string_view> girl_names();
std::span<const std::string_view> boy_names();
std::span<const std::string_view> surnames();
std::span<const std::string_view> animal_child_names();
std::span<const SpeciesKind> species_kinds();
std::span<const PlaceKind> place_kinds();
std::span<const ThingKind> thing_kinds();
std::span<const Trade> trades();
std::span<const AnimalKind> animal_kinds();

/// Index of the kind with this name or noun. CHECKs that it exists.
int place_kind(std::string_view name);
int thing_kind(std::string_view noun);

/// Number of entries of a '|' list, and the i-th of them.
int choice_count(std::string_view list);
std::string_view choice(std::string_view list, int index);

}  // namespace mixtral::stories
