#include "stories/questions.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "stories/plots.h"
#include "stories/question_scene.h"
#include "stories/stories.h"

namespace mixtral::stories {
namespace {

constexpr int kMinStoryWords = 45, kMaxStoryWords = 120;
constexpr int kLeastEvents = 4, kMostEvents = 6;  // of a scene that is asked about

/// One question that could be asked: its answer and the other answers that the story offers.
struct Candidate {
  std::string question, answer;
  std::vector<std::string> others;
  int being = -1, other = -1, thing = -1, place = -1;
};

class Asker {
 public:
  Asker(Stage& stage, const SceneCast& cast, bool at_the_end = true)
      : s_(stage), world_(stage.world), cast_(cast), when_(at_the_end ? " at the end?" : " now?") {}

  std::vector<Candidate> ask(QuestionKind kind) {
    switch (kind) {
      case QuestionKind::holder:
        ask_holder();
        break;
      case QuestionKind::thing_place:
        ask_thing_place();
        break;
      case QuestionKind::person_place:
        ask_person_place();
        break;
      case QuestionKind::giver:
        ask_about_gifts(true);
        break;
      case QuestionKind::receiver:
        ask_about_gifts(false);
        break;
      case QuestionKind::colour:
        ask_colour();
        break;
      case QuestionKind::reason:
        ask_reason();
        break;
      case QuestionKind::count:
        ask_count();
        break;
      case QuestionKind::yes_no:
        ask_yes_no();
        break;
      case QuestionKind::hero:
        break;
    }
    return std::move(found_);
  }

 private:
  const std::string& name(int b) const { return world_.being(b).name; }
  std::string the(int x) const { return fmt::format("the {}", world_.kind(x).noun); }
  std::string at(int p) const { return std::string(world_.place(p).in); }

  std::vector<std::string> names_but(int b, int c = -1) const {
    std::vector<std::string> names;
    for (int other : cast_.people) {
      if (other != b && other != c) names.push_back(name(other));
    }
    return names;
  }
  std::vector<std::string> places_but(int p) const {
    std::vector<std::string> places;
    for (int other : cast_.places) {
      if (other != p) places.push_back(at(other));
    }
    return places;
  }
  void add(std::vector<std::string> wordings, Candidate candidate) {
    candidate.question = wordings[static_cast<size_t>(s_.pick(static_cast<int>(wordings.size())))];
    found_.push_back(std::move(candidate));
  }

  void ask_holder() {
    for (int x : cast_.things) {
      const int b = world_.thing(x).holder;
      if (b < 0) continue;
      add({"Who has " + the(x) + when_, "Who is holding " + the(x) + " now?"},
          {.question = {}, .answer = name(b), .others = names_but(b), .being = b, .thing = x});
    }
  }

  void ask_thing_place() {
    for (int x : cast_.things) {
      const int p = world_.place_of(x);
      add({"Where is " + the(x) + when_, "Where is " + the(x) + " now?"},
          {.question = {}, .answer = at(p), .others = places_but(p), .thing = x, .place = p});
    }
  }

  void ask_person_place() {
    for (int b : cast_.people) {
      const int p = world_.being(b).place;
      add({"Where is " + name(b) + when_, "Where is " + name(b) + " now?"},
          {.question = {}, .answer = at(p), .others = places_but(p), .being = b, .place = p});
    }
  }

  void ask_about_gifts(bool giver) {
    for (const Event& event : world_.events()) {
      if (event.kind != Event::Kind::give) continue;
      int same = 0;
      for (const Event& other : world_.events()) {
        same += other.kind == Event::Kind::give && other.thing == event.thing &&
                (giver ? other.whom == event.whom : other.who == event.who);
      }
      if (same != 1) continue;
      const std::string x = the(event.thing);
      if (giver) {
        add({"Who gave " + x + " to " + name(event.whom) + "?",
             "From whom did " + name(event.whom) + " get " + x + "?"},
            {.question = {},
             .answer = name(event.who),
             .others = names_but(event.who, event.whom),
             .being = event.who,
             .other = event.whom,
             .thing = event.thing});
      } else {
        add({"Who got " + x + " from " + name(event.who) + "?",
             "To whom did " + name(event.who) + " give " + x + "?"},
            {.question = {},
             .answer = name(event.whom),
             .others = names_but(event.whom, event.who),
             .being = event.whom,
             .other = event.who,
             .thing = event.thing});
      }
    }
    // With two people there is nobody else whom one could name.
    std::erase_if(found_, [](const Candidate& c) { return c.others.empty(); });
  }

  void ask_colour() {
    for (int x : cast_.things) {
      if (world_.thing(x).colour.empty()) continue;
      Candidate candidate{
          .question = {}, .answer = world_.thing(x).colour, .others = {}, .thing = x};
      for (int other : cast_.things) {
        const std::string& colour = world_.thing(other).colour;
        if (!colour.empty() && colour != candidate.answer) candidate.others.push_back(colour);
      }
      if (candidate.others.empty()) continue;
      add({"What colour is " + the(x) + "?", "Which colour does " + the(x) + " have?"},
          std::move(candidate));
    }
  }

  void ask_reason() {
    for (const Event& event : world_.events()) {
      if (event.kind != Event::Kind::go || event.why.empty()) continue;
      int same = 0;
      Candidate candidate{.question = {},
                          .answer = event.why,
                          .others = {},
                          .being = event.who,
                          .place = event.place};
      for (const Event& other : world_.events()) {
        if (other.kind != Event::Kind::go || other.why.empty()) continue;
        same += other.who == event.who && other.place == event.place;
        if (other.why != event.why) candidate.others.push_back(other.why);
      }
      if (same != 1 || candidate.others.empty()) continue;
      std::sort(candidate.others.begin(), candidate.others.end());
      candidate.others.erase(std::unique(candidate.others.begin(), candidate.others.end()),
                             candidate.others.end());
      const std::string to(world_.place(event.place).to);
      add({"Why did " + name(event.who) + " go " + to + "?"}, std::move(candidate));
    }
  }

  void ask_count() {
    constexpr std::string_view kNumbers[] = {"none", "one", "two", "three"};
    auto add_count = [&](size_t n, std::vector<std::string> wordings, int being, int place) {
      if (n > 3) return;
      Candidate candidate{.question = {},
                          .answer = std::string(kNumbers[n]),
                          .others = {},
                          .being = being,
                          .place = place};
      for (auto number : kNumbers) {
        if (number != candidate.answer) candidate.others.emplace_back(number);
      }
      add(std::move(wordings), std::move(candidate));
    };
    for (int b : cast_.people) {
      size_t n = 0;
      for (int x : cast_.things) n += world_.thing(x).holder == b;
      add_count(n, {"How many things does " + name(b) + " have" + when_}, b, -1);
    }
    for (int p : cast_.places) {
      size_t n = 0;
      for (int b : cast_.people) n += world_.being(b).place == p;
      add_count(n, {"How many people are " + at(p) + when_}, -1, p);
    }
  }

  void ask_yes_no() {
    auto add_yes_no = [&](bool yes, std::string question, int being, int thing, int place) {
      add({std::move(question)}, {.question = {},
                                  .answer = yes ? "yes" : "no",
                                  .others = {yes ? "no" : "yes"},
                                  .being = being,
                                  .thing = thing,
                                  .place = place});
    };
    for (int b : cast_.people) {
      for (int x : cast_.things) {
        add_yes_no(world_.thing(x).holder == b, "Does " + name(b) + " have " + the(x) + when_, b, x,
                   -1);
      }
      for (int p : cast_.places) {
        add_yes_no(world_.being(b).place == p, "Is " + name(b) + " " + at(p) + when_, b, -1, p);
      }
    }
  }

  Stage& s_;
  const World& world_;
  const SceneCast& cast_;
  std::string when_;
  std::vector<Candidate> found_;
};

/// One of the candidates: first an answer, all answers alike, then a question that has it, so that
/// no answer is common only because it is often true.
const Candidate& choose(const std::vector<Candidate>& found, Stage& stage) {
  std::vector<std::string> answers;
  answers.reserve(found.size());
  for (const Candidate& c : found) answers.push_back(c.answer);
  std::sort(answers.begin(), answers.end());
  answers.erase(std::unique(answers.begin(), answers.end()), answers.end());
  const std::string& answer =
      answers[static_cast<size_t>(stage.pick(static_cast<int>(answers.size())))];
  std::vector<const Candidate*> right;
  for (const Candidate& c : found) {
    if (c.answer == answer) right.push_back(&c);
  }
  return *right[static_cast<size_t>(stage.pick(static_cast<int>(right.size())))];
}

bool is_last_mentioned(const std::string& story, const std::string& answer,
                       const std::vector<std::string>& others) {
  auto place = [&](const std::string& text) {
    const size_t at = story.rfind(text);
    return at == std::string::npos ? int64_t{-1} : static_cast<int64_t>(at);
  };
  return std::all_of(others.begin(), others.end(),
                     [&](const std::string& other) { return place(answer) > place(other); });
}

constexpr int kTries = 40;  // at another question about a story

/// A question of any kind that is not among those asked; nothing where this draw finds none.
std::optional<Turn> ask_another(Stage& stage, const SceneCast& cast, bool at_the_end,
                                const std::vector<std::string>& asked) {
  const auto found =
      Asker(stage, cast, at_the_end).ask(static_cast<QuestionKind>(stage.pick(kFullWorldKinds)));
  if (found.empty()) return std::nullopt;
  const Candidate& chosen = choose(found, stage);
  if (std::find(asked.begin(), asked.end(), chosen.question) != asked.end()) return std::nullopt;
  return Turn{chosen.question, chosen.answer};
}

/// Further questions about the same story, until there are `turns` or no more are found.
void add_turns(Stage& stage, const SceneCast& cast, int turns, Question& question) {
  std::vector<std::string> asked{question.question};
  for (int i = 0; i < kTries && static_cast<int>(asked.size()) < turns; ++i) {
    if (auto turn = ask_another(stage, cast, true, asked)) {
      asked.push_back(turn->question);
      question.more.push_back(std::move(*turn));
    }
  }
}

}  // namespace

std::string_view question_kind_name(QuestionKind kind) {
  constexpr std::string_view kNames[] = {
      "who has it",  "where is it", "where is who", "who gave it", "who got it",
      "what colour", "why",         "how many",     "yes or no",   "who it is about"};
  return kNames[static_cast<int>(kind)];
}

std::string Question::prompt() const {
  return fmt::format("###user: {} {} ###Assistant:", story, question);
}

Question ask(uint64_t seed, Split split, uint64_t stream, uint64_t index, int turns) {
  RandomStream random(seed, index << 8 | (stream + 1) << 2 | static_cast<uint64_t>(split));
  const auto kind = static_cast<QuestionKind>(random.below(kFullWorldKinds));
  while (true) {
    const Premise premise = draw_scene_premise(random);
    if (split_of(premise) != split) continue;
    Stage stage(premise, RandomStream(random.next(), 0));
    const SceneCast cast = tell_scene(stage, kLeastEvents, kMostEvents);
    const int words = stage.teller.words();
    if (words < kMinStoryWords || words > kMaxStoryWords) continue;
    const auto found = Asker(stage, cast).ask(kind);
    if (found.empty()) continue;
    const Candidate& chosen = choose(found, stage);
    Question result;
    result.kind = kind;
    result.story = stage.teller.text();
    result.question = chosen.question;
    result.answer = chosen.answer;
    result.wrong =
        chosen.others[static_cast<size_t>(stage.pick(static_cast<int>(chosen.others.size())))];
    result.candidates = static_cast<int>(chosen.others.size()) + 1;
    result.answer_is_last = is_last_mentioned(result.story, chosen.answer, chosen.others);
    result.being = chosen.being;
    result.other = chosen.other;
    result.thing = chosen.thing;
    result.place = chosen.place;
    add_turns(stage, cast, turns, result);
    result.world = std::move(stage.world);
    return result;
  }
}

void tell_riddle_story(Stage& s) {
  constexpr int kRiddles = 6, kLeastAtTheEnd = 3;
  // A riddle asked at once needs only the last sentence or two: an easy step towards those that
  // need the whole day.
  constexpr double kRiddleInBetween = 0.35;
  std::vector<std::string> asked;  // at the end
  auto riddle = [&](const SceneCast& cast, bool at_the_end) {
    const auto turn = ask_another(s, cast, at_the_end, asked);
    if (!turn) return;
    if (at_the_end) asked.push_back(turn->question);
    s.teller.bind_text('q', turn->question);
    s.teller.bind_text('w', turn->answer);
    s.say(s.one_of(
        "{q} {W}.|{q} The answer is: {w}.|{q} Right: {w}.|{q} The answer, of course: {w}."));
  };
  // From one event up: what is learnt on short days helps with long ones.
  int in_between = 0;
  const SceneCast cast = tell_scene(s, 1, kMostEvents, [&](const SceneCast& so_far) {
    if (!s.chance(kRiddleInBetween)) return;
    riddle(so_far, false);
    ++in_between;
  });
  s.paragraph();
  s.maybe(0.7, {"Now, did you listen well?", "And now the riddles.", "Who can tell?",
                "Let us see who has been listening.", "Do you remember?", "Now think back."});
  const int at_the_end = std::max(kLeastAtTheEnd, kRiddles - in_between);
  for (int i = 0; i < kTries && static_cast<int>(asked.size()) < at_the_end; ++i) {
    riddle(cast, true);
  }
}

void ChanceLevel::add(const Question& question) {
  const auto k = static_cast<size_t>(question.kind);
  ++count_;
  ++kinds_[k];
  guess_ += 1.0 / question.candidates;
  last_ += question.answer_is_last;
  auto& answers = answers_[k];
  const auto at = std::find_if(answers.begin(), answers.end(),
                               [&](const auto& entry) { return entry.first == question.answer; });
  if (at == answers.end()) {
    answers.emplace_back(question.answer, 1);
  } else {
    ++at->second;
  }
}

double ChanceLevel::most_common() const {
  int64_t right = 0;
  for (const auto& answers : answers_) {
    int64_t most = 0;
    for (const auto& [answer, n] : answers) most = std::max(most, n);
    right += most;
  }
  return count_ == 0 ? 0 : static_cast<double>(right) / static_cast<double>(count_);
}

double ChanceLevel::last_mentioned() const {
  return count_ == 0 ? 0 : static_cast<double>(last_) / static_cast<double>(count_);
}

}  // namespace mixtral::stories
