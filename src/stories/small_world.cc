#include "stories/small_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "base/random.h"

namespace mixtral::stories {
namespace {

constexpr size_t kNames = 8;  // of each gender
constexpr int kPeople = 3, kPlaces = 4;
// Most texts are lessons: a few facts and questions about all of them. They are short, and nearly
// every word of an answer can be looked up, to teach looking things up. Of the
// days, most are followed by riddles.
constexpr double kLessonShare = 0.7, kSmallRiddleShare = 0.8;
constexpr std::array<std::string_view, 8> kThings = {"kite", "ball", "drum",   "hat",
                                                     "cup",  "bell", "bucket", "ribbon"};
constexpr std::array<std::string_view, 6> kColours = {"red",    "blue",  "green",
                                                      "yellow", "white", "brown"};
constexpr std::array<std::string_view, 8> kScenes = {"the market", "the park",  "the pond",
                                                     "the forest", "the beach", "the farm",
                                                     "the garden", "the school"};
// What changes in a day, and all that is asked about one. Lessons have no hero.
constexpr std::array kFactKinds = {QuestionKind::person_place, QuestionKind::holder};
constexpr std::array kKinds = {QuestionKind::hero, QuestionKind::person_place,
                               QuestionKind::holder};

/// One question that could be asked: its answer, and the others that the story offers.
struct Choice {
  /// An answer, and the words by which a story mentions it: of "in the park", "the park".
  struct Answer {
    std::string text, mention;
  };
  std::string question;
  Answer answer;
  std::vector<Answer> others;
  int being = -1, thing = -1, place = -1;
};

/// A day of three people, told as it happens.
class SmallDay {
 public:
  explicit SmallDay(RandomStream& random) : random_(random) {
    const auto places = draw(kScenes.size(), kPlaces), things = draw(kThings.size(), kPeople),
               colours = draw(kColours.size(), kPeople);
    for (size_t place : places) world_.add_place(place_kind(kScenes[place]));
    // Names of one gender come first in this order, so that any mixture may come out.
    const auto names = draw(2 * kNames, kPeople);
    for (int i = 0; i < kPeople; ++i) {
      const auto at = static_cast<size_t>(i);
      const bool girl = names[at] < kNames;
      Being being;
      being.name = girl ? girl_names()[names[at]] : boy_names()[names[at] - kNames];
      being.noun = girl ? "girl" : "boy";
      being.gender = girl ? Gender::female : Gender::male;
      being.place = pick(kPlaces);
      world_.add_being(std::move(being));
      Thing thing;
      thing.kind = thing_kind(kThings[things[at]]);
      thing.colour = kColours[colours[at]];
      thing.holder = i;
      world_.add_thing(std::move(thing));
    }
  }

  /// What decides the split.
  std::array<std::string_view, 4> combination() const {
    return {world_.being(0).name, world_.being(1).name, world_.kind(0).noun,
            world_.place(world_.first_places().front()).name};
  }

  /// Tells the day. `after_event` is called after each event.
  void tell(int events, const std::function<void()>& after_event = {}) {
    const Being& hero = world_.being(0);
    const std::string_view pronoun = hero.gender == Gender::female ? "She" : "He";
    say(fmt::format("{} a {} named {}.",
                    one_of({"Once there was", "There was once", "Long ago there was"}), hero.noun,
                    hero.name));
    say(fmt::format("{} had a friend named {}.", pronoun, name(1)));
    say(fmt::format("{} had another friend named {}.", pronoun, name(2)));
    tell_facts(kPeople);
    tell_events(events, after_event);
    say(one_of({"It was a good day.", "They were all happy.", "What a day that was."}));
  }

  /// What each of the first `people` of them has and where they are, in any order.
  void tell_facts(int people) {
    for (size_t person : draw(static_cast<size_t>(people), people)) {
      const auto b = static_cast<int>(person);
      say(fmt::format("{} had a {} {}.", name(b), world_.thing(b).colour, world_.kind(b).noun));
      say(fmt::format("{} was {}.", name(b), in(world_.being(b).place)));
    }
  }

  /// Tells so many events. `after_event` is called after each.
  void tell_events(int events, const std::function<void()>& after_event = {}) {
    for (int i = 0; i < events; ++i) {
      if (chance(0.2))
        say(one_of({"The sun was shining.", "The birds were singing.", "A soft wind blew.",
                    "It was a fine day."}));
      chance(0.4) ? tell_gift() : tell_walk(pick(kPeople));
      if (after_event) after_event();
    }
  }

  /// Asks and answers every question about where the first `people` of them are and who has their
  /// things, in any order.
  void answer_all(int people) {
    std::vector<Choice> all;
    for (QuestionKind kind : kFactKinds)
      for (Choice& choice : questions(kind, people)) all.push_back(std::move(choice));
    for (size_t i : draw(all.size(), static_cast<int>(all.size()))) say_riddle(all[i]);
  }

  void say_riddle(const Choice& choice) {
    say(fmt::format("{} Answer: {}.", choice.question, choice.answer.text));
  }

  /// The questions of that kind which have an answer and, in the story so far, a wrong one.
  std::vector<Choice> choices(QuestionKind kind) const {
    std::vector<Choice> found = questions(kind, kPeople);
    std::erase_if(found, [](const Choice& choice) { return choice.others.empty(); });
    return found;
  }

  /// The questions of that kind about the first `people` of them and their things.
  std::vector<Choice> questions(QuestionKind kind, int people) const {
    std::vector<Choice> found;
    const int subjects = kind == QuestionKind::hero ? 1 : people;
    for (int i = 0; i < subjects; ++i) {
      Choice choice;
      if (kind == QuestionKind::hero) {
        choice = {.question = "Who is the story about?",
                  .answer = {name(i), name(i)},
                  .others = {},
                  .being = i};
        for (int b = 0; b < people; ++b) choice.others.push_back({name(b), name(b)});
      } else if (kind == QuestionKind::person_place) {
        choice = {.question = fmt::format("Where is {} now?", name(i)),
                  .answer = answer_of(world_.being(i).place),
                  .others = {},
                  .being = i,
                  .place = world_.being(i).place};
        for (int p = 0; p < kPlaces; ++p) choice.others.push_back(answer_of(p));
      } else {
        const int holder = world_.thing(i).holder;
        choice = {.question = fmt::format("Who has the {} now?", world_.kind(i).noun),
                  .answer = {name(holder), name(holder)},
                  .others = {},
                  .being = holder,
                  .thing = i};
        for (int b = 0; b < kPeople; ++b) choice.others.push_back({name(b), name(b)});
      }
      // Only what the story mentions is an answer that it offers.
      std::erase_if(choice.others, [&](const Choice::Answer& other) {
        return other.text == choice.answer.text || text_.find(other.mention) == std::string::npos;
      });
      found.push_back(std::move(choice));
    }
    return found;
  }

  /// One of them: first an answer, all answers alike, then a question that has it. Nothing where
  /// the story so far offers no second answer to any such question.
  std::optional<Choice> choose(QuestionKind kind) {
    const std::vector<Choice> found = choices(kind);
    if (found.empty()) return std::nullopt;
    std::vector<std::string> answers;
    answers.reserve(found.size());
    for (const Choice& choice : found) answers.push_back(choice.answer.text);
    std::ranges::sort(answers);
    answers.erase(std::unique(answers.begin(), answers.end()), answers.end());
    const std::string& answer = answers[index(pick(answers.size()))];
    std::vector<const Choice*> right;
    for (const Choice& choice : found)
      if (choice.answer.text == answer) right.push_back(&choice);
    return *right[index(pick(right.size()))];
  }
  std::optional<Choice> choose_any() { return choose(kKinds[index(pick(kKinds.size()))]); }

  void say(std::string_view sentence) {
    if (!text_.empty() && text_.back() != '\n') text_ += ' ';
    text_ += sentence;
  }
  void new_line() { text_ += '\n'; }
  int pick(size_t count) { return static_cast<int>(random_.below(count)); }
  bool chance(double probability) { return random_.uniform() < probability; }
  const std::string& text() const { return text_; }
  World& world() { return world_; }

 private:
  static size_t index(int i) { return static_cast<size_t>(i); }
  const std::string& name(int b) const { return world_.being(b).name; }
  std::string in(int place) const { return std::string(world_.place(place).in); }
  Choice::Answer answer_of(int place) const {
    return {in(place), std::string(world_.place(place).name)};
  }

  std::string_view one_of(std::initializer_list<std::string_view> texts) {
    return texts.begin()[random_.below(texts.size())];
  }
  /// So many different numbers below `limit`.
  std::vector<size_t> draw(size_t limit, int count) {
    std::vector<size_t> all(limit);
    for (size_t i = 0; i < limit; ++i) all[i] = i;
    for (size_t i = 0; i < index(count); ++i) std::swap(all[i], all[i + random_.below(limit - i)]);
    all.resize(index(count));
    return all;
  }

  void walk(int b, int to) {
    world_.go(b, to);
    say(fmt::format("{} {} {}.", name(b), one_of({"went", "ran", "walked"}), world_.place(to).to));
  }
  void tell_walk(int b) {
    const int step = 1 + pick(kPlaces - 1);
    walk(b, (world_.being(b).place + step) % kPlaces);
  }
  /// Somebody goes to another one, unless both are in one place, and gives a thing away.
  void tell_gift() {
    const int x = pick(kPeople), from = world_.thing(x).holder;
    const int to = (from + 1 + pick(kPeople - 1)) % kPeople;
    if (world_.being(from).place != world_.being(to).place) walk(from, world_.being(to).place);
    world_.give(from, to, x);
    say(fmt::format("{} gave the {} to {}.", name(from), world_.kind(x).noun, name(to)));
    if (chance(0.3)) say(fmt::format("\"Thank you,\" said {}.", name(to)));
  }

  RandomStream& random_;
  World world_;
  std::string text_;
};

void add_riddle(SmallDay& day, std::vector<std::string>& asked) {
  const std::optional<Choice> choice = day.choose_any();
  if (!choice || std::ranges::find(asked, choice->question) != asked.end()) return;
  asked.push_back(choice->question);
  day.say_riddle(*choice);
}

bool is_last_mentioned(const std::string& story, const Choice& choice) {
  const auto last = [&](const Choice::Answer& answer) {
    return static_cast<int64_t>(story.rfind(answer.mention) + 1);  // 0 where it is not there
  };
  return std::ranges::all_of(choice.others, [&](const Choice::Answer& other) {
    return last(choice.answer) > last(other);
  });
}

}  // namespace

Story tell_small_story(uint64_t seed, Split split, uint64_t index) {
  RandomStream random(seed, index << 8 | 0x80 | static_cast<uint64_t>(split));
  const bool lesson = random.uniform() < kLessonShare;
  const bool riddles = !lesson && random.uniform() < kSmallRiddleShare;
  while (true) {
    SmallDay day(random);
    if (split_of(day.combination()) != split) continue;
    std::vector<std::string> asked;
    if (lesson) {
      // Of two at least: hero and friend decide the split.
      const int people = 2 + day.pick(kPeople - 1);
      day.tell_facts(people);
      if (people == kPeople) day.tell_events(day.pick(3));
      day.answer_all(people);
    } else if (riddles) {
      // Asked at once, a riddle needs only the last sentences: a step towards those at the end.
      day.say("Listen well.");
      day.tell(1 + day.pick(4), [&] {
        std::vector<std::string> now;
        if (day.chance(0.5)) add_riddle(day, now);
      });
      day.new_line();
      for (int i = 0; i < 16; ++i) add_riddle(day, asked);
    } else {
      day.tell(2 + day.pick(4));
    }
    const std::string hero = day.world().being(0).name;
    return {day.text(),
            lesson    ? "small lesson"
            : riddles ? "small riddles"
                      : "small day",
            hero,
            {}};
  }
}

Question ask_small(uint64_t seed, Split split, uint64_t stream, uint64_t index, int turns) {
  RandomStream random(seed, index << 8 | 0x80 | (stream + 1) << 2 | static_cast<uint64_t>(split));
  const QuestionKind kind = kKinds[random.below(kKinds.size())];
  while (true) {
    SmallDay day(random);
    if (split_of(day.combination()) != split) continue;
    day.tell(2 + day.pick(3));
    const std::optional<Choice> chosen = day.choose(kind);
    if (!chosen) continue;
    const Choice& choice = *chosen;
    Question result;
    result.kind = kind;
    result.story = day.text();
    result.question = choice.question;
    result.answer = choice.answer.text;
    result.wrong = choice.others[random.below(choice.others.size())].text;
    result.candidates = static_cast<int>(choice.others.size()) + 1;
    result.answer_is_last = is_last_mentioned(result.story, choice);
    result.being = choice.being;
    result.thing = choice.thing;
    result.place = choice.place;
    std::vector<std::string> asked{choice.question};
    for (int i = 0; i < 20 && static_cast<int>(asked.size()) < turns; ++i) {
      const std::optional<Choice> more = day.choose_any();
      if (!more || std::ranges::find(asked, more->question) != asked.end()) continue;
      asked.push_back(more->question);
      result.more.push_back({more->question, more->answer.text});
    }
    result.world = std::move(day.world());
    return result;
  }
}

}  // namespace mixtral::stories
