#include "base/advice.h"

#include <gtest/gtest.h>

namespace mixtral {
namespace {

std::string flag(const Setting& setting) {
  return "--" + setting.name + (setting.value.empty() ? "" : "=" + setting.value);
}

TEST(Advice, WordsTheSettingsOfASentence) {
  const struct {
    const char *sentence, *plain, *flags;
  } kCases[] = {
      {"", "", ""},
      {"nothing to word", "nothing to word", "nothing to word"},
      {"raise ‹context›", "raise context", "raise --context"},
      {"use ‹dtype fp32› or ‹device ref›", "use dtype fp32 or device ref",
       "use --dtype=fp32 or --device=ref"},
      {"‹data› ends", "data ends", "--data ends"},
      {"‹columns a b›", "columns a b", "--columns=a b"},
      {"an open ‹mark", "an open ‹mark", "an open ‹mark"},
      {"a close › alone", "a close › alone", "a close › alone"},
  };
  for (const auto& c : kCases) {
    EXPECT_EQ(plain_settings(c.sentence), c.plain);
    EXPECT_EQ(word_settings(c.sentence, flag), c.flags);
  }
}

TEST(Advice, AnErrorHasPlainNamesAndKeepsItsSettings) {
  const AdvisedError error(
      "use ‹dtype fp32›",
      {.subject = {"device", "cpu"},
       .remedies = {{.setting = {"context", ""}, .change = Remedy::Change::lower}}});
  EXPECT_STREQ(error.what(), "device cpu: use dtype fp32; try a lower context");
  EXPECT_EQ(in_words(error.sentence, error.advice, flag),
            "--device=cpu: use --dtype=fp32; try a lower --context");
}

}  // namespace
}  // namespace mixtral
