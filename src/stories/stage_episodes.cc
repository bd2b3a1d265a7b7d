// The longer scenes of a Stage: getting something, a small encounter, an ending.
#include <string>

#include "base/error.h"
#include "stories/stage.h"

namespace mixtral::stories {

void Stage::interlude() {
  switch (pick(9)) {
    case 0:
      return say(
          {"On the way, an old woman dropped her basket, and potatoes rolled everywhere. {h.n} "
           "[picked up every one|helped her to pick them up].",
           "An old man was trying to push a cart up the street. {h.n} put down everything and "
           "pushed too."});
    case 1:
      return say(
          {"A [black|thin|ginger] cat followed for a while and then [thought better of it|jumped "
           "over a wall].",
           "A robin hopped along the wall, as if it wanted to come too."});
    case 2:
      return say(
          {"Somebody was playing the fiddle behind an open window, and {h.n} stopped to listen.",
           "From somewhere came the smell of pancakes, and {h.s} tummy grumbled."});
    case 3:
      return say(
          {"On the bridge {h.n} stopped to drop a stick into the water and watch it come out on "
           "the other side.",
           "{h} jumped over every puddle on the way, except one."});
    case 4:
      return say({"A little boy had lost his shoe in the mud, and {h.n} pulled it out for him.",
                  "A snail was crossing the path. {h} carried it to the other side."});
    case 5:
      return say({"The church clock struck [nine|ten|eleven].", "Far away, a dog was barking.",
                  "A cart full of hay rolled by."});
    case 6:
      return say({"{h} met the milkman, who [tipped his cap|wished everyone a good day].",
                  "Two women were chatting at the corner, and both of them waved."});
    case 7:
      return weather_line();
    default:
      return say({"{h} counted the steps: one hundred, two hundred, three hundred.",
                  "{h} sang a song [about a frog|without any words] to make the way shorter.",
                  "{h} thought about it all the way."});
  }
}

void Stage::end(Theme theme) {
  switch (theme) {
    case Theme::new_friend:
      return say({"From that day on, they [were the best of friends|did everything together].",
                  "And that is how a friendship began.",
                  "And to think that in the morning they had not even known each other!",
                  "They played until the stars came out, and the next day they played again.",
                  "That day, {h} went out alone and came home with a friend.",
                  "Some friends you look for, thought {h.n}, and some you find by chance.",
                  "{h} fell asleep that night with a smile, because it is good to have a friend."});
    case Theme::friendship:
      return say(
          {"Since then, there are always two of them, in sun and in rain.",
           "When people ask {h.o} what {h.he} likes best, {h.he} does not say a thing, but a name.",
           "And if they have not quarrelled, they are playing still.",
           ("That evening, two lights burned a little longer than usual, for both of them had a "
            "lot to tell."),
           "A friend, thought {h.n}, is better than any [treasure|toy].",
           "They played until the stars came out, and the next day they played again.",
           "After that, nobody ever saw the one without the other.",
           "{h} fell asleep that night with a smile, because it is good to have a friend."});
    case Theme::honesty:
      return say(
          {"{h} had learned that the truth is hard for a minute and a lie is hard for a long time.",
           "That night {h} slept well, for there was nothing left to hide.",
           "It is better to tell the truth, thought {h.n}, even with shaky knees.",
           "{h} never forgot how good it felt to have said it.",
           "An honest word, {h} had learned, mends more than glue.",
           "And from then on, {h.n} told the truth at once.",
           "The truth had been heavy, but now {h} felt as light as a feather."});
    case Theme::courage:
      return say({"{h} was still a little afraid sometimes, but {h.he} knew what to do about it.",
                  "To be brave, {h} had found out, is to be afraid and to go all the same.",
                  "That evening {h} told the story three times, and each time it grew a little.",
                  "From then on, everyone called {h.him} {h.n} the Brave.",
                  "And the next time, it was only half as hard.",
                  "Fear is big from far away and small from close by, thought {h.n}.",
                  "{h} never forgot the day when {h.he} was brave."});
    case Theme::sharing:
      return say({"{h} had less than before, and yet {h.he} felt richer.",
                  "Half of something nice, thought {h.n}, is twice as nice with a friend.",
                  "One toy and two friends is better than two toys and no friend.",
                  "To have something is nice, thought {h.n}, but to give something is nicer.",
                  "And so both of them were happy, and not only one.",
                  "What is shared is never lost, and {h} was glad to know it."});
    case Theme::meal:
      return say({"Things taste better when they are shared, and there was enough for everyone.",
                  "They ate every crumb and laughed until it was dark.",
                  "A full table and a full house: there is nothing better.",
                  "{h} counted the happy faces and was content.",
                  "And nobody went home hungry that day.",
                  "{h} was so full that {h.he} had to be carried to bed.",
                  "It was the best meal of the whole year, and everyone had helped to make it."});
    case Theme::patience:
      return say({"Good things take time, and {h} had learned to wait.",
                  "A little every day, that is how it is done.",
                  "And whenever {h} looked at it, {h.he} remembered how long it had taken.",
                  "Nobody had believed it, but {h} had kept on.",
                  "{h} had not given up, and that was the whole secret.",
                  "Slowly and steadily, thought {h.n}, you get there too.",
                  "It had taken a long time, but it was worth every minute.",
                  "Whenever something seemed too hard after that, {h.n} simply tried once more."});
    case Theme::home:
      return say(
          {"And the kettle sang as if nothing had happened.",
           "{h} told the whole story twice, and then {h.he} fell asleep in the middle of a word.",
           "Outside it grew dark, but inside it was light and warm.",
           ("{h} looked out of the window once more, and then {h.he} pulled the blanket up to "
            "{h.his} nose."),
           "It was good to be home.",
           "That night {h} lay in bed and listened to the wind, warm and safe.",
           "There was soup on the stove and a light in the window, and {h} was very glad.",
           "{h} ate two bowls of soup and was asleep before the spoon was dry.",
           "No place, thought {h.n}, is as nice as the one where somebody waits for you."});
    case Theme::kindness:
      return say(
          {"When {h} went to bed that night, {h.he} was smiling.",
           "It was a small thing, but small things can be big.",
           "And everyone who heard about it felt a little better, too.",
           "Somebody had needed help, and {h} had been there. That was all, and it was enough.",
           "A kind deed is never too small, and {h} never forgot it.",
           "Kindness is like a ball: it comes back to the one who throws it.",
           "{h} went home [singing|with a warm heart].",
           "{h} felt warm inside for the rest of the day.",
           "And the next day, someone was kind to {h.n} too.",
           "It had cost nothing at all, and yet it had made the whole day better."});
    case Theme::promise:
      return say(
          {"From then on, {h.s} word was as good as gold.",
           "It is easy to promise and hard to keep it, but {h} had done both.",
           "`If {h.n} says so, it will be so,` people said after that.",
           "A promise is a promise, and {h} had kept it.",
           "{h} had given {h.his} word, and now everybody knew that it was good.",
           "After that, people trusted {h.n} with even bigger things.",
           "{h} was tired that night, but {h.he} had kept {h.his} promise, and that felt good."});
    case Theme::clever:
      return say(
          {"Sometimes it is not the strongest who wins, but the one who thinks.",
           "First look, then think, then do: that was {h.s} rule from then on.",
           "{h} told nobody how {h.he} had thought of it. A little secret is fun.",
           "The answer had been there all the time. One only had to see it.",
           "Everyone agreed that it had been a very clever idea.",
           "A good idea, thought {h.n}, weighs nothing and lifts a lot.",
           "{h} had used {h.his} eyes, {h.his} ears and {h.his} head, and that was enough."});
  }
}

int Stage::obtain_outdoors(char key, int kind, std::string_view companions) {
  const Teller::Scope scope(teller);
  const int depth_place = other_place('v', {Zone::nature, Zone::water});
  const int x = add_thing(key, kind, -1, -1, depth_place);
  std::string keys = "h";
  keys += companions;
  const std::string noun(world.kind(x).noun);
  go(keys, depth_place, "to look for " + (world.kind(x).plural ? noun : with_article(noun)));
  maybe(0.4, {"{h} looked to the left and to the right.", "At first there was nothing at all.",
              "{h} searched for a long time."});
  maybe(0.4, {"{h} had almost given up when something caught {h.his} eye."});
  teller.bind_thing('i', x);
  teller.bind_text('j', world.thing(x).spot);
  world.take(hero(), x);
  say({"{J}, {h} found {i.a}.", "And there {i.was} {i.a}, right {j}. {h} picked {i.them} up.",
       "Then {h} saw {i.a} {j} and picked {i.them} up.", "At last {h} found {i.a} {j}."});
  world.thing(x).owner = hero();
  return x;
}

int Stage::obtain(char key, int kind, std::string_view companions, int depth) {
  const int trade = maker_of(kind);
  if (trade < 0) return obtain_outdoors(key, kind, companions);
  const Teller::Scope scope(teller);
  const char seller = depth >= 2 ? 'g' : depth == 1 ? 'e' : 'l';
  const int who = elder(seller, trade);
  const int shop = world.being(who).place;
  const int x = add_thing(key, kind, who, who);
  std::string keys = "h";
  keys += companions;
  const std::string noun(world.kind(x).noun);
  const std::string wanted = world.kind(x).plural ? "some " + noun : with_article(noun);
  if (world.being(hero()).place != shop) {
    teller.bind_being('u', who);
    say({"If anyone had " + wanted + ", it was {u}.",
         "`{U.n} might have " + wanted + "!` thought {h.n}.",
         "Then {h} remembered {u}, who [always had|surely had] " + wanted + "."});
    go(keys, shop);
  }
  teller.bind_thing('i', x);
  meet_elder(seller);
  teller.bind_being('u', who);
  say({"`Please, could I have {i.a}?` asked {h.n}.",
       "`Good day,` said {h.n}. `Do you have {i.a} for me?`",
       "{h} plucked up {h.his} courage and asked for {i.a}.",
       "`I am looking for {i.a},` said {h.n}. `It is very important.`",
       "{h} told {u.o} what {h.he} needed.", "`I need {i.a},` said {h.n}, `but I have no money.`",
       "{h} asked {u.o} for {i.a}."});

  int method = pick(4);
  const bool tool = (world.kind(x).categories & kTool) != 0 && !lent;
  if (method == 3 && !tool) method = pick(2);
  if (method == 1 && depth == 0) method = 0;
  switch (method) {
    case 0: {
      const auto chores = trades()[static_cast<size_t>(trade)].chores;
      const Chore& chore = chores[static_cast<size_t>(pick(static_cast<int>(chores.size())))];
      teller.bind_text('w', std::string(chore.ask));
      teller.bind_text('j', std::string(chore.did));
      say({"`You can have {i.them} if you {w},` said {u.n}.",
           "`I will give you {i.a},` said {u.n}, `if you help me to {w}.`",
           "`Help me to {w},` said {u.n}, `and {i.it} [will be|{i.is}] yours.`"});
      say({"So {h} {j}.", "{h} rolled up {h.his} sleeves and {j}.",
           "{h} went to work at once and {j}.", "{h} did not need to be told twice. {H.he} {j}.",
           "All afternoon {h} worked. {H.he} {j}.", "It was hard work, but {h} {j}."});
      maybe(0.5, {"{U} was [very|more than] pleased.", "`Well done!` said {u.n}.",
                  "`I have never seen anyone work so hard,` said {u.n}."});
      give(seller, 'h', key);
      world.thing(x).owner = hero();
      break;
    }
    case 1: {
      // A swap: what the other one wants must be got first, one level further down.
      int wanted_kind = thing_kind_of(chance(0.5) ? kMade : kNature | kTreasure);
      const char other = depth >= 2 ? 'y' : 'z';
      const std::string other_noun(thing_kinds()[static_cast<size_t>(wanted_kind)].noun);
      const std::string other_wanted = thing_kinds()[static_cast<size_t>(wanted_kind)].plural
                                           ? "some " + other_noun
                                           : with_article(other_noun);
      teller.bind_text('j', other_wanted);
      say(
          {"`I will swap {i.them} for {j},` said {u.n}. `I have wanted {j} for [years|a long "
           "time].`",
           "{u} thought for a moment. `Bring me {j},` {u.he} said, `and you shall have {i}.`",
           "`What I need is {j},` said {u.n}. `Bring me that, and you may have {i}.`"});
      maybe(0.5, {"`I will find one!` said {h.n}.", "{h} nodded and was out of the door.",
                  "{h} promised to try."});
      if (chance(0.5)) paragraph();
      obtain(other, wanted_kind, companions, depth - 1);
      if (chance(0.5)) paragraph();
      go(keys, shop);
      give('h', seller, other);
      world.thing(thing(other)).owner = who;
      teller.bind_thing('i', x);
      teller.bind_being('u', who);
      maybe(0.6, {"`You really found one!` said {u.n}.",
                  "`A fair swap,` said {u.n}, and shook hands on it.",
                  "`Just what I wanted!` said {u.n}.", "{U} was delighted.",
                  "{U} turned it over and over and smiled."});
      teller.bind_thing('i', x);
      give(seller, 'h', key);
      world.thing(x).owner = hero();
      break;
    }
    case 3:
      lent = true;
      lender = seller;
      say({"`I can lend {i.them} to you,` said {u.n}, `but please bring {i.them} back.`",
           "`Take mine,` said {u.n}, `but do not forget to return {i.them}.`",
           "`You may borrow {i.them} until this evening,` said {u.n}."});
      give(seller, 'h', key);
      maybe(0.5, {"`I promise!` said {h.n}.", "{h} promised to bring {i.them} back."});
      break;
    default:
      say({"`Take this one,` said {u.n}. `It is a present.`", "`For you? Any time,` said {u.n}.",
           "{u} listened to the whole story and [nodded|smiled].",
           "`You have a good heart,` said {u.n}. `Here you are.`",
           "`I was young once, too,` said {u.n} with a smile.",
           "{u} looked at {h.o} for a while and then nodded."});
      give(seller, 'h', key);
      world.thing(x).owner = hero();
      thank('h', seller);
      break;
  }
  return x;
}

}  // namespace mixtral::stories
