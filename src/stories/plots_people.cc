// Stories about people: gifts, promises, new friends, sharing, learning.
#include <string>

#include "stories/plots.h"

namespace mixtral::stories {

void tell_birthday(Stage& s) {
  s.kin('k', s.home);
  s.open();
  const int kind = s.premise.thing;
  const std::string noun(thing_kinds()[static_cast<size_t>(kind)].noun);
  s.teller.bind_text('n', thing_kinds()[static_cast<size_t>(kind)].plural ? "a pair of " + noun
                                                                          : with_article(noun));
  s.say({"It was the day before {k.s} birthday, and {h} had no present yet.",
         "{k.s} birthday was coming, and {h} wanted to give {k.him} something special."});
  s.say({"{h} lay in bed and thought. A drawing? A song? No, {n} it had to be.",
         "`What would {k.he} like best?` {h.n} wondered. Then it came to {h.o}: {n}!",
         "{h} knew that {k.n} had always wanted {n}.",
         "Once {k} had said, `How I would love to have {n}!` {h.n} had not forgotten."});
  s.say({"But there was [not a single coin|nothing but a button] in {h.his} money box.",
         "But where could {h.he} get it without any money?"});
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.go_silently("h", s.main);
  s.say({"{T}, {h} slipped out of the house and went {p.to} to think.",
         "{T}, {h} told nobody anything and ran {p.to}."});
  s.maybe(0.5, {"`I need a plan,` {h} told a [sparrow|pigeon].",
                "There {h} walked up and down, three times."});
  bool companion = false;
  if (s.chance(0.4)) {
    s.child('f', "friend", s.main);
    s.say(
        {"There {h.he} met {f.o}. `I will come with you,` said {f.n}. `Two heads are better than "
         "one.`",
         "{f} was there too and wanted to help."});
    companion = true;
  }
  const int x = s.obtain('x', kind, companion ? "f" : "", 1);
  s.paragraph();
  if (s.lent) {
    // Nothing that is lent can be given away: ask for it.
    const char g = s.lender;
    s.teller.bind_being('u', s.being(g));
    s.say(
        {"Only then did {h} say what it was for. `A present?` said {u.n}. `Then keep {x.them}. I "
         "have another.`"});
  }
  s.world.thing(x).owner = s.being('k');
  s.go("h", s.home);
  s.say(
      {"{h} wrapped {x} in [newspaper|an old cloth|leaves and grass] and hid {x.them} under the "
       "bed until morning.",
       "All night, {x} lay under {h.s} pillow. {h} hardly slept at all."});
  s.say({"`Happy birthday!` cried {h.n}[ at breakfast|].",
         "In the morning, {h} sang a birthday song, a little out of tune."});
  s.give('h', 'k', 'x');
  s.say({"`You remembered!` said {k.n}, and had to wipe {k.his} eyes.",
         "{k.n} turned {x} over and over. `I will keep {x.them} for ever,` {k.he} said.",
         "`How did you know?` asked {k.n}.",
         "{k.n} did not say a word for a while. Then {k.he} hugged {h.n} very tight.",
         "`This is the best present I have ever had,` said {k.n}.", "{k.s} eyes were shining."});
  s.end(s.chance(0.5) ? Theme::kindness : Theme::home);
}

void tell_newcomer(Stage& s) {
  const bool hero_is_new = s.chance(0.4);
  s.open();
  s.child('f', "child", s.main);
  const int newcomer = hero_is_new ? s.hero() : s.being('f');
  const int other = hero_is_new ? s.being('f') : s.hero();
  s.teller.bind_being('a', newcomer);
  s.teller.bind_being('b', other);
  const int x = s.main_thing('x', newcomer, newcomer);
  if (hero_is_new) {
    s.say({"{h} had only just moved there and did not know a soul.",
           "Everything was new to {h.o}: the house, the street, and all the faces."});
  } else {
    s.say({"{h} knew everyone, or at least {h.he} thought so.",
           "One week, a new family came to live next door."});
  }
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.go_silently("h", s.main);
  if (hero_is_new) {
    s.say(
        {"{T}, {h} went {p.to} with {x.full}. Some children were playing there, but {h} did not "
         "dare to ask.",
         "{T}, {h} took {x.a} along and sat down {p.in}, a little way off from the others."});
    s.feel('h', Mood::lonely);
    s.say({"Then {f} [came over|stopped beside {h.o}].", "After a while, {f} looked up."});
  } else {
    s.say(
        {"{T}, {p.in}, {h} saw {f}, all alone. {F.n} was holding {x.a} and looking at the ground.",
         "{T}, {h} went {p.to}. There sat {f} with {x.a}, and nobody spoke to {f.o}."});
    s.say({"{h} remembered how it feels to be alone.",
           "It takes a little courage to say hello. {h} counted to three.",
           "`Somebody should say hello,` thought {h.n}. `Somebody is me.`"});
  }
  s.say({"`What have you got there?` asked {b.n}.", "`That is a fine {x.n},` said {b.n}.",
         "`Hello,` said {b.n}. `I like your {x.n}.`"});
  s.say({"{a.n} blushed. `It comes from my old home,` {a.he} said.",
         "{a.n} was too shy to answer and only held out {x}.",
         "`You can hold it,` said {a.n} quietly."});
  s.world.give(newcomer, other, x);
  s.say(
      {"{b.n} took {x} and [looked at {x.them} from all sides|tried {x.them} out]. Then {b.he} "
       "laughed, and {a.n} laughed too.",
       "So {a.n} let {b.n} have {x} for a while, and one question led to another."});
  s.maybe(
      0.6,
      {"`Do you know the best place for hiding?` asked {b.n}. `Come on, I will show you!`",
       "{b.n} showed {a.n} the tree with the hole, the wall with the cat, and the secret path."});
  const int q = s.other_place('q', {Zone::nature, Zone::water});
  s.go("ba", q, "to play");
  s.pastime('b', q);
  s.pastime('a', q);
  s.paragraph();
  s.say({"When it grew dark, {b.n} wanted to give {x} back.",
         "In the evening, {b.n} still had {x}."});
  if (s.chance(0.5)) {
    s.world.thing(x).owner = other;
    s.say({"`Keep {x.them},` said {a.n}. `Now you have something of mine.`"});
  } else {
    s.give('b', 'a', 'x');
    s.say({"`See you tomorrow?` asked {a.n}. `Tomorrow and every day,` said {b.n}."});
  }
  s.end(Theme::new_friend);
}

void tell_borrowed(Stage& s) {
  const int f = s.child('f', s.chance(0.6) ? "friend" : "cousin", s.main);
  const int x = s.main_thing('x', f, f);
  s.open();
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.go_silently("h", s.main);
  s.say({"{T}, {h} met {f.o} {p.in}. {F.n} had {x.a}, and {h.n} needed one very much.",
         "{T}, {h} went {p.to} to see {f}, who was the only one with {x.a}."});
  s.say(
      {"`May I borrow your {x.n}?` asked {h.n}. `Yes,` said {f.n}, `but bring {x.them} back before "
       "[dark|supper].`",
       "`I will lend {x.them} to you,` said {f.n}. `Do you promise to bring {x.them} back today?` "
       "`I promise,` said {h.n}."});
  s.give('f', 'h', 'x');
  const int q = s.other_place('q', {Zone::nature, Zone::water, Zone::village});
  s.go("h", q);
  s.pastime('h', q);
  s.say({"The hours flew by, and {x} came in very useful.",
         "With {x}, everything was twice as much fun."});
  s.paragraph();
  const int trouble = s.pick(3);
  switch (trouble) {
    case 0: {
      s.say({"Suddenly {h} noticed how late it was. The sun was almost gone!",
             "Then the clock struck six. {h} jumped up."});
      s.say(
          {"A neighbour called, `Stay for [pancakes|apple cake]!` It smelled wonderful. But {h.n} "
           "shook {h.his} head.",
           "Somebody was starting a new game. {h} would have loved to stay."});
      s.say({"`I gave my word,` {h} said.", "A promise was a promise."});
      break;
    }
    case 1: {
      const std::string spot(s.spot(q));
      s.teller.bind_text('w', spot);
      s.world.lose(s.hero(), x, spot);
      s.say({"But when it was time to go, {x} {x.was} not there any more.",
             "Then came a shock: {x} {x.was} gone."});
      s.feel('h', Mood::worried);
      s.say({"{h} looked everywhere, again and again, although it grew darker and darker.",
             "`I cannot go back without {x.them},` said {h.n}, and began to search."});
      s.world.take(s.hero(), x);
      s.say(
          {"At last {h} found {x} {w}.",
           "And at last, {w}, {h.he} felt something under {h.his} fingers. There {x.it} {x.was}!"});
      break;
    }
    default:
      s.say(
          {"Then it began to rain as if someone had turned over a bucket. {h} could have waited. "
           "But it was nearly dark.",
           "On the way back, the bridge was closed, and {h} had to go the long way round."});
      s.say({"{h} put {x} under {h.his} coat so that {x.it} would stay dry.",
             "{h} held {x} tight and ran."});
      break;
  }
  s.go("h", s.main);
  s.say({"{f.n} was [already waiting|sitting on the steps].", "{f.n} was just about to go home."});
  s.give('h', 'f', 'x');
  s.say({"`I knew you would come,` said {f.n}.",
         trouble == 2
             ? "`You are out of breath!` said {f.n}. `You could have come tomorrow.` `No,` said "
               "{h.n}. `I promised today.`"
             : "`It is nearly dark,` said {f.n}. `But you came.` `I promised,` said {h.n}.",
         "`Right on time!` said {f.n}. `Next time I will lend you anything.`"});
  s.paragraph();
  s.end(Theme::promise);
}

void tell_delivery(Stage& s) {
  s.kin('k', s.home);
  const int x = s.main_thing('x', s.being('k'), s.being('k'));
  const int g = s.elder('g');
  s.open();
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.teller.bind_place('q', s.world.being(g).place);
  s.say(
      {"{T}, {k} called {h.o}. `Please take {x} to {g.n},` {k.he} said. `{G.he} is waiting for "
       "{x.them} {q.in}.`",
       "{T}, {k} held up {x.a}. `This is for {g.n},` {k.he} said. `Can you carry {x.them} {q.to} "
       "all by yourself?`"});
  s.give('k', 'h', 'x');
  s.say({"`Do not stop on the way,` said {k.n}, `and do not [drop|lose] {x.them}.`",
         "`Of course I can,` said {h.n}, and stood up straight.",
         "`I will be as careful as a cat,` said {h.n}.",
         "{h} felt very important and very small at the same time.",
         "It was the first time that {h} was allowed to go alone."});
  s.paragraph();
  s.go("h", s.main);
  s.sight(s.main);
  const int trouble = s.pick(4);
  if (trouble == 0) {
    s.child('f', "friend", s.main);
    s.say(
        {"There {f} was playing. `Come and play with us!` {f.he} called. `Just a little while!`"});
    s.say({"{h} stopped, and one foot wanted to stay. But {x} must be delivered.",
           "{h} looked at {x} and sighed. `Later,` {h.he} said."});
    if (s.chance(0.5)) {
      s.say({"`Then I will come with you,` said {f.n}."});
      s.go("hf", s.world.being(g).place);
    } else {
      s.go("h", s.world.being(g).place);
    }
  } else if (trouble == 1) {
    s.say(
        {"Suddenly a gust of wind tore {x} away. {h} ran after {x.them} and caught {x.them} just "
         "in time.",
         "{h} tripped over a root, but {h.he} held {x} high above {h.his} head, and nothing "
         "happened to {x.them}."});
    s.go("h", s.world.being(g).place);
  } else if (trouble == 2) {
    s.say(
        {"There the path split in two, and {h} did not know which way to go. {H} asked a woman "
         "with a goose, and she pointed to the left.",
         "A big dog stood in the way and growled. {h} spoke to it softly, step by step, until it "
         "wagged its tail."});
    s.go("h", s.world.being(g).place);
  } else {
    s.interlude();
    s.go("h", s.world.being(g).place);
  }
  s.meet_elder('g');
  s.world.thing(x).owner = g;
  s.give('h', 'g', 'x');
  s.say({"`{X.it} {x.has} come at last!` said {g.n}.",
         "`And nothing is broken,` said {g.n}. `You are a good messenger.`",
         "`All that way on your own?` said {g.n}. `I am impressed.`"});
  if (s.chance(0.6)) {
    const auto& goods = trades()[static_cast<size_t>(s.world.being(g).trade)].goods;
    const int kind = thing_kind(s.one_of(goods));
    if (kind != s.premise.thing) {
      const int y = s.add_thing('y', kind, g, g);
      s.say({"And {g.n} had something for {h.n}, too: {y.a}.",
             "`This is for you,` said {g.n}, and took {y.a} from the shelf."});
      s.world.give(g, s.hero(), y);
      s.world.thing(y).owner = s.hero();
      s.paragraph();
      s.go("h", s.home);
      s.say({"{h} carried {y} home like a king.",
             "`Well?` asked {k.n}. {h.n} only smiled and held up {y}."});
      return s.end(s.chance(0.5) ? Theme::promise : Theme::home);
    }
  }
  s.paragraph();
  s.go("h", s.home);
  s.feel('h', Mood::proud);
  s.end(Theme::promise);
}

void tell_sharing(Stage& s) {
  const ThingKind& kind = thing_kinds()[static_cast<size_t>(s.premise.thing)];
  const std::string one(kind.noun);
  const size_t of = one.find(" of ");
  const std::string many =
      of == std::string::npos ? plural(one) : plural(one.substr(0, of)) + one.substr(of);
  const int start = 3 + s.pick(4);
  int left = start;
  s.kin('k', s.home);
  s.open();
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.teller.bind_text('m', many);
  s.teller.bind_text('n', number_word(left));
  s.say({"{T}, {k} gave {h.o} {n} {m} in a bag. `They are all for you,` {k.he} said.",
         "{T}, {h} got {n} {m} from {k.o}. How good they smelled!"});
  s.go("h", s.main, "to eat them in peace");
  const int meetings = 2 + s.pick(2);
  for (int i = 0; i < meetings && left > 1; ++i) {
    const char key = static_cast<char>('a' + i);
    const bool pet = !s.premise.animals && s.chance(0.35);
    if (pet && i > 0) {
      s.say(
          {"A thin dog sat by the wayside and looked at {h.n} with sad eyes. {h.n} gave it one of "
           "the {m}.",
           "A goat came trotting and took one of the {m} right out of the bag. {h.n} had to "
           "laugh."});
    } else {
      s.child(key, i == 0 ? "friend" : "child", s.world.being(s.hero()).place);
      s.teller.bind_being('u', s.being(key));
      s.say({"There {h} met {u.o}, who had had no breakfast. `Here, take one,` said {h.n}.",
             "{U} sat there, looking hungry. {h.n} reached into the bag and gave {u.o} one.",
             "Then {u} came along. `What have you got?` {u.he} asked. `I will show you,` said "
             "{h.n}, and gave {u.o} one."});
    }
    --left;
    s.teller.bind_text('n', number_word(left));
    if (left == 1) {
      s.say({"Now there was just one left.", "That left only one."});
    } else {
      s.say({"Now there were {n} left.", "That left {n}.", "`I still have {n},` thought {h.n}."});
    }
  }
  s.paragraph();
  if (s.chance(0.5)) {
    s.say({"There was still enough, and it had never tasted so good.",
           "`To share is to have company,` {h.s} grandmother used to say, and it was true.",
           "{h} sat down with the rest and ate. Every bite tasted wonderful.",
           "{h} ate what was left, slowly, so that it would last."});
  }
  s.say(
      {"In the evening there was a knock at the door. All those who had got something were there, "
       "and each had brought something, too: nuts, and milk, and a warm cake.",
       "The next day, {h} found a little parcel on the doorstep. `From your friends,` it said, and "
       "there were a handful of cherries in it, and a drawing.",
       "Then {a.n} called, `Come on, we are making a fire! You can sit in the best place.` And "
       "everybody moved up for {h.o}."});
  s.end(Theme::meal);
}

void tell_ill_friend(Stage& s) {
  const int bed = s.add_place('b', place_kind("the bedroom"));
  const int f =
      s.child('f', s.chance(0.6) ? "friend" : (s.chance(0.5) ? "sister" : "brother"), bed);
  s.open();
  s.say({"Every day, {h} played with {f.o}.", "The one {h} liked best was {f}."});
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.say(
      {"{T}, {f.n} did not come out. {F.he} was ill in bed, with [a red nose|a hot head] and a "
       "very sore throat.",
       "{T}, {f.n} lay in bed and coughed. {F.he} had to stay there for a whole week."});
  s.say({"{f.n} counted the cracks in the ceiling. There were eleven.",
         "`It is so boring,` said {f.n}. `I can only look at the ceiling.`",
         "`I wish I could see {p},` sighed {f.n}.", "{f.n} did not even want any [soup|toast]."});
  s.say({"{h} wanted to cheer {f.o} up. But how?", "`I must think of something,` said {h.n}."});
  s.paragraph();
  const bool finds =
      (thing_kinds()[static_cast<size_t>(s.premise.thing)].categories & (kNature | kFood)) != 0 ||
      s.maker_of(s.premise.thing) < 0;
  int x;
  s.go("h", s.main, "to find something nice");
  if (finds) {
    x = s.add_thing('x', s.premise.thing, -1, -1, s.main);
    s.sight(s.main);
    s.teller.bind_text('w', s.world.thing(x).spot);
    s.say({"{W}, {h} spotted {x.a}. `That is just the thing!` {h.he} said.",
           "{h} searched and searched, and {w} {h.he} found {x.a}."});
    s.take('h', 'x');
  } else {
    s.say({"{h} thought and thought, and then {h.he} had an idea.",
           "There was nothing there that would do. But then {h} had an idea."});
    x = s.obtain('x', s.premise.thing, "", 0);
  }
  s.paragraph();
  s.go_silently("h", bed);
  s.say(
      {"{h} ran back and tapped at {f.s} window.", "Quietly, {h} opened the door of {f.s} room."});
  if (s.lent) {
    s.world.give(s.hero(), f, x);
    s.say({"`Look what I have borrowed for you,` said {h.n}, and laid {x} on the blanket."});
  } else {
    s.world.thing(x).owner = f;
    s.give('h', 'f', 'x');
  }
  s.say({"{f.n} sat up for the first time that day.",
         "`Oh!` said {f.n}, and {f.his} eyes grew bright.",
         "{f.n} smiled, and then {f.he} even laughed."});
  s.say({"Then {h} told {f.o} everything that had happened on the way, and did all the voices.",
         "All afternoon {h} sat by the bed and told stories.",
         "They played quietly until the lamp was lit."});
  s.say({"A few days later, {f.n} was well again.",
         "`I think I am nearly well,` said {f.n}[, and ate a whole plate of soup|]."});
  s.end(s.chance(0.5) ? Theme::friendship : Theme::kindness);
}

void tell_practice(Stage& s) {
  const int x = s.main_thing('x', s.hero(), s.hero());
  const bool music = (s.world.kind(x).categories & kMusic) != 0;
  s.open();
  s.say({"For {h.his} birthday, {h} had got {x.a}.",
         "{h} had {x.a}, but {h.he} did not know how to use {x.them} yet."});
  if (music) {
    s.say({"{h} wanted to play at the [summer|harvest] feast. But only squeaks and bumps came out.",
           "The first try sounded like a cat in a bucket."});
  } else {
    s.say({"It looked so easy when others did it. But {h} could not do it at all.",
           "{h} tried once, and it went wrong. {H} tried twice, and it went even more wrong."});
  }
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.go_silently("h", s.main);
  s.say({"{T}, {h} took {x} {p.to}, where nobody would laugh.",
         "{T}, {h} practised {p.in}, all alone."});
  s.maybe(0.6, {"Three times {h.he} tried, and three times {h.he} failed.",
                "It was no good. Again and again it went wrong."});
  s.say({
      "`I will never learn it!` cried {h.n}, and threw {x} down.",
      "`Others can do it. Why not me?` sighed {h.n}.",
      "{h} wanted to give up.",
  });
  s.feel('h', Mood::cross);
  const int who = s.pick(2);
  if (who == 0) {
    const int g = s.elder('g');
    s.world.go(g, s.main);
    s.say(
        {"Then {g} came by and sat down beside {h.o}. `Shall I tell you a secret?` {g.he} said. `I "
         "needed a hundred tries.`",
         "`Not so fast,` said a voice. It was {g}. `Do it slowly first, and quickly later.`"});
    s.say({"`A hundred?` said {h.n}. `Then I have ninety more to go.`",
           "{g.n} showed {h.n} how to begin, bit by bit."});
  } else {
    s.child('f', "friend", s.main);
    s.say({"Then {f} came along. `I could not do it either,` {f.he} said. `Try it like this.`",
           "But {f} had been watching. `You nearly had it,` {f.he} said. `Once more!`"});
    s.say({"{f.n} counted out loud: one, two, three.",
           "They tried it together, [very slowly|again and again]."});
  }
  s.say({"Every day after that, {h} practised a little.",
         "{h} went on, that day and the next day and the day after."});
  s.say({"One day it went better, the next day worse, and then better again.",
         "Some days {h} wanted to stay in bed, but {h.he} tried all the same.",
         "{h.s} fingers and knees were sore, but {h.he} did not mind.",
         "Bit by bit, it became easier."});
  s.paragraph();
  if (music) {
    s.say(
        {"When the feast came, {h} stood up in front of everyone. {h.s} legs were shaking, but "
         "{h.he} played the whole song, and [people clapped and clapped|only one note was wrong].",
         "At the feast, {h} played so well that [the old people danced|even the dogs were "
         "quiet]."});
  } else {
    s.say(
        {"And one morning, all at once, it worked. {h} did it again, just to be sure, and it "
         "worked again!",
         "Then came the day when it simply worked. {h} shouted so loudly that the pigeons flew "
         "up."});
  }
  s.feel('h', Mood::proud);
  s.end(Theme::patience);
}

void tell_race(Stage& s) {
  const int f = s.child('f', s.chance(0.5) ? "friend" : "cousin", s.home);
  const int g = s.elder('g');
  const int x = s.main_thing('x', g, g);
  s.open();
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.world.go(g, s.main);
  s.go_silently("hf", s.main);
  constexpr std::string_view kRaces =
      "a running race|a sack race|an egg and spoon race|a race with wheelbarrows";
  s.teller.bind_text('r', std::string(s.one_of(kRaces)));
  s.say({"{T}, there was {r} {p.in}. {G} had promised {x.a} to the winner.",
         "{T}, everybody came {p.to} for {r}. The prize was {x.a}, and {g} held {x.them} up for "
         "all to see."});
  s.say({"{h} wanted to win so much that it hurt.", "Nobody wanted to win more than {h}.",
         "`This year it is my turn,` {h} told {h.self}.", "{h} had practised for [weeks|a month].",
         "`I am going to win,` said {h.n}. `We shall see,` said {f.n}."});
  s.say({"`Ready, steady, go!` called {g.n}, and off they went.",
         "A bell rang, and everyone started at once."});
  s.say({"{h.n} ran as {h.he} had never run before, and only {f} kept up.",
         "Soon there were only two in front: {h.n} and {f}.",
         "{h.n} was in front, and {f} was right behind.",
         "At first {f} was ahead, then {h.n}, then {f.n} again."});
  s.paragraph();
  s.say({"Then {f.n} [stumbled|slipped] and fell. {F.he} held {f.his} knee and cried.",
         "Just before the end there was a cry. {f.n} had twisted {f.his} foot and could not get "
         "up."});
  s.say({"The finish was so near that {h.n} could see every knot in the ribbon.",
         "{h.n} heard the people shout {h.his} name.",
         "{h.n} could see the finish. Only a few more steps!",
         "{h.n} looked at the finish, and then {h.he} looked back."});
  const bool stops = s.chance(0.75);
  if (stops) {
    s.say({"{H.he} thought of {x}, and then of {f.n}, and stopped.",
           "No prize is worth a friend's tears. {h.n} turned back.",
           "But {h.he} turned round and helped {f.n} to stand up.",
           "But a friend was on the ground, and so {h.n} ran back."});
    s.say(
        {"`Come on, we will walk,` said {h.n}. And so they walked, and nobody has ever been "
         "cheered so loudly for being last.",
         "With {f.s} arm round {h.his} neck, {h.n} limped to the end.",
         "Arm in arm they came in, the very last of all, and everyone [cheered|clapped].",
         "`Lean on me,` said {h.n}, and they hobbled over the line together."});
    if (s.chance(0.5)) {
      s.world.give(g, s.hero(), x);
      s.world.thing(x).owner = s.hero();
      s.say(
          {"`The first one has fast legs,` said {g.n}, `but this one has a good heart.` And {g.he} "
           "gave {x} to {h.n}.",
           "{g.n} came over and put {x} into {h.s} arms. `There is more than one way to win,` "
           "{g.he} said."});
    } else {
      s.say(
          {"Somebody else got {x}. But {f.n} held {h.n} tight and said, `You are the best friend "
           "of all.`",
           "{h.n} did not get {x}, but oddly, {h.he} did not mind."});
    }
    s.paragraph();
    return s.end(s.chance(0.5) ? Theme::friendship : Theme::kindness);
  }
  s.say(
      {"{h.n} ran on and won. `Hurrah!` people called. But when {h.he} turned round, {f.n} was "
       "still sitting there.",
       "{h.n} won by a nose. But where was {f.n}?"});
  s.world.give(g, s.hero(), x);
  s.say({"{g.n} gave {h.n} the prize, but {x} felt [strangely heavy|cold].",
         "{h.n} was handed {x}, and {h.he} did not feel like a winner."});
  s.say({
      "{h.n} went straight to {f.n}. `I should have stopped,` {h.he} said. `I am sorry. This is "
      "for you.`",
  });
  s.world.give(s.hero(), f, x);
  s.world.thing(x).owner = f;
  s.say({"`We will share {x.them},` said {f.n}[, and smiled again|].",
         "{f.n} wiped away {f.his} tears. `Next year we will run hand in hand,` {f.he} said."});
  s.paragraph();
  s.end(Theme::friendship);
}

}  // namespace mixtral::stories
