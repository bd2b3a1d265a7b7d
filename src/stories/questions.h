#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/record.h"
#include "stories/stage.h"
#include "stories/world.h"

namespace mixtral::stories {

enum class QuestionKind {
  holder,        // Who has the kite at the end?
  thing_place,   // Where is the kite at the end?
  person_place,  // Where is Mia at the end?
  giver,         // Who gave the kite to Tom?
  receiver,      // Who got the kite from Mia?
  colour,        // What colour is the kite?
  reason,        // Why did Mia go to the market?
  count,         // How many things does Mia have at the end?
  yes_no,        // Does Mia have the kite at the end?
  hero,          // Who is the story about? Of the small world alone
};
inline constexpr int kQuestionKinds = 10, kFullWorldKinds = 9;
std::string_view question_kind_name(QuestionKind kind);

/// A question and its answer.
struct Turn {
  std::string question, answer;
};

/// A short story (45 to 120 words), a question about it, and the answer as the simulation knows it.
struct Question {
  QuestionKind kind = QuestionKind::holder;
  std::string story, question;
  std::string answer;  // one to five words, to be matched exactly: "Mia", "at the market", "yes"
  std::string wrong;   // another answer of the same sort, from the same story where it has one
  int candidates = 0;  // answers of that sort that the story offers, the right one included
  bool answer_is_last = false;  // of these, the right one is the last that the story mentions

  std::vector<Turn> more;  // further questions about the same story

  // For checking the answer against the world: what is asked about (-1: does not apply).
  World world;
  int being = -1, other = -1, thing = -1, place = -1;

  /// "###user: STORY QUESTION ###Assistant:"; the answer follows after a space.
  std::string prompt() const;
  std::string text() const { return prompt() + " " + answer; }
};

/// The `index`-th question of a split: a function of (seed, split, stream, index) alone. The
/// streams are independent sets of questions from the same worlds. With `turns` above 1, up to that
/// many questions are asked about the story; the first is the same as with one.
Question ask(uint64_t seed, Split split, uint64_t stream, uint64_t index, int turns = 1);

/// A day in the simulated world as a story for pretraining: a scene like those that questions are
/// asked about, with such questions and their answers after it and, now and then, in its course, as
/// the narrator asks children whether they are listening. Played on a stage whose premise is of
/// draw_scene_premise().
void tell_riddle_story(Stage& stage);

/// How well one does on questions without reading: what a score must be compared with.
class ChanceLevel {
 public:
  void add(const Question& question);
  int64_t count() const { return count_; }
  /// Guessing among the answers of the right sort that the story offers.
  double guess() const { return count_ == 0 ? 0 : guess_ / static_cast<double>(count_); }
  /// Always giving the most common answer of the question's kind.
  double most_common() const;
  /// Giving the last answer of the right sort that the story mentions.
  double last_mentioned() const;
  int64_t count(QuestionKind kind) const { return kinds_[static_cast<size_t>(kind)]; }

 private:
  int64_t count_ = 0, last_ = 0;
  double guess_ = 0;
  std::array<int64_t, kQuestionKinds> kinds_{};
  std::array<std::vector<std::pair<std::string, int64_t>>, kQuestionKinds> answers_;
};

}  // namespace mixtral::stories
