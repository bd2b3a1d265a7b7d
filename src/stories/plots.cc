#include "stories/plots.h"

namespace mixtral::stories {
namespace {

constexpr unsigned bit(Zone zone) { return 1u << static_cast<unsigned>(zone); }
constexpr unsigned kVillage = bit(Zone::village), kNatureZone = bit(Zone::nature);
constexpr unsigned kWater = bit(Zone::water);
constexpr unsigned kOutside = kVillage | kNatureZone | kWater;

constexpr Plot kPlots[] = {
    {"lost thing", tell_lost_thing, kTreasure | kWear | kToy, kOutside},
    {"wish", tell_wish, kMade, kOutside},
    {"lost animal", tell_lost_animal, kFood, kOutside, true},
    {"rescue", tell_rescue, kReach, kNatureZone | kWater, true},
    {"quarrel", tell_quarrel, kToy | kTreasure, kOutside},
    {"broken", tell_broken, kFragile, kOutside},
    {"birthday", tell_birthday, kMade, kOutside},
    {"shelter", tell_shelter, kFood | kWear | kTool, kNatureZone | kWater, false, kOpen},
    {"darkness", tell_darkness, kTool | kTreasure | kFood, kOutside},
    {"lost way", tell_lost_way, kTreasure | kFood, kNatureZone, false, kWild},
    {"cooking", tell_cooking, kFood, kOutside},
    {"garden", tell_garden, kGrow, kOutside},
    {"newcomer", tell_newcomer, kToy | kTreasure, kOutside},
    {"race", tell_race, kTreasure | kMade, kOutside, false, kOpen},
    {"borrowed", tell_borrowed, kTool | kVessel | kToy, kOutside},
    {"thief", tell_thief, kTreasure | kFood, kOutside, true},
    {"delivery", tell_delivery, kMade | kFood | kTreasure, kOutside},
    {"treasure", tell_treasure, kTreasure | kToy, kOutside},
    {"sharing", tell_sharing, kFood, kOutside, false, kOpen},
    {"ill friend", tell_ill_friend, kTreasure | kToy | kFood, kOutside},
    {"building", tell_building, kBuild, kNatureZone | kWater, false, kOpen},
    {"practice", tell_practice, kSkill, kOutside},
    {"finder", tell_finder, kTreasure | kWear, kOutside},
    {"boast", tell_boast, kToy | kWear | kTreasure, kOutside, false, kOpen},
};

}  // namespace

std::span<const Plot> plots() { return kPlots; }

}  // namespace mixtral::stories
