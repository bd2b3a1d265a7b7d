#include "data/template_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace mixtral {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<TemplateView> view(std::string_view line, int64_t context = 0,
                               EncodeOptions options = {}) {
  const auto tokenizer = load_tokenizer("bytes");
  options.rules.vocab_size = tokenizer->vocab_size();
  return view_record(parse_record(line, "data.jsonl:1", options.rules), tokenizer.get(), options,
                     context, "data.jsonl:1");
}

TemplateView view_one(std::string_view line, int64_t context = 0, EncodeOptions options = {}) {
  const auto views = view(line, context, std::move(options));
  EXPECT_EQ(views.size(), 1U);
  return views.front();
}

TEST(TemplateView, MasksThePromptOfACompletion) {
  const TemplateView v = view_one(R"({"prompt": "ab", "completion": "c"})");
  EXPECT_THAT(v.ids, ElementsAre(256, 'a', 'b', 'c', 257));
  EXPECT_THAT(v.learnt, ElementsAre(0, 0, 0, 1, 1));
  EXPECT_EQ(v.learnt_tokens, 2);
  EXPECT_EQ(v.bos, 1);
  EXPECT_EQ(v.eos, 1);
  EXPECT_THAT(v.warnings, IsEmpty());
}

TEST(TemplateView, LearnsNoFirstToken) {
  EXPECT_THAT(view_one(R"({"input_ids": [5, 6, 7]})").learnt, ElementsAre(0, 1, 1));
}

TEST(TemplateView, SaysWhereTheContextCutsAResponse) {
  const TemplateView v = view_one(R"({"prompt": "ab", "completion": "cd"})", 4);
  EXPECT_EQ(v.kept, 4);
  EXPECT_EQ(v.learnt_tokens, 1);
  EXPECT_EQ(v.eos, 0);
  EXPECT_THAT(v.warnings, ElementsAre(HasSubstr("its last 2 tokens")));
}

TEST(TemplateView, SaysThatNothingIsLearnt) {
  EXPECT_THAT(view_one(R"({"prompt": "abcdef", "completion": "g"})", 4).warnings,
              ElementsAre(HasSubstr("nothing is learnt: the first 4 tokens")));
  EXPECT_THAT(view_one(R"({"input_ids": [5]})").warnings,
              ElementsAre(HasSubstr("every token is masked")));
}

TEST(TemplateView, CountsResponsesBehindTheContext) {
  const TemplateView v = view_one(
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
          {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]})",
      20);
  EXPECT_THAT(v.warnings, ElementsAre(HasSubstr("1 of 2 responses are never trained on")));
}

TEST(TemplateView, NamesTurnsOfNoWeight) {
  const TemplateView v = view_one(
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
          {"role": "user", "content": "c"},
          {"role": "assistant", "content": "d", "weight": 0}]})");
  EXPECT_THAT(v.warnings, ElementsAre(HasSubstr("1 of the assistant's turns has weight 0")));
}

TEST(TemplateView, FindsControlTokensInWhatPeopleWrote) {
  const TemplateView v = view_one(R"({"prompt": "<s>ab</s>", "completion": "c <s>"})");
  EXPECT_THAT(v.warnings, ElementsAre(HasSubstr("spells out <s>, </s>:")));
  EXPECT_EQ(v.bos, 1);
}

TEST(TemplateView, FindsADoubledBos) {
  EXPECT_THAT(view_one(R"({"input_ids": [256, 256, 5]})").warnings,
              ElementsAre(HasSubstr("BOS is doubled")));
  EXPECT_THAT(view_one(R"({"input_ids": [256, 5, 256]})").warnings, IsEmpty());
}

TEST(TemplateView, ShowsBothAnswersOfAPair) {
  const auto views = view(R"({"prompt": "a", "chosen": "b", "rejected": "cd"})");
  ASSERT_EQ(views.size(), 2U);
  EXPECT_EQ(views[0].answer, "chosen");
  EXPECT_EQ(views[1].answer, "rejected");
  EXPECT_THAT(views[0].learnt, ElementsAre(0, 0, 1, 1));
  EXPECT_THAT(views[1].learnt, ElementsAre(0, 0, 1, 1, 1));
}

TEST(TemplateView, NeedsNoTokenizerForIds) {
  const RecordRules rules;
  const auto views =
      view_record(parse_record(R"({"input_ids": [7, 8]})", "x:1", rules), nullptr, {}, 0, "x:1");
  ASSERT_EQ(views.size(), 1U);
  EXPECT_THAT(views[0].ids, ElementsAre(7, 8));
}

}  // namespace
}  // namespace mixtral
