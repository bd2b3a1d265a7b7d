#include "stories/world.h"

#include <utility>

#include "base/error.h"

namespace mixtral::stories {

int World::add_place(int kind) {
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] == kind) return static_cast<int>(i);
  }
  places.push_back(kind);
  return static_cast<int>(places.size()) - 1;
}

int World::add_being(Being being) {
  first_places_.push_back(being.place);
  const int place = being.place;
  beings.push_back(std::move(being));
  seen_.emplace_back(things.size(), -1);
  if (place >= 0) see(place);
  return static_cast<int>(beings.size()) - 1;
}

int World::add_thing(Thing thing) {
  CHECK((thing.holder >= 0) != (thing.place >= 0), "a thing is held or lies somewhere");
  first_things_.push_back(thing);
  const int place = thing.holder >= 0 ? being(thing.holder).place : thing.place;
  things.push_back(std::move(thing));
  for (auto& row : seen_) row.push_back(-1);
  see(place);
  return static_cast<int>(things.size()) - 1;
}

int World::place_of(int x) const {
  const Thing& t = thing(x);
  return t.holder >= 0 ? being(t.holder).place : t.place;
}

void World::see(int place) {
  for (size_t b = 0; b < beings.size(); ++b) {
    if (beings[b].place != place) continue;
    for (size_t x = 0; x < things.size(); ++x) {
      if (!things[x].gone && place_of(static_cast<int>(x)) == place) seen_[b][x] = place;
    }
  }
}

void World::go(int who, int to, std::string why) {
  CHECK(to >= 0 && index(to) < places.size());
  events_.push_back({Event::Kind::go, who, -1, -1, to, std::move(why), true});
  being(who).place = to;
  see(to);
}

void World::take(int who, int x) {
  CHECK(thing(x).holder < 0 && !thing(x).gone, "only what lies about can be picked up");
  CHECK(thing(x).place == being(who).place, "only what is here can be picked up");
  events_.push_back({Event::Kind::take, who, -1, x, being(who).place, {}, true});
  thing(x).holder = who;
  thing(x).place = -1;
  thing(x).spot.clear();
  see(being(who).place);
}

void World::give(int from, int to, int x) {
  CHECK(thing(x).holder == from && !thing(x).gone, "only what one holds can be given");
  CHECK(being(from).place == being(to).place, "one gives to someone who is there");
  events_.push_back({Event::Kind::give, from, to, x, being(from).place, {}, true});
  thing(x).holder = to;
  see(being(to).place);
}

void World::put(int who, int x, std::string spot) {
  CHECK(thing(x).holder == who && !thing(x).gone, "only what one holds can be put down");
  events_.push_back({Event::Kind::put, who, -1, x, being(who).place, {}, true});
  thing(x).holder = -1;
  thing(x).place = being(who).place;
  thing(x).spot = std::move(spot);
  see(being(who).place);
}

void World::lose(int who, int x, std::string spot) {
  CHECK(thing(x).holder == who && !thing(x).gone, "only what one holds can be lost");
  events_.push_back({Event::Kind::lose, who, -1, x, being(who).place, {}, false});
  thing(x).holder = -1;
  thing(x).place = being(who).place;
  thing(x).spot = std::move(spot);
  see(being(who).place);
  seen_[index(who)][index(x)] = -1;
}

int World::make(int who, Thing made) {
  const int x = static_cast<int>(things.size());
  made.holder = who;
  made.place = -1;
  events_.push_back({Event::Kind::make, who, -1, x, being(who).place, {}, true});
  Thing first = made;
  first.gone = true;  // not there yet when the story begins
  first_things_.push_back(std::move(first));
  things.push_back(std::move(made));
  for (auto& row : seen_) row.push_back(-1);
  see(being(who).place);
  return x;
}

void World::consume(int who, int x) {
  CHECK(!thing(x).gone, "a thing can be used up only once");
  CHECK(place_of(x) == being(who).place, "only what is here can be used up");
  events_.push_back({Event::Kind::consume, who, -1, x, being(who).place, {}, true});
  thing(x).gone = true;
}

}  // namespace mixtral::stories
