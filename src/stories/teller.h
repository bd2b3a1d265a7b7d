#pragma once

#include <array>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "stories/world.h"

namespace mixtral::stories {

/// Turns templates into English. A template is a sentence or two with
///   [a|b|c]   one of the alternatives, chosen at random; may be nested, may be empty
///   `...`     direct speech
///   {k}       what the letter k is bound to, as the sentence needs it; {K} with a capital
/// Forms of a being: {k} he or Mia (a pronoun only where it can mean nobody else; the first mention
/// introduces: "her friend Tom"), {k.o} him or Mia, {k.s} his or Mia's, {k.n} Mia, {k.he} {k.him}
/// {k.his} {k.self} always the pronoun, {k.i} the introduction.
/// Forms of a thing: {k} the red kite, later the kite; {k.a} a red kite; {k.n} red kite; {k.k}
/// kite; {k.own} her kite; {k.full} her red kite; {k.it} {k.them} {k.was} {k.is} {k.has} agree in
/// number. Forms of a place: {k} the market, {k.in} at the market, {k.to} to the market. A text
/// bound to a letter stands as it is.
class Teller {
  struct Ref {
    enum class Kind { none, being, thing, place, text } kind = Kind::none;
    int index = -1;
    std::string text;
  };
  using Keys = std::array<Ref, 26>;

 public:
  Teller(World& world, RandomStream& random) : world_(world), random_(random) {}

  void bind_being(char key, int being) { keys_[slot(key)] = {Ref::Kind::being, being, {}}; }
  void bind_thing(char key, int thing) { keys_[slot(key)] = {Ref::Kind::thing, thing, {}}; }
  void bind_place(char key, int place) { keys_[slot(key)] = {Ref::Kind::place, place, {}}; }
  void bind_text(char key, std::string text) {
    keys_[slot(key)] = {Ref::Kind::text, -1, std::move(text)};
  }
  /// What a key is bound to: the index of the being, thing or place.
  int bound(char key) const { return keys_[slot(key)].index; }

  /// While it lives, rebinding keys is temporary: scenes within a plot use it.
  class Scope {
   public:
    explicit Scope(Teller& teller, std::string_view keys = "uvwij")
        : teller_(teller), names_(keys), saved_(teller.keys_) {}
    ~Scope() {
      for (char key : names_) teller_.keys_[slot(key)] = saved_[slot(key)];
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Teller& teller_;
    std::string_view names_;
    Keys saved_;
  };

  /// Adds one sentence or more.
  void say(std::string_view pattern);
  /// Adds one of the patterns, if possible one that this story has not used yet.
  void say(std::initializer_list<std::string_view> patterns);
  /// Begins a new paragraph; names are then said anew.
  void paragraph();
  /// From now on the being's name or noun alone is used.
  void introduce(int being);

  /// Spoken of in this paragraph already.
  bool recent(int being) const;

  std::string text() const;
  int words() const;
  int pick(int count) { return static_cast<int>(random_.below(static_cast<uint64_t>(count))); }
  bool chance(double probability) { return random_.uniform() < probability; }

 private:
  struct Mention {
    int sentence = -100;  // of the last mention
    int named = -100;     // of the last mention by name
    bool introduced = false;
  };

  static size_t slot(char key);
  void expand(std::string_view pattern);
  void reference(std::string_view body);
  void resolve(const Ref& ref, std::string_view body, std::string_view form);
  void refer_to_being(int b, std::string_view form);
  void refer_to_thing(int x, std::string_view form);
  void emit(std::string_view text);
  void end_sentence();
  bool pronoun_is_clear(int b) const;
  std::string possessor(int b);
  std::string name_of(int b);
  std::string phrase(int x) const;  // "little red kite"
  std::string short_phrase(int x) const;
  Mention& mention(int b);
  int& thing_mention(int x);

  World& world_;
  RandomStream& random_;
  Keys keys_;
  std::string text_;
  std::vector<Mention> beings_;
  std::vector<int> things_;  // sentence of the last mention
  std::vector<const char*> used_;
  std::string last_opening_;  // the first word of the last pattern, where it is plain
  int sentence_ = 0;
  int paragraph_start_ = 0;
  int last_thing_ = -100;
  bool capital_ = true;
  bool quote_ = false;
  bool quote_ended_sentence_ = false;
};

}  // namespace mixtral::stories
