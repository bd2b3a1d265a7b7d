#include "base/messages.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <string>

namespace mixtral {
namespace {

/// What is written to standard error meanwhile.
template <class Action>
std::string said_by(const Action& action) {
  ::testing::internal::CaptureStderr();
  action();
  return ::testing::internal::GetCapturedStderr();
}

/// Runs an action while standard error is another descriptor.
template <class Action>
void with_stderr(int descriptor, const Action& action) {
  const int before = ::dup(STDERR_FILENO);
  if (descriptor >= 0)
    ::dup2(descriptor, STDERR_FILENO);
  else
    ::close(STDERR_FILENO);
  action();
  ::dup2(before, STDERR_FILENO);
  ::close(before);
}

TEST(Messages, AreOneEscapedLine) {
  EXPECT_EQ(said_by([] { messages::line("a\x1b[2J\nmixtral: all is well"); }),
            "a\\x1b[2J\\nmixtral: all is well\n");
  EXPECT_EQ(said_by([] { messages::print("{} of {}", 1, 2); }), "1 of 2\n");
  EXPECT_EQ(said_by([] { messages::lines("a\n\n  b\n"); }), "a\n\n  b\n");
  EXPECT_EQ(said_by([] { messages::redraw("50%"); }), "\r\x1b[K50%");
}

TEST(Messages, KeepBothEndsOfALongLine) {
  const std::string said =
      said_by([] { messages::line("begin " + std::string(50'000, 'A') + " end"); });
  EXPECT_LE(said.size(), 4200u);
  EXPECT_THAT(said, ::testing::StartsWith("begin A"));
  EXPECT_THAT(said, ::testing::EndsWith("A end\n"));
}

TEST(Messages, AreDroppedWhereTheyCannotBeWritten) {
  const int full = ::open("/dev/full", O_WRONLY);
  with_stderr(full, [] { messages::line("lost"); });
  with_stderr(-1, [] { messages::line("lost"); });
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  ::close(pipe[0]);
  std::signal(SIGPIPE, SIG_DFL);  // which would end this process
  with_stderr(pipe[1], [] { messages::line("lost"); });
  ::close(pipe[1]);
  ::close(full);
}

}  // namespace
}  // namespace mixtral
