// Stories of adventure: animals, storms, the dark, the wrong way.
#include <string>

#include "stories/plots.h"

namespace mixtral::stories {
namespace {

const AnimalKind& kind_of(const Stage& s, int being) {
  return animal_kinds()[static_cast<size_t>(s.world.being(being).animal)];
}

}  // namespace

void tell_lost_animal(Stage& s) {
  const bool wild = s.chance(0.5);
  s.open();
  s.maybe(0.5, {"{h} loved animals, big and small.",
                "{h} had always wished for an animal of {h.his} own."});
  s.paragraph();
  int owner = -1;
  if (!wild)
    owner = s.chance(0.5)
                ? s.elder('g')
                : s.child('g', "child", s.other_place('q', {Zone::village, Zone::nature}));
  const int a = s.animal('a', s.main, -1, wild);
  const AnimalKind kind = kind_of(s, a);
  const int x = s.main_thing('x', s.hero(), s.hero());
  s.teller.bind_text('t', s.day());
  s.teller.bind_text('n', std::string(kind.noun));
  s.teller.bind_text('m', std::string(kind.sound));
  s.teller.bind_text('r', std::string(s.spot(s.main)));
  s.go_silently("h", s.main);
  s.say({"{T}, {h} was {p.in} with {x.a} in {h.his} bag when {h.he} heard something. {R} sat {a}.",
         "{T}, {h} went {p.to} and took {x.a} along for lunch. There, {r}, {h} found {a}."});
  s.say({"The {n} {m} and looked up with big eyes.", "It {m} very softly and trembled.",
         "The {n} was [shaking|wet and cold], and it {m}."});
  s.say({"{h} knelt down, very slowly, so as not to frighten it.",
         "`Poor thing,` said {h.n}. `Are you lost?`", "`Where do you belong?` asked {h.n}.",
         "`Do not be afraid,` said {h.n}."});
  if (s.chance(0.6)) {
    s.world.consume(s.hero(), x);
    s.say({"{h} broke {x} into little bits, and the {n} ate them all, down to the last crumb.",
           "{h} shared {x} with the {n}. It must have been very hungry, for soon {x.it} {x.was} "
           "gone."});
  } else {
    s.say({"The {n} sniffed at {x}, but it was too afraid to eat.",
           "{h} sat quite still until the {n} came closer, step by step."});
  }
  s.paragraph();
  if (wild) {
    s.teller.bind_text('w', std::string(kind.home));
    s.say(
        {"{h} wanted to take the {n} home. But then {h.he} thought of its mother, who must be "
         "looking for it.",
         "`Can I keep you?` {h.n} whispered. But {h.he} knew the answer. A {n} belongs outdoors."});
    if (s.chance(0.5)) {
      const int g = s.elder('e');
      s.say({"{h} did not know what to do, and so {h.he} carried the {n} to {e.o}."});
      s.go_silently("ha", s.world.being(g).place);
      s.say({"`It needs {w},` said {e.n}. `It is not far, and you will hear its family call.`",
             "{e.n} put on {e.his} glasses. `This little one needs {w},` {e.he} said. `Be quick, "
             "before it gets dark.`"});
    } else {
      s.say({"{h} listened. Somewhere, not far away, another {n} was calling.",
             "{h} looked for tracks on the ground and found some, small and fresh."});
    }
    const int q = s.other_place('s', {kind.water ? Zone::water : Zone::nature});
    s.go_silently("ha", q);
    s.say({"So {h} carried the {n} {s.to}, very carefully.",
           "With the {n} under {h.his} coat, {h} walked all the way {s.to}."});
    s.say({"There it was: {w}! The {n} wriggled free and ran.",
           "{S.in}, {h} found {w}. The {n} gave a happy jump and was gone."});
    s.say({"At the last moment it turned and looked back[, as if to say thank you|].",
           "{h} waved until there was nothing more to see."});
    s.feel('h', s.chance(0.5) ? Mood::happy : Mood::proud);
    s.paragraph();
    return s.end(Theme::kindness);
  }
  s.say({"It wore a little [red|blue|green] collar, so it had to belong to someone.",
         "Somebody must be missing it, that was certain."});
  const bool asks = s.chance(0.7);
  if (asks) {
    const int e = s.elder('e');
    s.go("ha", s.world.being(e).place);
    s.meet_elder('e');
    s.say(
        {"`Whose {n} is this?` asked {h.n}. {E.n} scratched {e.his} chin. `I think I have seen it "
         "with {g.n},` {e.he} said.",
         "`That is not mine,` said {e.n}, `but {g.n} has one that looks just like it.`"});
  } else {
    s.say(
        {"{h} knocked at every door in the street. At the last one, somebody said, `Try {g.n}!`"});
  }
  s.go("ha", s.world.being(owner).place, "to find " + s.world.being(owner).name);
  s.teller.bind_text('c', std::string(s.one_of(kind.names)));
  s.say({"`{C}!` cried {g.n}, and the {n} jumped up at {g.him} and {m}.",
         "The {n} saw {g} first and ran as fast as its legs would carry it. `{C}, there you are!` "
         "{g.he} cried."});
  s.thank('g', 'h');
  s.say({"`Come and visit us whenever you like,` {g} added.",
         "`Would you like to take {c} for a walk every day?` asked {g.n}. {H.n} did not need to "
         "think about it."});
  s.paragraph();
  s.end(s.world.being(owner).trade < 0 && s.chance(0.5) ? Theme::new_friend : Theme::kindness);
}

void tell_rescue(Stage& s) {
  s.open();
  s.paragraph();
  const int a = s.animal('a', s.main, -1, s.chance(0.5));
  const AnimalKind kind = kind_of(s, a);
  s.teller.bind_text('t', s.day());
  s.teller.bind_text('n', std::string(kind.noun));
  s.teller.bind_text('m', std::string(kind.sound));
  const bool with_friend = s.chance(0.5);
  std::string companions;
  s.go_silently("h", s.main);
  if (with_friend) {
    s.child('f', s.chance(0.5) ? "friend" : "brother", s.main);
    companions += 'f';
    s.say({"{T}, {h.n} and {f} were {p.in} when they heard a cry.",
           "{T}, {h} went {p.to} with {f.o}. Suddenly they both stopped."});
  } else {
    s.say({"{T}, {h} was {p.in} when {h.he} heard a cry.",
           "{T}, {h} went {p.to}. Suddenly {h.he} stopped and listened."});
  }
  const bool bird = kind.noun == "owl" || kind.noun == "swallow" || kind.noun == "parrot";
  constexpr std::string_view kTraps =
      "in a deep hole|on a narrow ledge|behind a heap of fallen stones|in a thorn bush";
  s.teller.bind_text('r', std::string(s.one_of(kTraps)));
  s.say({"It was {a}, stuck {r}. It {m} and could not get out.",
         "{A} was caught {r}, and it {m} for help."});
  if (bird) s.maybe(0.7, {"One of its wings was hurt, so it could not fly."});
  s.say({"{h} stretched out as far as {h.he} could, but {h.his} arms were too short.",
         "{h} tried to climb to it, but [the stones were slippery|the thorns were too sharp].",
         "`Come, come!` called {h.n}. But the {n} was too frightened to move."});
  const std::string noun(thing_kinds()[static_cast<size_t>(s.premise.thing)].noun);
  s.teller.bind_text('c', thing_kinds()[static_cast<size_t>(s.premise.thing)].plural
                              ? "a pair of " + noun
                              : with_article(noun));
  if (with_friend) {
    s.say({"`What we need is {c},` said {f.n}.",
           "`If only we had {c}!` said {f.n}. `Then it might work.`"});
    s.say({"`Wait here!` {h} called to the {n}. `We will be back!`"});
  } else {
    s.say(
        {"`If only I had {c}!` thought {h.n}.", "Then {h} had an idea. With {c}, it might work."});
    s.say({"`Wait here!` {h} called to the {n}. `I will be back!`"});
  }
  s.paragraph();
  const int x = s.obtain('x', s.premise.thing, companions, s.chance(0.3) ? 1 : 0);
  s.paragraph();
  s.go("h" + companions, s.main);
  s.say({"The {n} was still there, [tired and small|waiting].",
         "`I am here again,` called {h.n}. The {n} pricked up its ears.",
         "By now the {n} hardly moved."});
  s.say(
      {"Slowly, very slowly, {h} reached out with {x}. Bit by bit the {n} came nearer, and then it "
       "was free!",
       "With the help of {x}, {h} got close at last, took hold of the {n}, and pulled. Out it "
       "came!",
       "{h} tried it once with {x}, and it went wrong. The second time it worked. The {n} was "
       "free!"});
  s.say({"It shook itself and {m}.", "It licked {h.s} fingers[ and {m}|].",
         "For a moment it sat quite still, as if it could not believe it."});
  s.feel('h', s.chance(0.5) ? Mood::relieved : Mood::happy);
  if (s.lent) {
    s.paragraph();
    const int g = s.being(s.lender);
    s.go("h" + companions, s.world.being(g).place, "to give back the " + noun);
    s.give('h', s.lender, 'x');
    s.teller.bind_being('u', g);
    s.say({"`Well,` said {u.n}, `did it help?` And {h.n} told the whole story.",
           "`You kept your word,` said {u.n}."});
  } else {
    s.maybe(0.5, {"The {n} followed {h.o} all the way to the first houses."});
    (void)x;
  }
  s.end(s.lent ? Theme::promise : s.chance(0.5) ? Theme::clever : Theme::kindness);
}

void tell_shelter(Stage& s) {
  const int x = s.main_thing('x', s.hero(), s.hero());
  s.open();
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.go_silently("h", s.main);
  s.say({"{T}, {h} went {p.to} with {x.full}.", "{T}, {h} packed {x.a} and walked {p.to}."});
  s.pastime('h', s.main);
  const bool snow = s.season == Season::winter;
  if (snow) {
    s.say({"Then the snow came, thick and fast, and soon {h} could not see the path.",
           "Suddenly the air was full of snow. The path was gone."});
  } else {
    s.say(
        {"Then the sky turned black. There was a flash and a crash, and the rain came down in "
         "sheets.",
         "All at once a storm came up. Branches cracked, and hail danced on the ground."});
  }
  s.feel('h', Mood::afraid);
  const int barn = place_kind("the old barn"), cave = place_kind("the cave");
  const bool in_cave = s.premise.place == barn || (s.premise.place != cave && s.chance(0.5));
  const int q = s.add_place('q', in_cave ? cave : barn);
  s.say({"{h} put {h.his} head down and ran.", "`I must get out of this,` thought {h.n}."});
  s.go("h", q, snow ? "to get out of the snow" : "to get out of the rain");
  s.paragraph();
  const bool child = s.premise.animals || s.chance(0.5);
  if (child) {
    const int c = s.child('c', "child", q);
    s.say({"But somebody was there already. It was {c}, who was shivering in a corner.",
           "`Who is there?` said a voice in the dark. It was {c}."});
    s.say(
        {"`I am afraid of the [storm|noise],` said {c.n}. `So am I,` said {h.n}, and they moved "
         "close together.",
         "{c.n} had lost the way and had been sitting there for an hour."});
    const unsigned what = s.world.kind(x).categories;
    if (what & kFood) {
      s.world.consume(s.hero(), x);
      s.say({"{h.n} still had {x}. They shared {x.them}, bite for bite, and felt better."});
    } else if (what & kWear) {
      s.world.give(s.hero(), c, x);
      s.say(
          {"{c.n} was so cold that {c.his} teeth chattered. {h.n} took off {x} and gave {x.them} "
           "to {c.o}.",
           "{h.n} looked at {x}, and then {h.he} gave {x.them} to {c.n}, who was colder."});
    } else {
      s.say({"{h.n} showed {c.n} {x}, and for a while they forgot the storm.",
             "With {x}, they made a little game to pass the time."});
    }
    s.say(
        {("`What is your favourite soup?` asked {h.n}, and soon they were talking about everything "
          "under the sun."),
         "They made shadows on the wall: a dog, a goose, a dragon.",
         "They told each other riddles until it was quiet outside.",
         "They sang every song they knew, and some of them twice.",
         "They counted between the flash and the thunder: one, two, three, four."});
  } else {
    const int a = s.animal('a', q, -1, true);
    s.teller.bind_text('n', s.world.being(a).noun);
    s.say({"Something moved in a corner. It was {a}, and it was afraid, too.",
           "Two eyes shone in the dark. {h} held {h.his} breath. It was only {a}!"});
    s.say({"{h} sat down, not too near. After a while, the {n} came and lay down beside {h.o}.",
           "`We will wait together,` {h} whispered to the {n}. It was warm and soft, and it did "
           "not run away."});
    s.say({"Outside it roared and howled, but the two of them kept each other warm.",
           "{h} told the {n} a long story, and it listened with both ears."});
  }
  s.paragraph();
  s.say({"At last the clouds broke, and a piece of blue looked through.",
         snow ? "At last it stopped snowing. The whole world was white and still."
              : "At last the rain stopped, and a rainbow stood over the hills."});
  if (child) {
    s.go("hc", s.home);
    s.say({"There they both got hot milk and dry socks.",
           "At the door, {h.s} mother counted twice, for now there were two of them."});
    return s.end(Theme::new_friend);
  }
  s.go("h", s.home);
  s.end(Theme::home);
}

void tell_darkness(Stage& s) {
  const bool cellar = s.chance(0.5);
  const int q = s.add_place('q', place_kind(cellar ? "the cellar" : "the attic"));
  s.kin('k', s.home);
  const int x = s.main_thing('x', s.being('k'), -1, q);
  s.open();
  s.say({"{h} was not afraid of dogs or spiders. But {h.he} was afraid of the dark.",
         "There was only one thing that {h} did not like, and that was the dark."});
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.teller.bind_text('w', s.world.thing(x).spot);
  s.say({"{T}, {k} said, `Please fetch {x} for me. {X.it} {x.is} {q.in}, {w}.`",
         "{T}, {k} needed {x}. `Run {q.to} and bring {x.them},` {k.he} said. `You will find "
         "{x.them} {w}.`"});
  s.say({"{h} went as far as the door and stopped. Behind it was nothing but black.",
         "{h} put one foot over the threshold and pulled it back again.",
         "{h} opened the door a crack. It was as dark as ink."});
  s.say({"Something [creaked|rustled]!", "Was that a [breath|step]?",
         "There was a scratching noise."});
  s.feel('h', Mood::afraid);
  s.paragraph();
  const int way = s.pick(3);
  std::string keys = "h";
  if (way == 0) {
    s.child('f', s.chance(0.5) ? "brother" : "sister", s.home);
    s.say(
        {"`I will hold your sleeve,` said {f.n}, who had heard everything. `Then we "
         "are two.`",
         "`Are you afraid, too?` asked {f.n}. `Then let us be afraid together.`"});
    keys += 'f';
  } else if (way == 1) {
    s.say(
        {"{h} fetched a [candle|lamp]. The little light made a yellow circle, and in that circle "
         "everything looked friendly.",
         "Then {h} remembered the lamp by the door, and lit it."});
  } else {
    s.say(
        {"`Sing,` {k.n} had once said, `and the dark will listen.` So {h.n} began to sing, first "
         "quietly and then loudly.",
         "{h} took a deep breath and counted the steps: one, two, three."});
  }
  s.go(keys, q);
  s.say(
      {"The noise came again. {h} looked, and there sat a [mouse|moth|little cat], and it was more "
       "afraid than {h.he} was.",
       "What had made the noise? It was only [a loose shutter|an old coat on a hook|a drop of "
       "water]!",
       "Two yellow eyes? No, two brass buttons on an old coat!",
       "The monster in the corner was [a coat on a nail|an old chair with a hat on it]."});
  s.feel('h', s.chance(0.5) ? Mood::relieved : Mood::happy);
  s.world.take(s.hero(), x);
  s.say({"{h} took {x} and marched back.",
         "And there, {w}, {x.was} {x}. {H} took {x.them} and shut the door with a bang."});
  s.go_silently(keys, s.home);
  s.give('h', 'k', 'x');
  s.say(
      {"`That was quick,` said {k.n}. `Was it dark?` `A little,` said {h.n}.",
       "`Thank you,` said {k.n}. `Were you not afraid?` `Yes,` said {h.n}, `but only at first.`"});
  if (s.chance(0.5)) {
    s.say({"The next evening, {h} went {q.to} again, just to say hello to the dark."});
  }
  s.paragraph();
  s.end(Theme::courage);
}

void tell_lost_way(Stage& s) {
  const int x = s.main_thing('x', s.hero(), s.hero());
  s.open();
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.go_silently("h", s.main);
  s.say({"{T}, {h} went {p.to} with {x.a} in {h.his} pocket.",
         "{T}, {h} was {p.in}. In {h.his} pocket {h.he} had {x.a}."});
  if (s.season == Season::winter) {
    s.say(
        {"There were tracks on the ground, small and fresh, and {h} followed them, round one bush "
         "and then another.",
         "A hare crossed the path, white as milk, and {h} ran after it, on and on."});
  } else {
    s.say({"A butterfly flew by, blue as the sky, and {h} ran after it, left and right, on and on.",
           "A [hare|squirrel] crossed the path, and {h} followed it, round one bush and then "
           "another.",
           "{h} saw berries, and a little further on there were more berries, and then even more.",
           "Somewhere a cuckoo called, now here, now there, and {h} wanted to see it."});
  }
  s.say({"When {h} stopped, nothing looked the way it should. Which way was home?",
         "Then {h} looked up. {H.he} had never seen these trees before."});
  s.feel('h', Mood::afraid);
  s.say({"{h} called, but only the echo answered.", "The shadows grew longer, and an owl called."});
  s.paragraph();
  switch (s.pick(4)) {
    case 0:
      s.say(
          {"Then {h} remembered what {h.his} grandfather used to say: follow the water, and it "
           "will bring you to people.",
           "`Water runs down to the village,` thought {h.n}."});
      s.say(
          {"{h} kept quite still until {h.he} heard a stream. Then {h.he} walked beside it, down "
           "and down.",
           "There was a little stream under the ferns. {h} followed it, step by step."});
      break;
    case 1:
      s.say(
          {"Then {h} climbed the highest tree and looked round. Far away, a thin line of smoke "
           "rose into the air.",
           "From the top of a rock, {h} saw one small light."});
      s.say({"`That must be a chimney,` {h} said, and walked straight towards it.",
             "{h} fixed {h.his} eyes on it and did not look left or right."});
      break;
    case 2: {
      s.say(
          {"Then {h} had an idea. {H} would leave a mark on every tree, so as not to walk in a "
           "circle.",
           "`If I stay calm, I can think,` {h} told {h.self}, and laid a row of little stones "
           "behind {h.o}."});
      s.say({"Twice {h.he} came back to the same place, and twice {h.he} took another way.",
             "It took long, but the third path was the right one."});
      break;
    }
    default: {
      s.child('c', "child", s.main);
      s.say(
          {"Then the leaves moved, and out came {c}. `Are you lost?` {c.he} asked. `I live nearby. "
           "I will show you the way.`",
           "There, on a log, sat {c}, whistling. `I know every path here,` {c.he} said."});
      s.world.give(s.hero(), s.being('c'), x);
      s.world.thing(x).owner = s.being('c');
      s.say({"{h.n} was so glad that {h.he} gave {c.o} {x} as a thank-you.",
             "On the way, {h.n} gave {x} to {c.n}. It was all that {h.he} had."});
      break;
    }
  }
  s.go("h", s.home);
  s.say({"The door opened, and there were arms around {h.o}.",
         "`We were just coming to look for you!` somebody called.",
         "The lamp in the window had never looked so bright."});
  if (s.world.thing(x).holder == s.hero()) {
    s.maybe(0.6, {"That evening, {h} put {x} on the windowsill, to remember the day.",
                  "{h} held on to {x} even in bed."});
  }
  s.paragraph();
  s.end(s.chance(0.5) ? Theme::home : Theme::clever);
}

void tell_thief(Stage& s) {
  const int owner = s.kin('k', s.home);
  const int x = s.main_thing('x', owner, -1, s.home);
  s.open();
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.teller.bind_text('w', s.world.thing(x).spot);
  const bool food = (s.world.kind(x).categories & kFood) != 0;
  if (food) {
    s.say({"{T}, {k} put {x.a} by the open window to cool. A little later {x.it} {x.was} gone!"});
  } else {
    s.say(
        {"{T}, {k} was looking for {x.a}. `I left {x.them} {w},` {k.he} said, `and now {x.it} "
         "{x.is} gone!`"});
  }
  s.say(
      {"And that was not all. The day before, a spoon had disappeared, and before that, a shiny "
       "button.",
       "The neighbours were missing things, too: a sock, a spoon, a bit of string."});
  s.say({"`There is a thief about,` said {k.n}[ darkly|].",
         "`Who would do such a thing?` asked {k.n}."});
  s.say({"{h} decided to find out.", "`I will catch the thief,` said {h.n}.",
         "`Leave it to me,` said {h.n}, and fetched {h.his} notebook."});
  s.paragraph();
  const int a = s.animal_of('a', s.main, -1, s.chance(0.6) ? "squirrel" : "hedgehog");
  s.teller.bind_text('n', s.world.being(a).noun);
  if (s.chance(0.6)) {
    s.say({"First {h} looked for tracks. On the windowsill were some tiny scratches.",
           "{h} sprinkled flour on the windowsill. In the morning there were little marks in it."});
    s.say({"`No person has feet like that,` {h.he} thought.",
           "More of them led across the yard, as clear as letters in a book.",
           "A thread hung from the gate, and a little further on there was another one."});
  } else {
    s.say({"{h} hid behind the curtain and hardly dared to breathe.",
           "That night {h} stayed awake and listened to every sound."});
    s.say({"Then something small scurried along the wall and was gone.",
           "There! A shadow, no bigger than a cat, ran across the yard."});
  }
  s.go("h", s.main, "to follow the trail");
  // The animal carried the thing off when nobody looked.
  s.world.go(a, s.home);
  s.world.take(a, x);
  s.world.go(a, s.main);
  const std::string spot(s.spot(s.main));
  s.teller.bind_text('w', spot);
  s.world.put(a, x, spot);
  s.say(
      {"The trail ended {w}. And there, on a bed of leaves, sat {a}, with the sock, the spoon, and "
       "the string.",
       "{W}, {h} found the thief. It was {a}!"});
  if (food) {
    s.world.consume(a, x);
    s.say({"Of {x}, only a few crumbs were left.",
           "{X} {x.was} eaten up, and the {n} looked very round."});
  } else {
    s.say({"And there {x.was} {x}, right in the middle.", "{X} {x.was} part of its nest."});
  }
  s.say({"Beside it lay three babies, all asleep.",
         food ? "It had only been hungry, and it did not know what a windowsill is for."
              : "It had only wanted to make a soft bed for the winter."});
  s.say({"`So it was you,` said {h.n}, and had to smile.", "{h} could not be angry.",
         "{h} laughed out loud. What a thief!"});
  if (!food) {
    s.world.take(s.hero(), x);
    s.say({"{h} took {x} and left an old woollen sock in its place.",
           "Carefully, {h} swapped {x} for a handful of soft hay."});
    s.go("h", s.home);
    s.give('h', 'k', 'x');
  } else {
    s.go("h", s.home);
  }
  s.say({"`The thief is no bigger than a loaf of bread,` {h.n} told {k.o}.",
         "`And who was it?` asked {k.n}. `Somebody who did not know better,` said {h.n}."});
  s.paragraph();
  s.end(s.chance(0.6) ? Theme::clever : Theme::kindness);
}

}  // namespace mixtral::stories
