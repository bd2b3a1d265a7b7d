#include "train/stop_signal.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <thread>

namespace mixtral {
namespace {

TEST(StopSignal, RemembersTheFirstSignal) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const StopSignal stop;
    EXPECT_EQ(stop.arrived(), 0);
    ::raise(signal);
    EXPECT_EQ(stop.arrived(), signal);
  }
  const StopSignal again;
  EXPECT_EQ(again.arrived(), 0);
}

TEST(StopSignal, ASecondOneEndsTheProcessAtOnce) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const pid_t child = ::fork();
    if (child == 0) {
      const StopSignal stop;
      ::raise(SIGTERM);
      ::raise(signal);
      std::this_thread::sleep_for(std::chrono::seconds(60));  // a step that takes long
      ::_exit(1);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 128 + signal);
  }
}

TEST(StopSignal, AClosedTerminalStopsOnceHoweverOftenItSaysSo) {
  const StopSignal stop;
  ::raise(SIGHUP);
  ::raise(SIGHUP);
  EXPECT_EQ(stop.arrived(), SIGHUP);
  ::raise(SIGTERM);  // which a session's end sends, too
  EXPECT_EQ(stop.arrived(), SIGTERM);
  ::raise(SIGHUP);
  EXPECT_EQ(stop.arrived(), SIGTERM);
}

TEST(StopSignal, AReaderThatIsGoneIsAFailedWrite) {
  const StopSignal stop;
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ::close(ends[0]);
  EXPECT_EQ(::write(ends[1], "x", 1), -1);  // without it the process would end here
  EXPECT_EQ(errno, EPIPE);
  ::close(ends[1]);
}

TEST(StopSignal, LeavesAHangupIgnoredUnderNohup) {
  std::signal(SIGHUP, SIG_IGN);
  {
    const StopSignal stop;
    ::raise(SIGHUP);
    EXPECT_EQ(stop.arrived(), 0);
  }
  EXPECT_EQ(std::signal(SIGHUP, SIG_DFL), SIG_IGN);
}

TEST(StopSignal, GivesTheSignalsBack) {
  {
    const StopSignal stop;
  }
  const pid_t child = ::fork();
  if (child == 0) {
    ::raise(SIGTERM);
    ::_exit(1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGTERM);
}

}  // namespace
}  // namespace mixtral
