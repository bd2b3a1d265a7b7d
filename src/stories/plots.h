#pragma once

#include <span>
#include <string_view>

#include "stories/stage.h"

namespace mixtral::stories {

/// A family of stories. `tell` plays one on the stage; its main thing has one of the categories and
/// its main place lies in one of the zones (bit masks).
struct Plot {
  std::string_view name;
  void (*tell)(Stage&);
  unsigned things;
  unsigned zones;
  bool people_only = false;  // makes no sense in the animal village
  unsigned air = kIndoors;   // what the main place must be at least
};

std::span<const Plot> plots();

// Told in plots_*.cc; each begins with who and where, brings a want or a trouble, resolves it
// and closes with an ending line.
void tell_lost_thing(Stage& s);
void tell_wish(Stage& s);
void tell_lost_animal(Stage& s);
void tell_rescue(Stage& s);
void tell_quarrel(Stage& s);
void tell_broken(Stage& s);
void tell_birthday(Stage& s);
void tell_shelter(Stage& s);
void tell_darkness(Stage& s);
void tell_lost_way(Stage& s);
void tell_cooking(Stage& s);
void tell_garden(Stage& s);
void tell_newcomer(Stage& s);
void tell_race(Stage& s);
void tell_borrowed(Stage& s);
void tell_thief(Stage& s);
void tell_delivery(Stage& s);
void tell_treasure(Stage& s);
void tell_sharing(Stage& s);
void tell_ill_friend(Stage& s);
void tell_building(Stage& s);
void tell_practice(Stage& s);
void tell_finder(Stage& s);
void tell_boast(Stage& s);

}  // namespace mixtral::stories
