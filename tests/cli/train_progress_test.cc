#include "cli/train_progress.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "cli/line_editor.h"
#include "tests/support/files.h"

namespace mixtral {
namespace {

TrainObserver::Progress a_step() {
  return {.step = 840,
          .iterations = 2000,
          .loss = 2.10344,
          .lr = 1.2e-3,
          .tok_per_s = 25'312,
          .it_per_s = 12.3,
          .peak_bytes = int64_t{90} << 20,
          .seconds_left = 95};
}

TEST(StatusLine, FitsEveryWidthAndDropsTheLeastImportantFirst) {
  for (int width = 20; width <= 200; ++width)
    for (const TerminalStyle style : {TerminalStyle{}, TerminalStyle{true, true}}) {
      const std::string line = status_line(a_step(), width, style);
      EXPECT_LT(shown_width(line), width) << line;
      EXPECT_NE(line.find("42%"), std::string::npos) << width;
    }
  const auto holds = [](int width, const char* text) {
    return status_line(a_step(), width, {}).find(text) != std::string::npos;
  };
  // What is there at a width is there at every greater one.
  for (const char* field :
       {"loss 2.1034", "840/2000", "1:35 left", "25.3k tok/s", "lr 1.2e-03", "12.3 it/s", "##"}) {
    int first = 0;
    for (int width = 20; width <= 200; ++width) {
      if (first == 0 && holds(width, field)) first = width;
      if (first > 0) {
        EXPECT_TRUE(holds(width, field)) << field << " at " << width;
      }
    }
    EXPECT_GT(first, 0) << field;
  }
  for (const char* field : {"loss 2.1034", "840/2000", "1:35 left", "##"})
    EXPECT_TRUE(holds(60, field)) << field;
  EXPECT_TRUE(holds(80, "tok/s"));
  EXPECT_TRUE(holds(120, "lr 1.2e-03"));
}

TEST(StatusLine, ColoursOnlyWhereAskedTo) {
  EXPECT_EQ(status_line(a_step(), 80, {}).find('\x1b'), std::string::npos);
  const std::string coloured = status_line(a_step(), 80, {.colour = true, .unicode = true});
  EXPECT_NE(coloured.find("\x1b[36m"), std::string::npos);
  EXPECT_NE(coloured.find("━"), std::string::npos);
  EXPECT_EQ(shown_width(coloured), shown_width(status_line(a_step(), 80, {})));
}

TEST(LineEditor, CompletesCommandsAndTheFilesBehindThem) {
  const std::vector<std::string> commands{"/save", "/set", "/system", "/load"};
  EXPECT_EQ(completions("/l", commands), std::vector<std::string>{"/load "});
  EXPECT_EQ(completions("/s", commands).size(), 3u);
  EXPECT_TRUE(completions("hello", commands).empty());
  const TemporaryDirectory scratch;
  write_file(scratch.path() / "chat one.jsonl", "x");
  std::filesystem::create_directories(scratch.path() / "chats");
  const std::string start = "/load " + scratch.path().string() + "/";
  EXPECT_EQ(completions(start + "cha", commands),
            (std::vector<std::string>{start + "chat one.jsonl", start + "chats/"}));
  EXPECT_TRUE(completions(start + "x", commands).empty());
}

}  // namespace
}  // namespace mixtral
