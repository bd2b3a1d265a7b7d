#include "stories/stage.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace mixtral::stories {
namespace {

constexpr std::string_view kTraits =
    "cheerful|curious|shy|brave|careful|forgetful|kind|patient|stubborn|quiet|merry|clever|lively|"
    "thoughtful|gentle|dreamy";
constexpr std::string_view kHomes =
    "in a village by the sea|at the edge of a great forest|in a small town with crooked streets|"
    "in a house at the foot of a hill|near a slow brown river|in the last house of the village|"
    "in a cottage with a green door|above a narrow street|in a valley full of orchards|"
    "on the sunny side of the valley|behind the old church|in a house with a red roof";

}  // namespace

Stage::Stage(const Premise& p, RandomStream stream)
    : random(stream), teller(world, random), premise(p) {
  season = static_cast<Season>(pick(4));
  constexpr Weather kWeathers[] = {Weather::sunny, Weather::windy, Weather::rainy};
  weather = season == Season::winter && chance(0.6) ? Weather::cold : kWeathers[pick(3)];
  home = world.add_place(place_kind("home"));
  main = world.add_place(premise.place);
  teller.bind_place('p', main);
  teller.bind_place('o', home);

  Being hero;
  hero.name = premise.hero;
  hero.gender = premise.gender;
  hero.place = home;
  names_.push_back(hero.name);
  const std::string trait(one_of(kTraits));
  if (premise.animals) {
    hero.noun =
        species_kinds()[static_cast<size_t>(pick(static_cast<int>(species_kinds().size())))].young;
    hero.intro = with_article((chance(0.5) ? trait : std::string("little")) + " " + hero.noun);
  } else {
    hero.noun = premise.gender == Gender::female ? "girl" : "boy";
    hero.intro = chance(0.2)
                     ? "a " + hero.noun + " of " + number_word(5 + pick(6))
                     : with_article((chance(0.7) ? trait + " " : std::string()) + hero.noun);
  }
  hero.intro += (chance(0.5) ? " called " : " named ") + hero.name;
  add('h', std::move(hero));
}

int Stage::add(char key, Being being) {
  const int index = world.add_being(std::move(being));
  teller.bind_being(key, index);
  return index;
}

/// A name that no one in the story has; first letters differ while that is possible, because names
/// that look alike are hard to tell apart.
int Stage::new_name(Being& being, bool girl) {
  const auto list = premise.animals ? animal_child_names() : girl ? girl_names() : boy_names();
  for (int attempt = 0;; ++attempt) {
    const std::string name(list[static_cast<size_t>(pick(static_cast<int>(list.size())))]);
    const bool taken = std::any_of(names_.begin(), names_.end(), [&](const std::string& other) {
      return other == name || (attempt < 20 && other[0] == name[0]);
    });
    if (taken) continue;
    names_.push_back(name);
    being.name = name;
    return attempt;
  }
}

int Stage::child(char key, std::string_view relation, int place) {
  Being being;
  const bool girl = relation == "sister" || (relation != "brother" && chance(0.5));
  being.gender = girl ? Gender::female : Gender::male;
  being.noun = girl ? "girl" : "boy";
  if (premise.animals) {
    const auto kinds = species_kinds();
    being.noun =
        relation == "sister" || relation == "brother"
            ? world.being(hero()).noun
            : std::string(kinds[static_cast<size_t>(pick(static_cast<int>(kinds.size())))].young);
  }
  being.place = place;
  new_name(being, girl);
  if (relation == "child") {
    being.intro = with_article((chance(0.5) ? "small " : "") + being.noun) +
                  (chance(0.5) ? " called " : " named ") + being.name;
  } else {
    being.kin_of = hero();
    const bool sibling = relation == "sister" || relation == "brother";
    constexpr std::string_view kFriend = "|good |best ", kSibling = "|little |big ";
    being.intro = std::string(sibling                ? one_of(kSibling)
                              : relation == "friend" ? one_of(kFriend)
                                                     : std::string_view());
    being.intro.append(relation).append(" ").append(being.name);
  }
  return add(key, std::move(being));
}

int Stage::kin(char key, int place) {
  constexpr std::string_view kFemale = "mother|grandmother|aunt|mother";
  constexpr std::string_view kMale = "father|grandfather|uncle|father";
  Being being;
  // Of the other gender than the hero more often, for clear pronouns.
  const bool female = (premise.gender == Gender::male) == chance(0.7);
  being.gender = female ? Gender::female : Gender::male;
  being.noun = one_of(female ? kFemale : kMale);
  being.intro = being.noun;
  being.kin_of = hero();
  being.place = place;
  return add(key, std::move(being));
}

int Stage::elder(char key, int trade) {
  const auto list = trades();
  while (trade < 0) {
    const int t = pick(static_cast<int>(list.size()));
    if (std::find(trades_used_.begin(), trades_used_.end(), t) == trades_used_.end()) trade = t;
  }
  trades_used_.push_back(trade);
  Being being;
  const Trade& work = list[static_cast<size_t>(trade)];
  being.noun = work.noun;
  const bool female = !being.noun.ends_with("man") && chance(0.5);
  being.gender = female ? Gender::female : Gender::male;
  being.trade = trade;
  being.place = world.add_place(place_kind(work.place));
  const std::string title(female ? "Mrs " : "Mr ");
  while (being.name.empty()) {
    std::string surname;
    if (premise.animals) {
      const auto kinds = species_kinds();
      surname = kinds[static_cast<size_t>(pick(static_cast<int>(kinds.size())))].old_name;
    } else {
      const auto names = surnames();
      surname = names[static_cast<size_t>(pick(static_cast<int>(names.size())))];
    }
    // Each surname once in a story, whatever the title.
    if (std::find(names_.begin(), names_.end(), surname) != names_.end()) continue;
    names_.push_back(surname);
    being.name = title + surname;
  }
  being.intro = (chance(0.25) ? "old " : "") + being.name + " the " + being.noun;
  return add(key, std::move(being));
}

int Stage::animal(char key, int place, int owner, bool wild) {
  const auto kinds = animal_kinds();
  while (true) {
    const AnimalKind& kind = kinds[static_cast<size_t>(pick(static_cast<int>(kinds.size())))];
    if (kind.pet == wild) continue;
    if (kind.water && world.place(place).zone != Zone::water) continue;
    return animal_of(key, place, owner, kind.noun);
  }
}

int Stage::animal_of(char key, int place, int owner, std::string_view noun) {
  const auto kinds = animal_kinds();
  int kind = 0;
  while (kinds[static_cast<size_t>(kind)].noun != noun) ++kind;
  const AnimalKind& k = kinds[static_cast<size_t>(kind)];
  Being being;
  being.noun = k.noun;
  being.animal = kind;
  being.place = place;
  const std::string looks(one_of(k.looks));
  if (owner >= 0) {
    being.name = one_of(k.names);
    being.gender = chance(0.5) ? Gender::female : Gender::male;
    being.intro = looks + " " + being.noun + " " + being.name;
    being.kin_of = owner;
  } else {
    being.intro = with_article(looks + " " + being.noun);
  }
  return add(key, std::move(being));
}

int Stage::add_place(char key, int kind) {
  const int place = world.add_place(kind);
  teller.bind_place(key, place);
  return place;
}

int Stage::other_place(char key, std::initializer_list<Zone> zones) {
  const auto kinds = place_kinds();
  while (true) {
    const int kind = 1 + pick(static_cast<int>(kinds.size()) - 1);
    const Zone zone = kinds[static_cast<size_t>(kind)].zone;
    if (std::find(zones.begin(), zones.end(), zone) == zones.end()) continue;
    if (std::find(world.places.begin(), world.places.end(), kind) != world.places.end()) continue;
    return add_place(key, kind);
  }
}

std::string_view Stage::spot(int place) { return one_of(world.place(place).spots); }

int Stage::add_thing(char key, int kind, int owner, int holder, int place) {
  const ThingKind& k = thing_kinds()[static_cast<size_t>(kind)];
  Thing thing;
  thing.kind = kind;
  const bool first = std::none_of(world.things.begin(), world.things.end(),
                                  [&](const Thing& other) { return other.kind == kind; });
  if (kind == premise.thing && first) {
    thing.colour = premise.colour;
    thing.quality = premise.quality;
  } else {
    if (!k.colours.empty()) thing.colour = one_of(k.colours);
    if (!k.qualities.empty() && chance(0.6)) thing.quality = one_of(k.qualities);
  }
  thing.owner = owner;
  thing.holder = holder;
  if (holder < 0) {
    thing.place = place;
    thing.spot = spot(place);
  }
  const int index = world.add_thing(std::move(thing));
  teller.bind_thing(key, index);
  return index;
}

int Stage::main_thing(char key, int owner, int holder, int place) {
  return add_thing(key, premise.thing, owner, holder, place);
}

int Stage::thing_kind_of(unsigned categories) {
  const auto kinds = thing_kinds();
  while (true) {
    const int kind = pick(static_cast<int>(kinds.size()));
    if ((kinds[static_cast<size_t>(kind)].categories & categories) != categories) continue;
    if (kind == premise.thing) continue;
    const bool taken = std::any_of(world.things.begin(), world.things.end(),
                                   [&](const Thing& thing) { return thing.kind == kind; });
    if (!taken) return kind;
  }
}

int Stage::maker_of(int kind) {
  const std::string_view noun = thing_kinds()[static_cast<size_t>(kind)].noun;
  const auto list = trades();
  std::vector<int> able;
  for (size_t t = 0; t < list.size(); ++t) {
    if (std::find(trades_used_.begin(), trades_used_.end(), static_cast<int>(t)) !=
        trades_used_.end()) {
      continue;
    }
    for (int i = 0; i < choice_count(list[t].goods); ++i) {
      if (choice(list[t].goods, i) == noun) able.push_back(static_cast<int>(t));
    }
  }
  return able.empty() ? -1 : able[static_cast<size_t>(pick(static_cast<int>(able.size())))];
}

std::string Stage::day() {
  constexpr std::string_view kSeasons[] = {"spring", "summer", "autumn", "winter"};
  constexpr std::string_view kWeathers[] = {"sunny", "windy", "rainy", "frosty"};
  const std::string s(kSeasons[static_cast<int>(season)]), w(kWeathers[static_cast<int>(weather)]);
  constexpr std::string_view kDays = "morning|day|afternoon|Saturday|Sunday";
  const std::string d(one_of(kDays));
  switch (pick(5)) {
    case 0:
      return "One " + w + " " + d + " in " + s;
    case 1:
      return "One " + w + " " + s + " " + (d == "Saturday" || d == "Sunday" ? "day" : d);
    case 2:
      return "On " + with_article(w + " " + d);
    case 3:
      return "One " + w + " " + d;
    default:
      return "One " + d + " in " + s;
  }
}

void Stage::open() {
  const Teller::Scope scope(teller);
  teller.bind_text('w', std::string(one_of(kHomes)));
  switch (pick(4)) {
    case 0:
      say({"Once there was {h.i} who lived {w}.", "There was once {h.i}, who lived {w}."});
      break;
    case 1:
      say({"{h.i} lived {w}.", "{W}, there lived {h.i}."});
      break;
    case 2:
      say({"Have you heard of {h.i}?", "Everybody knew {h.i}, or so it seemed.",
           "This is the story of {h.i}.", "Let me tell you about {h.i}."});
      break;
    default:
      say({"Not long ago, {w}, there lived {h.i}.",
           "In the days when everyone knew everyone, {h.i} lived {w}."});
      break;
  }
  maybe(0.35, {"{h} could whistle like a blackbird.", "{h} asked a hundred questions a day.",
               "{h} had a pocket full of useful things: string, a nail, and half a biscuit.",
               "{h} could run faster than [the wind|most dogs].",
               "{h} liked stories, above all those with [bears|pirates|a happy end].",
               "{h} had never been further than the next hill.",
               "{h} believed that every day has a surprise in it.",
               "{h} liked rainy days as much as sunny ones.", "{h} knew every cat in the street.",
               "{h} was always the first to wake up and the last to go to bed.",
               "{h} kept a list of all the birds that came to the window.",
               "{h} could never sit still for long.", "{h} liked to do things {h.his} own way.",
               "{h} had [muddy knees|untidy hair] and a very big smile.",
               "Nobody laughed as loudly as {h.n}.", "Everybody in the street liked {h.o}.",
               "{h} talked a lot when {h.he} was happy and very little when {h.he} was not.",
               "{h} had a habit of [singing|humming] while {h.he} worked.",
               "What {h} liked best was a day with nothing to do."});
}

void Stage::weather_line() {
  switch (weather) {
    case Weather::sunny:
      return say({"The sun was warm, and [the birds were singing|the sky was as blue as a plate].",
                  "There was not a cloud in the sky.",
                  "It was a day that smelled of [flowers|warm grass].",
                  "The sun shone [on every roof|through the leaves]."});
    case Weather::windy:
      return say({"The wind [rattled the gate|sang in the chimney|pulled at the washing].",
                  "The clouds raced across the sky like sheep.",
                  "It was so windy that [hats|leaves] flew down the street."});
    case Weather::rainy:
      return say({"Rain drummed on the roof[ all morning|].", "The puddles grew bigger and bigger.",
                  "Grey clouds hung low, and it [rained|dripped] without a stop.",
                  "The rain ran down the window in little rivers."});
    case Weather::cold:
      return say({"There was ice on the puddles.", "Every breath made a little cloud.",
                  "Frost flowers had grown on the windows.",
                  "It was so cold that [even the sparrows sat still|the ground rang like iron]."});
  }
}

void Stage::sight(int place) {
  const Teller::Scope scope(teller);
  teller.bind_place('v', place);
  teller.bind_text('w', std::string(world.place(place).sight));
  say({"{V.in}, {w}.", "There, {w}.", "{W}."});
}

void Stage::feel(char who, Mood mood) {
  const Teller::Scope scope(teller);
  teller.bind_being('u', being(who));
  switch (mood) {
    case Mood::sad:
      return say({"{u} could not help crying.",
                  "All the joy had gone out of the day, and {u} felt it.", "{u} felt very sad.",
                  "Tears came to {u.s} eyes.", "{u} sat down and cried a little.",
                  "{u} did not feel like playing any more.",
                  "{u.s} heart felt as heavy as a stone.", "{u} swallowed hard and said nothing."});
    case Mood::happy:
      return say({"{u} was so happy that {u.he} [danced|jumped] on the spot.",
                  "{u} could have hugged the whole world.", "{u} beamed.", "{u} laughed out loud.",
                  "{u} smiled from ear to ear.", "{u} felt warm all over.",
                  "{u} clapped for joy."});
    case Mood::proud:
      return say({"{u} felt [ten feet|very] tall.", "{u} felt as if {u.he} had grown an inch.",
                  "{u} held {u.his} head high.", "{u} was very proud.",
                  "{u} stood a little straighter.", "{u} could not stop smiling."});
    case Mood::worried:
      return say({"{u} walked up and down and thought.", "A small cold worry sat in {u.s} chest.",
                  "{u} was worried.", "{u} bit {u.his} lip.",
                  "{u} had a cold feeling in {u.his} tummy.", "{u} did not know what to do."});
    case Mood::cross:
      return say({"{u} was very cross.", "{u} stamped {u.his} foot.", "{u} went red with anger.",
                  "{u} turned away and would not speak."});
    case Mood::afraid:
      return say({"{u.s} knees began to shake.",
                  "{u} was so afraid that {u.he} could hardly breathe.",
                  "{u.s} heart beat like a drum.", "{u} did not dare to move.",
                  "{u} held {u.his} breath.", "{u} wanted to run away."});
    case Mood::lonely:
      return say({"{u} felt lonely.", "{u} wished for someone to play with.",
                  "It is no fun to be alone, and {u} knew it."});
    case Mood::sorry:
      return say({"{u.s} cheeks burned.", "{u} would have liked to hide.", "{u} felt very sorry.",
                  "{u} was ashamed and looked at the ground.",
                  "{u} wished that {u.he} could turn back the clock."});
    case Mood::excited:
      return say({"{u} could hardly wait.", "{u} was so excited that {u.he} hopped on one leg.",
                  "{u.s} eyes grew big and round."});
    case Mood::relieved:
      return say({"{u} breathed out[ at last|].", "{u} was so glad that {u.he} had to sit down.",
                  "A great weight fell from {u.s} heart."});
    case Mood::tired:
      return say({"By now, {u.s} legs were tired.", "{u} was tired and hungry.", "{u} yawned."});
    case Mood::curious:
      return say({"{u} wanted to know more.", "{u} had to find out.",
                  "{u} tilted {u.his} head and wondered."});
  }
}

void Stage::go_silently(std::string_view keys, int place) {
  for (char key : keys) {
    if (world.being(being(key)).place != place) world.go(being(key), place);
  }
}

void Stage::go(std::string_view keys, int to, const std::string& why) {
  if (world.being(being(keys[0])).place == to) return go_silently(keys, to);
  const Teller::Scope scope(teller);
  for (char key : keys) world.go(being(key), to, why);
  teller.bind_place('v', to);
  teller.bind_text('w', why.empty() ? std::string() : " " + why);
  teller.bind_being('u', being(keys[0]));
  const Zone zone = world.place(to).zone;
  constexpr std::string_view kVillage =
      "|||down the narrow street |along the lane |past the church ";
  constexpr std::string_view kNature =
      "|||along the winding path |over the fields |past the last houses ";
  constexpr std::string_view kWater =
      "|||along the sandy path |through the reeds |past the last houses ";
  teller.bind_text('j', std::string(zone == Zone::village  ? one_of(kVillage)
                                    : zone == Zone::nature ? one_of(kNature)
                                    : zone == Zone::water  ? one_of(kWater)
                                                           : std::string_view()));
  if (keys.size() == 1) {
    return say({"{u} [went|walked|ran|hurried] {j}{v.to}{w}.",
                "A little later, {u} [went|ran|walked] {j}{v.to}{w}.",
                "[As fast as {u.he} could|Without a word], {u} [went|ran] {j}{v.to}{w}.",
                "So {u} [went|set off] {j}{v.to}{w}.",
                "[Soon|Before long], {u} was on the way {v.to}{w}.",
                "{u} did not wait a minute and [ran|went|hurried] {j}{v.to}{w}.",
                "Then {u} [walked|went|made {u.his} way] {j}{v.to}{w}."});
  }
  teller.bind_being('i', being(keys[1]));
  const bool they = teller.recent(being(keys[0])) && teller.recent(being(keys[1]));
  if (they && chance(0.7)) {
    return say({"Together they [went|walked|ran] {j}{v.to}{w}.",
                "They [went|walked|hurried] {j}{v.to}{w}.",
                "Side by side, they [walked|went] {j}{v.to}{w}.",
                "So off they went {j}{v.to}{w}."});
  }
  say({"{u.n} and {i.n} [went|walked|ran] {j}{v.to}{w}.",
       "So {u.n} and {i.n} set off {j}{v.to}{w}.",
       "{u.n} and {i.n} [went|walked|hurried] together {j}{v.to}{w}."});
}

void Stage::give(char from, char to, char x) {
  const Teller::Scope scope(teller);
  world.give(being(from), being(to), thing(x));
  teller.bind_being('u', being(from));
  teller.bind_being('j', being(to));
  teller.bind_thing('i', thing(x));
  say({"{u} gave {i} to {j.o}.", "{u} [held out|handed] {i} to {j.o}.",
       "{u} reached out and gave {j.o} {i}.", "`Here,` said {u.n}, and gave {i} to {j.o}.",
       "{u} gave {j.o} {i} with a smile.", "And so {u} gave {j.o} {i}.",
       "Then {u} put {i} into {j.s} arms."});
}

void Stage::take(char who, char x) {
  const Teller::Scope scope(teller);
  world.take(being(who), thing(x));
  teller.bind_being('u', being(who));
  teller.bind_thing('i', thing(x));
  say({"{u} picked up {i}.", "{u} took {i}.", "{u} bent down and picked up {i}.",
       "Carefully, {u} picked up {i}."});
}

void Stage::pastime(char who, int place) {
  const Teller::Scope scope(teller);
  teller.bind_being('u', being(who));
  if (world.place(place).air == kIndoors) {
    if (world.place(place).zone != Zone::village) {
      return say({"{u} looked into every corner.", "{u} stood still for a while and listened.",
                  "{u} called out loud and waited for the echo.", "{u} sat down and ate an apple.",
                  "{u} tried to remember every single thing {u.he} saw."});
    }
    return say({"{u} looked into every corner.", "{u} talked to everyone {u.he} met.",
                "{u} asked so many questions that people laughed.",
                "{u} looked at everything twice.", "{u} stood still for a while and listened.",
                "{u} watched the people at work.",
                "{u} tried to remember every single thing {u.he} saw."});
  }
  switch (world.place(place).zone) {
    case Zone::village:
      return say({"{u} looked at everything [twice|from all sides].",
                  "{u} talked to everyone {u.he} met.",
                  "{u} stopped to watch two men carry a wardrobe.",
                  "{u} read all the signs out loud.", "{u} counted the pigeons on the roof.",
                  "{u} waved to the postman.", "{u} watched a cat wash its ears."});
    case Zone::nature:
      return say({"{u} climbed [a tree|a gate|over a fence].", "{u} picked a bunch of flowers.",
                  "{u} ran in circles until {u.he} was dizzy.",
                  "{u} lay on {u.his} back and watched the clouds.",
                  "{u} followed a beetle for a long while.",
                  "{u} called out loud and waited for the echo.",
                  "{u} rolled down a slope and laughed."});
    case Zone::water:
      return say({"{u} threw stones into the water.", "{u} built a little dam out of mud.",
                  "{u} dipped {u.his} toes into the cold water.",
                  "{u} watched the small fish dart about.",
                  "{u} made a boat out of bark and let it go.", "{u} hopped from stone to stone."});
    case Zone::house:
      return say({"{u} looked out of the window for a while.",
                  "{u} built a tower and knocked it down.", "{u} played under the table.",
                  "{u} hummed a little song.", "{u} helped with the washing up."});
  }
}

void Stage::meet_elder(char elder) {
  const Teller::Scope scope(teller);
  const Being& person = world.being(being(elder));
  teller.bind_being('u', being(elder));
  teller.bind_place('v', person.place);
  CHECK(person.trade >= 0);
  teller.bind_text('w', std::string(trades()[static_cast<size_t>(person.trade)].busy));
  say({"{u} {w}, as always.", "{u} {w}, but looked up at once.", "There, {u} {w}.",
       "{V.in}, {u} {w}.", "{u} {w} [when they met|just then]."});
}

void Stage::thank(char who, char whom) {
  const Teller::Scope scope(teller);
  teller.bind_being('u', being(who));
  teller.bind_being('j', being(whom));
  say({"`Thank you, {j.n}!` said {u.n}.",
       "{u} thanked {j.o} [with all {u.his} heart|again and again|with a hug].",
       "`Oh, thank you!` cried {u.n}.", "`I will never forget this,` said {u.n}.",
       "{u} did not know how to thank {j.o}."});
}

}  // namespace mixtral::stories
