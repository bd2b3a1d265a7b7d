#include "stories/small_world.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "stories/names.h"

namespace mixtral::stories {
namespace {

TEST(SmallWorld, AnswersFollowFromTheSimulation) {
  std::map<QuestionKind, int> kinds;
  for (uint64_t i = 0; i < 600; ++i) {
    const Question q = ask_small(1, Split::train, 0, i);
    SCOPED_TRACE(q.prompt());
    ++kinds[q.kind];
    const World& world = q.world;
    std::string subject;  // what all sentences begin with that could be the answer
    if (q.kind == QuestionKind::person_place) {
      subject = world.being(q.being).name + " was ";
      EXPECT_EQ(q.answer, subject + std::string(world.place(world.being(q.being).place).in));
      EXPECT_NE(q.question.find(world.being(q.being).name), std::string::npos);
    } else {
      ASSERT_EQ(q.kind, QuestionKind::holder);
      subject = "The " + std::string(world.kind(q.thing).noun) + " was with ";
      EXPECT_EQ(q.answer, subject + world.being(world.thing(q.thing).holder).name);
    }
    // The story's last sentence about the subject is the answer.
    EXPECT_EQ(q.story.rfind(subject), q.story.rfind(q.answer + "."));
    EXPECT_NE(q.wrong, q.answer);
    ASSERT_TRUE(q.wrong.starts_with(subject)) << q.wrong;
    std::string mention = q.wrong.substr(subject.size());
    if (q.kind == QuestionKind::person_place) mention = mention.substr(mention.find("the "));
    EXPECT_NE(q.story.find(mention), std::string::npos) << q.wrong;
    EXPECT_GE(q.candidates, 2);
  }
  EXPECT_EQ(kinds.size(), 2u);
  for (const auto& [kind, count] : kinds) EXPECT_GT(count, 120);
}

TEST(SmallWorld, NoCheapRuleAnswersTheQuestions) {
  ChanceLevel chance;
  for (uint64_t i = 0; i < 2000; ++i) chance.add(ask_small(1, Split::test, 0, i));
  EXPECT_LT(chance.guess(), 0.4);
  EXPECT_LT(chance.most_common(), 0.3);
  EXPECT_LT(chance.last_mentioned(), 0.6);
}

TEST(SmallWorld, TextsAreAFunctionOfSeedSplitAndIndexAndSplitsShareNone) {
  std::set<std::string> train;
  for (uint64_t i = 0; i < 1000; ++i) train.insert(tell_small_story(1, Split::train, i).text);
  EXPECT_GT(train.size(), 990u);
  for (uint64_t i = 0; i < 300; ++i) {
    const std::string text = tell_small_story(1, Split::test, i).text;
    EXPECT_FALSE(train.contains(text));
    EXPECT_EQ(text, tell_small_story(1, Split::test, i).text);
    EXPECT_NE(text, tell_small_story(2, Split::test, i).text);
  }
}

TEST(SmallWorld, ConversationsAskDifferentQuestionsAboutOneStory) {
  for (uint64_t i = 0; i < 50; ++i) {
    const Question q = ask_small(1, Split::train, 0, i, 3);
    EXPECT_EQ(q.text(), ask_small(1, Split::train, 0, i).text());
    std::set<std::string> asked{q.question};
    for (const Turn& turn : q.more) EXPECT_TRUE(asked.insert(turn.question).second);
    EXPECT_EQ(asked.size(), 3u);
  }
}

TEST(StoryNames, AreCountedAsIntroducedFromTheirIntroductionOn) {
  const NameCount stays =
      count_names("Once there was a girl named Mia. She had a friend named Tom. Mia saw Tom.");
  EXPECT_EQ(stays.mentions, 4);
  EXPECT_EQ(stays.introduced, 4);
  const NameCount drifts = count_names(
      "Once there was a girl named Mia. Ben gave the kite to Lily. "
      "Her friend Lily laughed, and Ben too. Miaow!");
  EXPECT_EQ(drifts.mentions, 5);
  EXPECT_EQ(drifts.introduced, 2);
  EXPECT_EQ(drifts.stray, (std::vector<std::string>{"Ben", "Lily"}));
  for (uint64_t i = 0; i < 200; ++i) {
    const Story story = tell_small_story(1, Split::train, i);
    if (story.plot == "small lesson") continue;  // has no introductions
    const NameCount count = count_names(story.text);
    EXPECT_GT(count.mentions, 5);
    EXPECT_EQ(count.introduced, count.mentions);
  }
}

}  // namespace
}  // namespace mixtral::stories
