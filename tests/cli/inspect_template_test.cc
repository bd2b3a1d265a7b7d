// inspect template, from the command line on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "io/json.h"
#include "tests/support/command.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class InspectTemplate : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    std::string pattern = (fs::temp_directory_path() / "mixtral-template-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
    write_file(folder_ / "text.txt", std::string(4000, 'a'));
    write_file(folder_ / "data.jsonl",
               "{\"prompt\": \"<b>\", \"completion\": \"&\"}\n"
               "{\"prompt\": \"<s>x\", \"completion\": \"\\u001b[2J\"}\n"
               "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, "
               "{\"role\": \"assistant\", \"content\": \"ho\"}]}\n");
    const Outcome o = run_command({"pretrain", "--model", "tiny", "--data", path("text.txt"),
                                   "--tokenizer", "bytes", "--iters", "1", "--out", path("run")});
    ASSERT_EQ(o.code, 0) << o.err;
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }

  static std::string path(const std::string& name) { return (folder_ / name).string(); }
  static Outcome inspect(std::vector<std::string> more) {
    std::vector<std::string> arguments{"inspect",   "template", "--model",
                                       path("run"), "--data",   path("data.jsonl")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_command(arguments);
  }

  static inline fs::path folder_;
};

TEST_F(InspectTemplate, ShowsMaskAndCounts) {
  const Outcome o = inspect({"--records", "1"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, AllOf(HasSubstr("line 1: {prompt, completion}"),
                           HasSubstr("6 tokens, 2 learnt, 1 BOS, 1 EOS; nothing is cut off"),
                           HasSubstr("masked  <s>(256) <(60) b(98) >(62)"),
                           HasSubstr("learnt  &(38) </s>(257)"), Not(HasSubstr("line 2"))));
}

TEST_F(InspectTemplate, WarnsAndEscapes) {
  const Outcome o = inspect({"--record", "1", "--records", "1", "--context", "3"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, AllOf(HasSubstr("warning: the text spells out <s>"),
                           HasSubstr("warning: nothing is learnt"), HasSubstr("cut     "),
                           Not(HasSubstr("\x1b"))));
}

TEST_F(InspectTemplate, IsJson) {
  const Outcome o = inspect({"--records", "0", "--json"});
  ASSERT_EQ(o.code, 0) << o.err;
  const Json json = Json::parse(o.out, "output");
  ASSERT_EQ(json.items().size(), 3U);
  const Json& row = json.items()[0];
  EXPECT_EQ(row.at("line").as_int(), 1);
  EXPECT_EQ(row.at("learnt_tokens").as_int(), 2);
  EXPECT_EQ(row.at("ids").items().size(), row.at("learnt").items().size());
}

TEST_F(InspectTemplate, WritesAPageThatEscapesMarkup) {
  const Outcome o = inspect({"--records", "0", "--html", path("view.html")});
  ASSERT_EQ(o.code, 0) << o.err;
  const std::string page = read_file(path("view.html"));
  EXPECT_THAT(page, AllOf(HasSubstr("<!doctype html>"), HasSubstr("&lt;</span>"),
                          HasSubstr("<span class=\"t learnt\" title=\"38\">&amp;</span>"),
                          HasSubstr("class=\"warning\""), Not(HasSubstr("<b>"))));
}

TEST_F(InspectTemplate, RefusesWhatHasNoRecords) {
  Outcome o = inspect({"--record", "3"});
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.err, HasSubstr("has 3 lines"));
  o = run_command({"inspect", "template", "--model", path("run"), "--data", path("text.txt")});
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.err, HasSubstr("plain text is cut into windows without a template"));
}

}  // namespace
}  // namespace mixtral
