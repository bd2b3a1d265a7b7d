#include "stories/question_scene.h"

#include <algorithm>
#include <functional>
#include <string>

#include "base/error.h"

namespace mixtral::stories {
namespace {

class Scene {
 public:
  explicit Scene(Stage& stage) : s_(stage), world_(stage.world) {}

  SceneCast tell(int least, int most, const std::function<void(const SceneCast&)>& between) {
    set_up();
    introduce();
    const int events = least + s_.pick(most - least + 1);
    int flavour = 0;
    for (int i = 0; i < events; ++i) {
      if (i > 0 && flavour < 2 && s_.chance(0.25)) {
        add_flavour();
        ++flavour;
      }
      step();
      if (between && i + 1 < events) between(cast_);
    }
    return cast_;
  }

 private:
  char key(int being) const { return keys_[static_cast<size_t>(index_of(cast_.people, being))]; }
  static int index_of(const std::vector<int>& list, int value) {
    return static_cast<int>(std::find(list.begin(), list.end(), value) - list.begin());
  }
  int any(const std::vector<int>& list) {
    return list[static_cast<size_t>(s_.pick(static_cast<int>(list.size())))];
  }
  std::vector<int> held_by(int who) const {
    std::vector<int> held;
    for (int x : cast_.things) {
      if (world_.thing(x).holder == who) held.push_back(x);
    }
    return held;
  }
  std::vector<int> lying_at(int place) const {
    std::vector<int> lying;
    for (int x : cast_.things) {
      if (world_.thing(x).holder < 0 && world_.thing(x).place == place) lying.push_back(x);
    }
    return lying;
  }
  std::vector<int> others_at(int who) const {
    std::vector<int> others;
    for (int b : cast_.people) {
      if (b != who && world_.being(b).place == world_.being(who).place) others.push_back(b);
    }
    return others;
  }

  bool is_used(const std::string& why) const {
    return std::find(reasons_.begin(), reasons_.end(), why) != reasons_.end();
  }

  void set_up() {
    const int q = s_.other_place('q', {Zone::village, Zone::nature, Zone::water});
    const int r = s_.chance(0.5) ? s_.home : s_.other_place('r', {Zone::house});
    if (r == s_.home) s_.teller.bind_place('r', r);
    cast_.places = {s_.main, q, r};
    world_.go(s_.hero(), s_.main);  // before the story begins
    constexpr std::string_view kRelations = "friend|sister|brother|cousin";
    const int f = s_.child('f', s_.one_of(kRelations), s_.chance(0.5) ? s_.main : q);
    cast_.people = {s_.hero(), f};
    keys_ = "hf";
    if (s_.chance(0.6)) {
      cast_.people.push_back(s_.child('c', "child", any(cast_.places)));
      keys_ += 'c';
    }
    const int count = 2 + s_.pick(2);
    for (int i = 0; i < count; ++i) {
      const char k = static_cast<char>('x' + i);
      const bool held = i < 2 || s_.chance(0.5);
      const int owner = i < 2 ? cast_.people[static_cast<size_t>(i)] : any(cast_.people);
      const int kind = i == 0 ? s_.premise.thing : fresh_kind();
      const int x = held ? s_.add_thing(k, kind, owner, owner)
                         : s_.add_thing(k, kind, -1, -1, any(cast_.places));
      cast_.things.push_back(x);
    }
  }

  /// A kind of thing that has a colour no other thing of the scene has.
  int fresh_kind() {
    while (true) {
      const int kind = s_.thing_kind_of(0);
      const ThingKind& k = thing_kinds()[static_cast<size_t>(kind)];
      if (!k.colours.empty() && !k.plural) return kind;
    }
  }

  void introduce() {
    s_.teller.bind_text('t', s_.day());
    s_.say({"{T}, {h} was {p.in} with {x.a}.", "{T}, {h.i} stood {p.in} and held {x.a}.",
            "{T}, {h.i} came {p.to} with {x.a}."});
    s_.maybe(0.3, {"It was a good day to be outside.", "Nobody was in a hurry."});
    const bool together = world_.being(s_.being('f')).place == s_.main;
    s_.teller.bind_place('v', world_.being(s_.being('f')).place);
    if (together) {
      s_.say({"{f} was there, too, and had {y.a}.", "{f} was with {h.o} and carried {y.a}."});
    } else {
      s_.say({"{f} was {v.in} and had {y.a}.", "{f} had {y.a} and was {v.in}."});
    }
    if (cast_.people.size() > 2) {
      const int c = s_.being('c');
      s_.teller.bind_place('v', world_.being(c).place);
      const bool has = cast_.things.size() > 2 && world_.thing(s_.thing('z')).holder == c;
      if (has) {
        s_.say({"{C} was {v.in} with {z.a}."});
      } else {
        s_.say({"{C} was {v.in}.", "{V.in}, {c} was playing."});
      }
    }
    if (cast_.things.size() > 2) {
      const Thing& z = world_.thing(s_.thing('z'));
      if (z.holder < 0) {
        s_.teller.bind_place('v', z.place);
        s_.teller.bind_text('w', z.spot);
        s_.say({"{V.in}, {w}, lay {z.a}.", "{Z.a} lay {w} {v.in}."});
      } else if (cast_.people.size() < 3 || z.holder != s_.being('c')) {
        s_.teller.bind_being('u', z.holder);
        s_.say({"{u} also had {z.a}."});
      }
    }
  }

  void add_flavour() {
    const int who = any(cast_.people);
    if (s_.chance(0.5)) {
      s_.pastime(key(who), world_.being(who).place);
    } else {
      s_.say({"A dog barked somewhere.", "The clock struck three.", "The sun came out.",
              "A cart rolled by.", "Everybody laughed.", "It was very quiet for a while."});
    }
  }

  /// One event: what can happen here, with handing things over preferred, since it is rare that
  /// people are together.
  void step() {
    int who = any(cast_.people);
    if (who == last_who_) who = any(cast_.people);  // the same one twice in a row is rarer
    last_who_ = who;
    auto held = held_by(who), lying = lying_at(world_.being(who).place);
    // What was moved just now stays where it is for a while.
    std::erase(held, last_thing_);
    std::erase(lying, last_thing_);
    last_thing_ = -1;
    const auto others = others_at(who);
    if (!held.empty() && !others.empty() && s_.chance(0.65)) {
      const int other = any(others);
      const auto theirs = held_by(other);
      if (!theirs.empty() && s_.chance(0.25)) return swap(who, other, any(held), any(theirs));
      return give(who, other, any(held));
    }
    if (!lying.empty() && s_.chance(0.7)) return take(who, any(lying));
    if (!held.empty() && s_.chance(0.2)) return put(who, any(held));
    go(who, others);
  }

  void go(int who, const std::vector<int>& others) {
    int to = world_.being(who).place;
    while (to == world_.being(who).place) {
      // Where someone else is, more often.
      to = s_.chance(0.6) ? world_.being(any(cast_.people)).place : any(cast_.places);
    }
    const std::string_view reasons = world_.place(to).reasons;
    std::string why(s_.one_of(reasons));
    for (int i = 0; i < choice_count(reasons) && is_used(why); ++i) why = choice(reasons, i);
    reasons_.push_back(why);
    s_.teller.bind_being('u', who);
    s_.teller.bind_place('v', to);
    s_.teller.bind_text('w', why);
    world_.go(who, to, why);
    if (!others.empty() && s_.chance(0.35)) {
      const int other = any(others);
      s_.teller.bind_being('j', other);
      world_.go(other, to, why);
      return s_.say({"{u.n} and {j.n} [went|walked|ran] {v.to} {w}.",
                     "Together, {u.n} and {j.n} [went|walked] {v.to} {w}."});
    }
    if (!others.empty() && s_.chance(0.2)) {
      return s_.say("{u} said goodbye and [went|walked] {v.to} {w}.");
    }
    s_.say({"{u} [went|walked|ran] {v.to} {w}.", "Then {u} [went|walked] {v.to} {w}.",
            "A little later, {u} [went|ran] {v.to} {w}.",
            "After that, {u} [went|walked] {v.to} {w}."});
  }

  void give(int from, int to, int x) {
    world_.give(from, to, x);
    last_thing_ = x;
    s_.teller.bind_being('u', from);
    s_.teller.bind_being('j', to);
    s_.teller.bind_thing('i', x);
    s_.say({"{u} gave {i} to {j.o}.", "{u} handed {i} to {j.o}.",
            "{j} asked for {i}, and {u} gave {i.them} to {j.o}.",
            "`You can have {i},` said {u.n}, and gave {i.them} to {j.o}.",
            "{u} smiled and gave {i} to {j.o}.", "Then {u} gave {j.o} {i}."});
  }

  void swap(int a, int b, int x, int y) {
    world_.give(a, b, x);
    last_thing_ = x;
    world_.give(b, a, y);
    s_.teller.bind_being('u', a);
    s_.teller.bind_being('j', b);
    s_.teller.bind_thing('i', x);
    s_.teller.bind_thing('m', y);
    s_.say({"{u.n} and {j.n} made a swap. {u.n} gave {i} to {j.n} and got {m} for {i.it}.",
            "{u.n} gave {i} to {j.n}, and {j.n} gave {m} to {u.n}."});
  }

  void take(int who, int x) {
    const std::string spot = world_.thing(x).spot;
    world_.take(who, x);
    last_thing_ = x;
    s_.teller.bind_being('u', who);
    s_.teller.bind_thing('i', x);
    s_.teller.bind_text('w', spot);
    s_.say({"{u} found {i} {w} and took {i.them}.", "{u} picked up {i}.",
            "{u} saw {i} {w} and picked {i.them} up."});
  }

  void put(int who, int x) {
    const int place = world_.being(who).place;
    const std::string spot(s_.spot(place));
    world_.put(who, x, spot);
    last_thing_ = x;
    s_.teller.bind_being('u', who);
    s_.teller.bind_thing('i', x);
    s_.teller.bind_text('w', spot);
    s_.say({"{u} put {i} {w} and left {i.them} there.", "{u} laid {i} down {w}.",
            "{u} was tired of carrying {i} and left {i.them} {w}."});
  }

  Stage& s_;
  World& world_;
  SceneCast cast_;
  std::string keys_;
  std::vector<std::string> reasons_;
  int last_who_ = -1, last_thing_ = -1;
};

}  // namespace

SceneCast tell_scene(Stage& stage, int least, int most,
                     const std::function<void(const SceneCast&)>& between) {
  return Scene(stage).tell(least, most, between);
}

}  // namespace mixtral::stories
