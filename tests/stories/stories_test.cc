#include "stories/stories.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/threads.h"
#include "stories/files.h"
#include "stories/grammar.h"
#include "stories/lexicon.h"
#include "stories/plots.h"
#include "stories/questions.h"
#include "stories/teller.h"

namespace mixtral::stories {
namespace {

constexpr int kStories = 2400;

std::vector<Story> some_stories(Split split, int count) {
  std::vector<Story> result;
  for (int i = 0; i < count; ++i) {
    result.push_back(tell_story(1, split, static_cast<uint64_t>(i)));
  }
  return result;
}

int count_words(const std::string& text) {
  int count = 0;
  bool inside = false;
  for (char c : text) {
    const bool space = c == ' ' || c == '\n';
    count += !space && !inside;
    inside = !space;
  }
  return count;
}

/// What is wrong with a text's form, or "".
std::string form_fault(const std::string& text) {
  static const std::vector<std::pair<std::regex, const char*>> kFaults = [] {
    const std::pair<const char*, const char*> sources[] = {
        {"  ", "two spaces"},
        {" \\n", "a space before a line end"},
        {"\\n ", "a space after a line end"},
        {" [,.!?]", "a space before punctuation"},
        {",,", "two commas"},
        {",[.!?]", "a comma before a stop"},
        {"[.!?][.!?]", "two stops"},
        {"[{}\\[\\]|`]", "a piece of a template"},
        {"[.!?] [a-z]", "a small letter after a stop"},
        {"^[a-z]", "a small letter at the beginning"},
        {"\\n[a-z]", "a small letter at the beginning of a paragraph"},
        {"\\b([Aa]) [aeiou]", "a before a vowel"},
        {"\\b([Aa])n [^aeiouh]", "an before a consonant"},
        {"\\b(\\w+) \\1\\b", "a word twice"},
        {"\\b(to|for|with|from|gave|told) (he|she)\\b", "a subject pronoun as an object"},
        {"(said|cried|asked) (he|she)\\b", "an inverted pronoun"},
    };
    std::vector<std::pair<std::regex, const char*>> compiled;
    for (const auto& [pattern, fault] : sources) {
      compiled.emplace_back(std::regex(pattern, std::regex::optimize), fault);
    }
    return compiled;
  }();
  for (const auto& [regex, fault] : kFaults) {
    std::smatch match;
    std::string rest = text;
    while (std::regex_search(rest, match, regex)) {
      const std::string found = match.str();
      // "had had" and "that that" are English; "a one-eyed bear" and "a unicorn" are said with a
      // consonant.
      const std::string around = std::string(match.prefix())
                                     .substr(match.prefix().length() > 30
                                                 ? static_cast<size_t>(match.prefix().length()) - 30
                                                 : 0);
      const std::string after = found + std::string(match.suffix()).substr(0, 30);
      rest = match.suffix();
      if (found == "had had" || after.starts_with("a one")) continue;
      return fmt::format("{}: …{}{}", fault, around, after);
    }
  }
  if (std::count(text.begin(), text.end(), '"') % 2 != 0) return "an open quotation mark";
  const char last = text.back();
  if (last != '.' && last != '!' && last != '?' && last != '"') return "no stop at the end";
  return {};
}

TEST(Stories, AreAFunctionOfSeedSplitAndIndex) {
  for (uint64_t i : {0u, 1u, 17u, 1000u}) {
    const auto story = tell_story(5, Split::train, i);
    EXPECT_EQ(story.text, tell_story(5, Split::train, i).text);
    EXPECT_NE(story.text, tell_story(6, Split::train, i).text);
    EXPECT_NE(story.text, tell_story(5, Split::val, i).text);
    EXPECT_NE(story.text, tell_story(5, Split::train, i + 1).text);
  }
}

TEST(Stories, EveryOneHasTheRightLengthAndForm) {
  int faults = 0;
  for (const Story& story : some_stories(Split::train, kStories / 6)) {
    const int words = count_words(story.text);
    EXPECT_GE(words, 60);
    EXPECT_LE(words, 250);
    const std::string fault = form_fault(story.text);
    if (!fault.empty() && ++faults < 20) ADD_FAILURE() << story.plot << ": " << fault;
  }
}

TEST(Stories, AllPlotsOccurAndNoTwoTextsAreAlike) {
  std::map<std::string, int> count;
  std::set<std::string> texts;
  for (const Story& story : some_stories(Split::train, kStories)) {
    ++count[story.plot];
    EXPECT_TRUE(texts.insert(story.text).second) << story.text;
  }
  EXPECT_EQ(count.size(), plots().size() + 1);  // and days with riddles
  EXPECT_GE(count.size(), 20u);
  for (const auto& [plot, n] : count) EXPECT_GE(n, kStories / 400) << plot;
}

TEST(Stories, SentencesVary) {
  std::map<std::string, int> sentences;
  int total = 0;
  for (const Story& story : some_stories(Split::train, kStories)) {
    std::string sentence;
    for (char c : story.text) {
      sentence += c;
      if (c == '.' || c == '!' || c == '?') {
        ++sentences[sentence];
        ++total;
        sentence.clear();
      }
    }
  }
  EXPECT_GT(static_cast<double>(sentences.size()) / total, 0.45);
}

TEST(Stories, SplitsShareNoCombinationOfHeroPlotThingAndPlace) {
  using Key = std::tuple<std::string, int, int, int>;
  std::map<Key, Split> seen;
  std::map<std::string, Split> texts;
  for (Split split : {Split::train, Split::val, Split::test}) {
    for (const Story& story : some_stories(split, kStories / 3)) {
      const Premise& p = story.premise;
      EXPECT_EQ(split_of(p), split);
      const auto [at, fresh] = seen.emplace(Key(p.hero, p.plot, p.thing, p.place), split);
      EXPECT_TRUE(fresh || at->second == split);
      const auto [text, new_text] = texts.emplace(story.text, split);
      EXPECT_TRUE(new_text || text->second == split);
    }
  }
}

TEST(Questions, AnswersFollowFromTheSimulation) {
  int checked = 0;
  for (uint64_t i = 0; i < 3000; ++i) {
    const Question q = ask(3, Split::train, 0, i);
    const World& w = q.world;
    // The events again, by hand, from the first positions.
    std::vector<int> place = w.first_places(), holder, thing_place;
    for (const Thing& t : w.first_things()) {
      holder.push_back(t.holder);
      thing_place.push_back(t.place);
    }
    std::map<std::pair<int, int>, int> giver_of, receiver_of;
    std::string reason;
    for (const Event& e : w.events()) {
      const auto who = static_cast<size_t>(e.who), x = static_cast<size_t>(e.thing);
      switch (e.kind) {
        case Event::Kind::go:
          place[who] = e.place;
          if (e.who == q.being && e.place == q.place && !e.why.empty()) reason = e.why;
          break;
        case Event::Kind::give:
          ASSERT_EQ(holder[x], e.who);
          ASSERT_EQ(place[who], place[static_cast<size_t>(e.whom)]);
          holder[x] = e.whom;
          giver_of[{e.thing, e.whom}] = e.who;
          receiver_of[{e.thing, e.who}] = e.whom;
          break;
        case Event::Kind::take:
          ASSERT_EQ(holder[x], -1);
          ASSERT_EQ(thing_place[x], place[who]);
          holder[x] = e.who;
          break;
        case Event::Kind::put:
          ASSERT_EQ(holder[x], e.who);
          holder[x] = -1;
          thing_place[x] = place[who];
          break;
        default:
          FAIL() << "scenes have no such event";
      }
    }
    auto at = [&](int p) { return std::string(w.place(p).in); };
    auto where = [&](int x) {
      const int h = holder[static_cast<size_t>(x)];
      return at(h >= 0 ? place[static_cast<size_t>(h)] : thing_place[static_cast<size_t>(x)]);
    };
    std::string expected;
    switch (q.kind) {
      case QuestionKind::hero:
        FAIL() << "only the small world asks whom a story is about";
      case QuestionKind::holder:
        expected = w.being(holder[static_cast<size_t>(q.thing)]).name;
        break;
      case QuestionKind::thing_place:
        expected = where(q.thing);
        break;
      case QuestionKind::person_place:
        expected = at(place[static_cast<size_t>(q.being)]);
        break;
      case QuestionKind::giver:
        expected = w.being(giver_of.at({q.thing, q.other})).name;
        break;
      case QuestionKind::receiver:
        expected = w.being(receiver_of.at({q.thing, q.other})).name;
        break;
      case QuestionKind::colour:
        expected = w.thing(q.thing).colour;
        EXPECT_NE(q.story.find(expected), std::string::npos) << q.text();
        break;
      case QuestionKind::reason:
        expected = reason;
        EXPECT_NE(q.story.find(expected), std::string::npos) << q.text();
        break;
      case QuestionKind::count: {
        const char* kNumbers[] = {"none", "one", "two", "three"};
        const auto& of = q.being >= 0 ? holder : place;
        int n = 0;
        for (int value : of) n += value == (q.being >= 0 ? q.being : q.place);
        expected = kNumbers[n];
        break;
      }
      case QuestionKind::yes_no: {
        const bool yes = q.thing >= 0 ? holder[static_cast<size_t>(q.thing)] == q.being
                                      : place[static_cast<size_t>(q.being)] == q.place;
        expected = yes ? "yes" : "no";
        break;
      }
    }
    EXPECT_EQ(q.answer, expected) << q.text();
    EXPECT_NE(q.answer, q.wrong) << q.text();
    ++checked;
  }
  EXPECT_EQ(checked, 3000);
}

TEST(Questions, AreShortWellFormedAndNameWhatTheyAskAbout) {
  for (uint64_t i = 0; i < 200; ++i) {
    const Question q = ask(4, Split::val, 0, i);
    const int words = count_words(q.story);
    EXPECT_GE(words, 45);
    EXPECT_LE(words, 120);
    EXPECT_EQ(form_fault(q.story), "") << q.story;
    EXPECT_EQ(form_fault(q.question), "") << q.question;
    EXPECT_EQ(q.text(), q.prompt() + " " + q.answer);
    EXPECT_TRUE(q.prompt().starts_with("###user: "));
    EXPECT_TRUE(q.prompt().ends_with("? ###Assistant:"));
    if (q.thing >= 0) {
      const std::string noun(q.world.kind(q.thing).noun);
      EXPECT_NE(q.story.find(noun), std::string::npos) << q.text();
      EXPECT_NE(q.question.find(noun), std::string::npos) << q.text();
    }
  }
}

TEST(Questions, OfAConversationDifferAndBeginWithTheSingleOne) {
  int turns = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    const Question one = ask(5, Split::train, 0, i), many = ask(5, Split::train, 0, i, 5);
    EXPECT_TRUE(one.more.empty());
    EXPECT_EQ(one.text(), many.text());
    EXPECT_LE(many.more.size(), 4u);
    std::vector<std::string> asked = {many.question};
    for (const Turn& turn : many.more) {
      EXPECT_EQ(std::count(asked.begin(), asked.end(), turn.question), 0) << turn.question;
      EXPECT_EQ(form_fault(turn.question), "") << turn.question;
      EXPECT_FALSE(turn.answer.empty());
      asked.push_back(turn.question);
    }
    turns += static_cast<int>(asked.size());
  }
  EXPECT_GT(turns, 950);  // of 1000: stories that offer fewer are rare
}

TEST(Questions, NoCheapRuleAnswersThem) {
  ChanceLevel chance;
  int yes = 0, no = 0;
  for (uint64_t i = 0; i < 4000; ++i) {
    const Question q = ask(1, Split::test, 0, i);
    chance.add(q);
    yes += q.answer == "yes";
    no += q.answer == "no";
  }
  for (int k = 0; k < kFullWorldKinds; ++k) {
    EXPECT_GT(chance.count(static_cast<QuestionKind>(k)), 4000 / kFullWorldKinds / 2);
  }
  EXPECT_NEAR(static_cast<double>(yes) / (yes + no), 0.5, 0.08);
  EXPECT_LT(chance.guess(), 0.45);
  EXPECT_LT(chance.most_common(), 0.25);
  EXPECT_LT(chance.last_mentioned(), 0.45);
}

TEST(StoryFiles, AreTheSameForAnyNumberOfThreadsAndShareNoText) {
  const auto root =
      std::filesystem::temp_directory_path() / ("story_files_test_" + std::to_string(::getpid()));
  StoryFilesOptions options;
  options.bytes = 300'000;
  options.questions = 200;
  options.preferences = 100;
  std::map<std::string, std::string> files[2];
  for (int run = 0; run < 2; ++run) {
    options.out = root / std::to_string(run);
    ThreadPool pool(run + 1);
    const auto summary = write_story_files(options, pool);
    EXPECT_GT(summary.stories[0], 200);
    EXPECT_GT(summary.stories[2], 10);
    EXPECT_EQ(summary.questions[0], 200);
    EXPECT_EQ(summary.questions[1], 10);
    EXPECT_EQ(summary.preferences[2], 5);
    EXPECT_NEAR(static_cast<double>(summary.bytes[0]), 270'000, 2000);
    for (const char* kind : {"pretrain_data", "finetune_data", "preference_data"}) {
      for (const char* split : {"train", "val", "test"}) {
        const std::string name = std::string(kind) + "/" + split + ".jsonl";
        files[run][name] = read_file(options.out / name);
      }
    }
  }
  EXPECT_EQ(files[0], files[1]);
  std::set<std::string> lines;
  for (const auto& [name, text] : files[0]) {
    size_t begin = 0;
    while (begin < text.size()) {
      const size_t end = text.find('\n', begin);
      EXPECT_TRUE(lines.insert(text.substr(begin, end - begin)).second) << name;
      begin = end + 1;
    }
  }
  std::filesystem::remove_all(root);
}

TEST(Grammar, ArticlesPluralsPossessives) {
  EXPECT_EQ(with_article("apple"), "an apple");
  EXPECT_EQ(with_article("hour"), "an hour");
  EXPECT_EQ(with_article("one-eyed cat"), "a one-eyed cat");
  EXPECT_EQ(with_article("unicorn"), "a unicorn");
  EXPECT_EQ(with_article("red kite"), "a red kite");
  EXPECT_EQ(plural("cherry cake"), "cherry cakes");
  EXPECT_EQ(plural("berry"), "berries");
  EXPECT_EQ(plural("toy"), "toys");
  EXPECT_EQ(plural("box"), "boxes");
  EXPECT_EQ(plural("loaf"), "loaves");
  EXPECT_EQ(plural("wild goose"), "wild geese");
  EXPECT_EQ(possessive("Silas"), "Silas's");
  EXPECT_EQ(possessive("the boys", true), "the boys'");
  EXPECT_EQ(join_list({"a", "b", "c"}), "a, b and c");
}

TEST(Teller, UsesAPronounOnlyWhereItCanMeanNobodyElse) {
  World world;
  const int place = world.add_place(place_kind("the market"));
  auto person = [&](const char* name, Gender gender) {
    Being being;
    being.name = being.intro = name;
    being.gender = gender;
    being.place = place;
    return world.add_being(being);
  };
  const int mia = person("Mia", Gender::female), ann = person("Ann", Gender::female),
            tom = person("Tom", Gender::male);
  RandomStream random(1);
  {
    Teller teller(world, random);
    teller.bind_being('h', mia);
    teller.bind_being('f', tom);
    teller.say("{h} met {f}.");
    teller.say("{f} smiled at {h.o}.");
    teller.say("{h} waved to {f.o}.");
    EXPECT_EQ(teller.text(), "Mia met Tom. He smiled at her. She waved to him.");
  }
  {
    Teller teller(world, random);
    teller.bind_being('h', mia);
    teller.bind_being('f', ann);
    teller.say("{h} met {f}.");
    teller.say("{f} smiled.");
    EXPECT_EQ(teller.text(), "Mia met Ann. Ann smiled.");
  }
  {
    Teller teller(world, random);
    teller.bind_being('h', mia);
    teller.say("{h} sang.");
    teller.paragraph();
    teller.say("{h} slept.");
    EXPECT_EQ(teller.text(), "Mia sang.\n\nMia slept.");
  }
}

TEST(Teller, WritesDirectSpeechWithTheRightCapitals) {
  World world;
  RandomStream random(1);
  Teller teller(world, random);
  teller.say("`is it here?` asked Mia. `yes,` said Tom, `but it is late.` Tom said, `Come.`");
  EXPECT_EQ(
      teller.text(),
      "\"Is it here?\" asked Mia. \"Yes,\" said Tom, \"but it is late.\" Tom said, \"Come.\"");
}

TEST(World, RefusesWhatCannotHappen) {
  World world;
  const int here = world.add_place(place_kind("the market"));
  const int there = world.add_place(place_kind("the forest"));
  Being being;
  being.name = "Mia";
  being.place = here;
  const int mia = world.add_being(being);
  being.name = "Tom";
  being.place = there;
  const int tom = world.add_being(being);
  Thing thing;
  thing.kind = thing_kind("kite");
  thing.holder = mia;
  const int kite = world.add_thing(thing);
  EXPECT_THROW(world.give(mia, tom, kite), InternalError);  // not at the same place
  EXPECT_THROW(world.give(tom, mia, kite), InternalError);  // not his
  EXPECT_THROW(world.take(tom, kite), InternalError);
  world.put(mia, kite, "under a bench");
  EXPECT_THROW(world.take(tom, kite), InternalError);
  world.go(tom, here);
  world.take(tom, kite);
  EXPECT_EQ(world.last_seen(mia, kite), here);
  EXPECT_EQ(world.place_of(kite), here);
}

}  // namespace
}  // namespace mixtral::stories
