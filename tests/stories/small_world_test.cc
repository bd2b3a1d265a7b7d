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
    if (q.kind == QuestionKind::hero) {
      EXPECT_EQ(q.answer, world.being(0).name);
      EXPECT_NE(q.story.find(" named " + q.answer), std::string::npos);
    } else if (q.kind == QuestionKind::person_place) {
      EXPECT_EQ(q.answer, world.place(world.being(q.being).place).in);
      EXPECT_NE(q.question.find(world.being(q.being).name), std::string::npos);
    } else {
      ASSERT_EQ(q.kind, QuestionKind::holder);
      EXPECT_EQ(q.answer, world.being(world.thing(q.thing).holder).name);
    }
    // A story says "went to the park" of what is answered as "in the park".
    const auto is_told = [&](const std::string& answer) {
      for (int p = 0; p < static_cast<int>(world.places.size()); ++p)
        if (world.place(p).in == answer)
          return q.story.find(world.place(p).name) != std::string::npos;
      return q.story.find(answer) != std::string::npos;
    };
    EXPECT_TRUE(is_told(q.answer)) << q.answer;
    EXPECT_NE(q.wrong, q.answer);
    EXPECT_TRUE(is_told(q.wrong)) << q.wrong;
    EXPECT_GE(q.candidates, 2);
  }
  EXPECT_EQ(kinds.size(), 3u);
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
