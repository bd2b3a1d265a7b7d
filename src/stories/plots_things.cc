// Stories about things: lost, wished for, fought over, broken, found.
#include <string>

#include "stories/plots.h"

namespace mixtral::stories {

void tell_lost_thing(Stage& s) {
  const int x = s.main_thing('x', s.hero(), s.hero());
  const int other = s.other_place('q', {Zone::village, Zone::nature, Zone::water});
  s.open();
  s.say({"{h} had {x.a} that {h.he} [loved more than anything|took everywhere].",
         "Of all {h.his} things, {h} liked {x.full} best.",
         "Nobody else in the street had {x.a}, and {h} was proud of {x.them}.",
         "{h.s} dearest treasure was {x.a}. {h} even [slept with|talked to] {x.them}.",
         ("{h} owned {x.a}, a present from {h.his} [grandmother|godfather], and took good care of "
          "{x.them}.")});
  s.paragraph();

  const bool main_first = s.chance(0.5);
  const int first = main_first ? s.main : other, second = main_first ? other : s.main;
  s.teller.bind_place('a', first);
  s.teller.bind_place('b', second);
  s.teller.bind_text('t', s.day());
  s.world.go(s.hero(), first);
  s.say({"{T}, {h} took {x} and went {a.to}.",
         "{T}, {h} went out with {x.own}. The first stop was {a}.",
         "{T}, {h} walked {a.to} and carried {x} along[, as always|]."});
  s.pastime('h', first);
  if (main_first) s.world.lose(s.hero(), x, std::string(s.spot(s.main)));
  s.world.go(s.hero(), second);
  s.say({"After that, {h} went {b.to}.", "Then it was time to go {b.to}.",
         "Later {h} went on {b.to}."});
  s.pastime('h', second);
  if (!main_first) s.world.lose(s.hero(), x, std::string(s.spot(s.main)));
  s.world.go(s.hero(), s.home);
  s.say({"But when {h} came home, {x} {x.was} gone.",
         "Back home, {h} wanted to put {x} [away|on the shelf], but {x.it} {x.was} not there.",
         "In the evening, {h} looked for {x}. {X} {x.was} nowhere to be found."});
  s.feel('h', s.chance(0.6) ? Mood::sad : Mood::worried);
  s.paragraph();

  const bool with_friend = s.chance(0.5);
  std::string keys = "h";
  if (with_friend) {
    s.child('f', s.chance(0.6) ? "friend" : "sister", s.home);
    s.say({"`Do not cry,` said {f.n}. `We will find {x.them}. Where have you been?`",
           "Just then {f} came in. `What is the matter?` {f.he} asked. `Where did you go today?`"});
    keys += 'f';
  } else {
    s.kin('k', s.home);
    s.say({"`Think,` said {k.n}. `Where have you been today?`",
           "{k} put down {k.his} [cup|needle|book]. `Where did you have {x.them} last?` {k.he} "
           "asked."});
  }
  s.say({"`First I was {a.in}, and then I was {b.in},` said {h.n}.",
         "`I was {a.in} and {b.in},` said {h.n}.",
         "{h} thought hard. `I was {a.in} first and {b.in} later.`"});
  if (with_friend || s.chance(0.5)) {
    s.go(keys, other, "to look there");
    s.teller.bind_text('w', std::string(s.spot(other)));
    s.teller.bind_text('m', std::string(s.spot(other)));
    if (with_friend) {
      s.say({"They looked {w}, but [there was only a beetle|found nothing].",
             "They searched high and low, but there was no trace of {x}.",
             "`Not here,` said {f.n} with a sigh."});
    } else {
      s.say({"{h} looked {w}, but [there was only a beetle|found nothing].",
             "{h} turned over every leaf and every stone, and found nothing but {h.his} own "
             "footprints.",
             "{h} searched high and low, but there was no trace of {x}.",
             "{h} looked everywhere {h.he} could think of. Nothing!"});
    }
  }
  s.go(keys, s.main);
  switch (s.pick(3)) {
    case 0:
      s.teller.bind_text('w', s.world.thing(x).spot);
      s.world.take(s.hero(), x);
      s.say({"And there, {w}, {x.was} {x}!",
             "`Look!` cried {h.n}. {W} lay {x}, [a little dusty|quite safe and sound].",
             "{h} looked {w}, and there {x.it} {x.was}."});
      s.feel('h', s.chance(0.5) ? Mood::relieved : Mood::happy);
      s.maybe(0.5, {"After that, {h} sewed a deep pocket into {h.his} coat, just for {x}.",
                    "`Next time I will keep you safe,` {h} whispered to {x}.",
                    "From then on, {h} [counted|checked] {h.his} things before {h.he} went home."});
      s.paragraph();
      return s.end(Theme::home);
    case 1: {
      const int c = s.child('c', "child", s.main);
      s.teller.bind_text('w', s.world.thing(x).spot);
      s.world.take(c, x);
      s.say({"There sat {c}, and in {c.s} lap lay {x}.",
             "{C} was standing there with {x}, and did not know what to do with {x.them}.",
             "There they met {c.o}, who was holding {x}."});
      s.say(
          {"`Is it {x} that you are looking for?` asked {c.n}. `I was waiting for someone to come "
           "back.`",
           "`I found {x.them} {w},` said {c.n}, `and I thought that someone would miss {x.them}.`",
           "`You look as if you have lost something,` said {c.n}, and smiled."});
      s.give('c', 'h', 'x');
      s.thank('h', 'c');
      s.paragraph();
      return s.end(s.chance(0.5) ? Theme::new_friend : Theme::kindness);
    }
    default: {
      const int a = s.animal('d', s.main, -1, true);
      s.teller.bind_text('w', s.world.thing(x).spot);
      s.say({"There they heard a soft noise. {D} was sitting {w}, and {d.he} was sitting on {x}!",
             "{W}, {d} had made {d.self} a bed, and {x} {x.was} in the middle of it."});
      s.teller.bind_text('n', s.world.being(a).noun);
      s.teller.bind_text(
          'm', std::string(animal_kinds()[static_cast<size_t>(s.world.being(a).animal)].food));
      s.say({"{h.n} held out {m}. The {n} thought about it, and then [ran|went] to eat.",
             "`May I have {x.them} back?` asked {h.n}, and laid {m} on the ground. The {n} came "
             "out to eat."});
      s.take('h', 'x');
      s.feel('h', Mood::happy);
      s.paragraph();
      return s.end(Theme::clever);
    }
  }
}

void tell_wish(Stage& s) {
  s.open();
  const int kind = s.premise.thing;
  const std::string noun(thing_kinds()[static_cast<size_t>(kind)].noun);
  s.teller.bind_text('n', thing_kinds()[static_cast<size_t>(kind)].plural ? "a pair of " + noun
                                                                          : with_article(noun));
  s.say({"More than anything in the world, {h} wanted {n}.",
         "There was one thing that {h} wished for, and that was {n}.",
         "{h} dreamed of {n}[ every night| by day and by night|]."});
  const bool for_self = s.chance(0.6);
  if (for_self) {
    s.say({"{h} had seen one [in a window|in a book|at the fair] and could not forget it.",
           "All the other children had one, or so it seemed.",
           "`If only I had one!` {h} said every evening.",
           "{h} had even drawn a picture of it and hung it over {h.his} bed."});
  } else {
    s.child('f', s.chance(0.5) ? "sister" : "brother", s.home);
    s.say({"It was not for {h.self}. It was for {f.o}, who had been sad for days.",
           "It was meant as a surprise for {f.o}."});
  }
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.world.go(s.hero(), s.main, "to think about it");
  s.say({"{T}, {h} was sitting {p.in} and thinking about it.",
         "{T}, {h} walked {p.to} to think about it."});
  s.sight(s.main);
  s.say({"`Wishing is not enough,` thought {h.n}. `I must do something.`",
         "`Today is the day,` {h} said out loud.", "Then {h} jumped up. Today {h.he} would try!"});
  const int x = s.obtain('x', kind, "", 2);
  s.paragraph();
  if (for_self) {
    s.feel('h', s.chance(0.5) ? Mood::happy : Mood::proud);
    if (s.lent) {
      s.say({"{h} used {x} all day long, and in the evening {h.he} kept {h.his} word."});
      s.go("h", s.world.being(s.being(s.lender)).place,
           "to give back " + std::string("the ") + noun);
      s.give('h', s.lender, 'x');
      return s.end(Theme::promise);
    }
    s.go("h", s.home);
    s.say({"{h} put {x} where {h.he} could see {x.them} from {h.his} bed.",
           "{h} showed {x} to everyone who came to the door.",
           "All evening {h} could not stop looking at {x}."});
    return s.end(s.chance(0.5) ? Theme::patience : Theme::kindness);
  }
  s.go("h", s.home);
  if (s.lent) {
    s.say({"All day long, {h.n} and {f.n} used {x} together, and {f.n} laughed again."});
    s.go("h", s.world.being(s.being(s.lender)).place, "to give it back");
    s.give('h', s.lender, 'x');
    return s.end(Theme::promise);
  }
  s.world.thing(x).owner = s.being('f');
  s.give('h', 'f', 'x');
  s.say({"`For me?` asked {f.n}, and [hugged|kissed] {h.n}.",
         "{f.n} could not believe it and danced around the room.",
         "For the first time in days, {f.n} smiled."});
  s.end(Theme::kindness);
}

void tell_quarrel(Stage& s) {
  const bool sibling = s.chance(0.5);
  const int f = s.child('f', sibling ? (s.chance(0.5) ? "sister" : "brother") : "friend", s.home);
  const int x = s.main_thing('x', -1, -1, s.main);
  s.open();
  s.say({"{h.n} and {f} were nearly always together.",
         "{h.n} and {f} shared everything, or nearly everything."});
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.teller.bind_text('w', s.world.thing(x).spot);
  s.go_silently("hf", s.main);
  s.say({"{T}, they were playing {p.in} when they [saw|found] {x.a} {w}.",
         "{T}, the two of them went {p.to}. {W}, something caught the light. It was {x.a}."});
  s.say({"`I saw {x.them} first!` cried {h.n}. `No, I did!` cried {f.n}.",
         "`Mine!` said {h.n}. `No, mine!` said {f.n}, and both of them held on to {x}."});
  s.world.take(s.chance(0.5) ? s.hero() : f, x);
  const bool hero_has = s.world.thing(x).holder == s.hero();
  s.teller.bind_being('a', hero_has ? s.hero() : f);
  s.teller.bind_being('b', hero_has ? f : s.hero());
  s.say({"They pulled and pushed until {a.n} had {x} and {b.n} sat in the dirt.",
         "In the end {a.n} was quicker and ran off with {x}."});
  s.say({"`Keep your old {x.k}!` cried {b.n}, although {b.he} wanted it badly.",
         "`I will never play with you again!` shouted {b.n}.",
         "{b.n} went red and said a very unkind word.", "{b.n} turned round and walked away."});
  s.paragraph();
  s.world.go(s.being('a'), s.home);
  s.say(
      {"{a.n} took {x} home. But it is [dull|no fun] to have {x.a} and no one to [show {x.them} "
       "to|play with].",
       "At home, {a.n} sat down with {x}. How quiet it was! {A.n} had {x}, but {a.he} did not have "
       "{b.n}."});
  s.say({"`What is {x.a} without {b.n}?` thought {a.n}.",
         "{a.n} looked at {x}, and {x.it} did not look [so fine|so shiny] any more.",
         "{a.n} could not eat a bite at supper."});
  if (hero_has && s.chance(0.6)) {
    s.kin('k', s.home);
    s.say({"`A thing can be found again,` said {k.n}. `A friend is harder to find.`",
           "{k} asked what was wrong, and {a.n} told {k.him} everything. `You know what to do,` "
           "{k.he} said."});
  }
  s.paragraph();
  s.go_silently("b", s.main);
  s.go("a", s.main, "to find " + s.world.being(s.being('b')).name);
  s.say({"{b.n} was still sitting there, [all alone|with wet cheeks].",
         "{b.n} was throwing stones at nothing."});
  s.say(
      {"{a.n} stood there for a while and did not know how to begin. Then {a.he} said, `It is no "
       "fun without you.`",
       "`I am sorry,` said {a.n}. `I was greedy.`",
       "`I was silly,` said {a.n}. `Please be my friend again.`",
       "`Let us not fight,` said {a.n}."});
  if (s.chance(0.5)) {
    s.say({"`I am sorry, too,` said {b.n}."});
    s.give('a', 'b', 'x');
    s.say({"`You keep {x.them} today, and I will have {x.them} tomorrow,` said {a.n}.",
           "`One day you, one day me,` said {a.n}, and they shook on it."});
  } else {
    s.say({"{b.n} wiped {b.his} nose. `We could share {x.them},` {b.he} said. And so they did.",
           "`{X.it} {x.is} ours,` said {b.n}. `Not mine and not yours.` {A.n} nodded."});
  }
  s.end(sibling ? Theme::sharing : Theme::friendship);
}

void tell_broken(Stage& s) {
  const bool at_home = s.chance(0.6);
  if (at_home) {
    s.kin('k', s.home);
  } else {
    s.elder('k');
  }
  const int scene = s.world.being(s.being('k')).place;
  s.teller.bind_place('q', scene);
  s.main_thing('x', s.being('k'), -1, scene);
  s.open();
  s.say({"{k} had {x.a} that [was older than {h.n}|nobody was allowed to touch].",
         "The thing that {k} liked best was {x.a}, and everybody knew it."});
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.go_silently("h", scene);
  s.go_silently("k", s.main);
  s.say(
      {"{T}, {k} went {p.to}, and {h} stayed behind {q.in}. {H} was bouncing a ball, although "
       "{h.he} knew better.",
       "{T}, while {k} was away {p.in}, {h} chased a fly round and round {q.in}.",
       "{T}, {k} had to go {p.to}. {h.n}, all alone {q.in}, only wanted to look at {x} from close "
       "by."});
  s.say({"Crash! {X} fell [to|on] the floor and {x.was} broken in two.",
         "Then came a bump, a crack, and a terrible silence. {X} {x.was} broken.",
         "Bang! Down fell {x}, and a piece broke off."});
  s.feel('h', s.chance(0.5) ? Mood::afraid : Mood::sorry);
  const bool hides = s.chance(0.5);
  if (hides) {
    s.say({"Quickly, {h} pushed the pieces under a [rug|cupboard].",
           "{h} hid the pieces and hoped that nobody would notice."});
    s.paragraph();
    s.go_silently("k", scene);
    s.say(
        {"When {k} came back, {k.he} asked, `Have you seen {x}?` {h.n} shook {h.his} head, and "
         "{h.his} ears grew hot.",
         "{k} came back. `Where {x.is} {x}?` {k.he} asked. `I do not know,` said {h.n} in a very "
         "small voice."});
    s.say({"All night {h} lay awake. The lie sat on {h.his} chest like a cat.",
           "After that, nothing tasted good, not even [cake|the soup]."});
    s.say(
        {"In the morning, {h} [could bear it no longer|took a deep breath]. `It was me,` {h.he} "
         "said. `I broke {x.them}, and I lied.`",
         "The next day, {h} brought out the pieces and told the truth, every word of it."});
  } else {
    s.say({"{h} thought of running away, but then {h.he} sat down and waited.",
           "There was a dark corner behind the door, just right for hiding things. {h} looked at "
           "it and shook {h.his} head.",
           "{h} could have hidden the pieces. But {h.he} did not."});
    s.paragraph();
    s.go_silently("k", scene);
    s.say({"When {k} came back, {h.n} said at once, `I broke {x}. I am so sorry.`",
           "As soon as {k} opened the door, {h.n} told {k.o} what had happened."});
  }
  s.say({"{k.n} was quiet for a long time. `Thank you for telling me,` {k.he} said at last.",
         "{k.n} sat down and took a deep breath. `Things break,` {k.he} said. `What matters is "
         "that you came to me.`",
         "`I am sad about {x},` said {k.n}, `but I am glad that you told me.`",
         "{k.n} did not shout. `The truth is worth more than {x.a},` {k.he} said."});
  if (s.chance(0.6)) {
    s.say(
        {"Together they mended {x} with glue and string. You could see the crack, but {x.it} held.",
         "They sat down with a pot of glue, and by evening {x} {x.was} whole again, or nearly."});
  } else {
    s.say({"To make up for it, {h} [worked|helped] every day that week without being asked.",
           "{h} saved [every penny|all {h.his} coins] until there was enough for a new one."});
  }
  s.paragraph();
  s.end(Theme::honesty);
}

void tell_finder(Stage& s) {
  const int x = s.main_thing('x', -1, -1, s.main);
  s.open();
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.teller.bind_text('w', s.world.thing(x).spot);
  s.go_silently("h", s.main);
  s.say({"{T}, {h} was walking about {p.in} when {h.he} saw something {w}.",
         "{T}, {h} went {p.to}. {W} lay something that did not belong there."});
  s.say({"It was {x.a}!", "What could it be? It was {x.a}."});
  s.take('h', 'x');
  s.say({"How {h} would have liked to keep {x.them}! But somebody must be missing {x.them}.",
         "`Finders keepers,` said a little voice in {h.his} head. But {h} did not listen to it.",
         "{h} had always wanted one just like it. Still, {x.it} belonged to someone else."});
  s.paragraph();
  // Someone who does not know, then the owner.
  const int g = s.elder('g');
  s.go("h", s.world.being(g).place, "to ask about it");
  s.meet_elder('g');
  s.say(
      {"`Did you lose {x.a}?` asked {h.n}. `Not I,` said {g.n}, `but I saw someone "
       "[crying|searching] not far from here.`",
       "{g.n} shook {g.his} head. `{X.it} {x.is} not mine. Ask around, and do not give up.`"});
  s.interlude();
  const int place = s.other_place('q', {Zone::village, Zone::nature, Zone::water});
  const bool adult = s.chance(0.4);
  const int c = adult ? s.elder('c') : s.child('c', "child", place);
  s.go("h", s.world.being(c).place);
  s.say({"There {h} met {c.o}, who was looking [at the ground|under every stone|very sad].",
         "And there was {c}, searching and searching.",
         "{C} was there, turning out {c.his} pockets one by one."});
  s.say({
      "`What have you lost?` asked {h.n}. `My {x.n}!` said {c.n}.",
      "`I cannot find my {x.n},` said {c.n}[ with a sob|].",
  });
  s.say({"`Then this must be yours,` said {h.n}.", "{h.n} smiled and reached into {h.his} pocket.",
         "`Close your eyes,` said {h.n}."});
  s.world.thing(x).owner = c;
  s.give('h', 'c', 'x');
  s.feel('c', s.chance(0.5) ? Mood::relieved : Mood::happy);
  s.thank('c', 'h');
  s.paragraph();
  s.end(adult || s.chance(0.5) ? Theme::kindness : Theme::new_friend);
}

void tell_boast(Stage& s) {
  const int x = s.main_thing('x', s.hero(), s.hero());
  s.child('f', s.chance(0.6) ? "friend" : "cousin", s.main);
  s.open();
  s.say({"{h} had got {x.a}, and from that hour {h.he} talked of nothing else.",
         "Ever since {h} had been given {x.a}, {h.he} walked with {h.his} nose in the air."});
  s.paragraph();
  s.teller.bind_text('t', s.day());
  s.go_silently("h", s.main);
  s.say({"{T}, {h} took {x} {p.to} to show {x.them} to {f}.", "{T}, {h} met {f.o} {p.in}."});
  s.say({"`Mine {x.is} the finest in the whole land,` said {h.n}. `Yours is nothing beside it.`",
         "`Nobody has {x.a} like this,` said {h.n}. `You may look, but you may not touch.`"});
  s.say({"{f.n} said nothing and looked at {f.his} shoes.",
         "{f.n} swallowed hard. `It is nice,` {f.he} said quietly."});
  s.paragraph();
  const std::string spot(s.spot(s.main));
  s.teller.bind_text('w', spot);
  s.world.lose(s.hero(), x, spot);
  s.say(
      {"{h.n} spun round to show {x} off from all sides, and did not look where {h.he} was going. "
       "{H.he} slipped, and {x} flew through the air and was gone.",
       "{h.n} threw {x} high into the air to show off, and the wind carried {x.them} away."});
  s.say({"{h.n} looked up, and down, and all around. Nothing!",
         "Nobody laughed. {h.n} searched [left and right|on hands and knees], but in vain.",
         "Now {h.n} was not so proud any more."});
  s.feel('h', Mood::sorry);
  s.paragraph();
  s.say(
      {"Then {f.n} came, without being asked, and helped to look. {f.n} looked {w}, and there "
       "{x.it} {x.was}.",
       "`I will help you,` said {f.n}, and crawled about until {f.he} found {x} {w}."});
  s.world.take(s.being('f'), x);
  s.give('f', 'h', 'x');
  s.say({"`Why are you so kind to me?` asked {h.n}. `I was not kind to you.` {f.n} only smiled.",
         "{h.n} went red up to the ears. `I was silly,` {h.he} said.",
         "`I am sorry for what I said,` whispered {h.n}."});
  s.say({"`Now you have a turn,` said {h.n}.",
         "`Would you like to have {x.them} for today?` asked {h.n}."});
  s.give('h', 'f', 'x');
  s.paragraph();
  s.end(s.chance(0.5) ? Theme::friendship : Theme::sharing);
}

}  // namespace mixtral::stories
