#include "base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "tests/support/files.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

size_t count_files(const fs::path& directory) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(directory), {}));
}

TEST(MappedFile, ShowsTheWholeFile) {
  const TemporaryDirectory directory;
  const std::string text("a\0b\xff", 4);
  write_file(directory.path() / "x", text);
  MappedFile file(directory.path() / "x");
  EXPECT_EQ(file.text(), text);
  MappedFile moved(std::move(file));
  EXPECT_EQ(moved.text(), text);
  moved = MappedFile(directory.path() / "x");
  EXPECT_EQ(moved.bytes().size(), 4u);
  write_file(directory.path() / "empty", "");
  EXPECT_TRUE(MappedFile(directory.path() / "empty").bytes().empty());
}

TEST(MappedFile, ErrorsNameThePathAndTheReason) {
  const TemporaryDirectory directory;
  const fs::path absent = directory.path() / "absent";
  EXPECT_EQ(message_of([&] { MappedFile file(absent); }),
            "cannot open " + absent.string() + ": No such file or directory");
  EXPECT_THAT(message_of([&] { MappedFile file(directory.path()); }), HasSubstr("Is a directory"));
  EXPECT_THAT(message_of([&] { MappedFile file("/dev/null"); }), HasSubstr("/dev/null"));
  write_file(directory.path() / "x", "12345");
  EXPECT_EQ(read_file(directory.path() / "x", 5), "12345");
  EXPECT_THAT(message_of([&] { read_file(directory.path() / "x", 4); }), HasSubstr("5 bytes"));
}

TEST(AtomicFile, AppearsOnlyWhenCommitted) {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "x";
  {
    AtomicFile file(path);
    file.write("half");
    EXPECT_FALSE(fs::exists(path));
    file.write(" and half");
    file.commit();
  }
  EXPECT_EQ(read_file(path), "half and half");
  {
    AtomicFile file(path);
    file.write("never");
  }
  EXPECT_EQ(read_file(path), "half and half");
  EXPECT_EQ(count_files(directory.path()), 1u);
}

TEST(AtomicFile, ErrorsNameThePathAndTheReason) {
  const TemporaryDirectory directory;
  EXPECT_THAT(message_of([&] { AtomicFile file(directory.path() / "absent" / "x"); }),
              HasSubstr("absent/x"));
  fs::create_directory(directory.path() / "folder");
  fs::create_directory(directory.path() / "folder" / "inside");
  EXPECT_THAT(message_of([&] { write_file(directory.path() / "folder", "x"); }),
              HasSubstr("cannot replace"));
  EXPECT_EQ(count_files(directory.path()), 1u);
}

TEST(PutInPlace, SomethingWholeStandsUnderTheNameAtEveryInstant) {
  const TemporaryDirectory directory;
  const fs::path place = directory.path() / "place", next = directory.path() / "next";
  const auto fill = [](const fs::path& path, const std::string& text) {
    fs::create_directory(path);
    write_file(path / "x", text);
  };
  fill(place, "0");
  std::atomic<bool> done = false;
  std::atomic<int> absent = 0;
  std::thread reader([&] {
    std::error_code error;
    while (!done) absent += !fs::exists(place, error);
  });
  for (int i = 1; i <= 200; ++i) {
    fill(next, std::to_string(i));
    sync_tree(next);
    put_in_place(next, place);
    EXPECT_EQ(read_file(place / "x"), std::to_string(i));
    EXPECT_EQ(read_file(next / "x"), std::to_string(i - 1));
    fs::remove_all(next);
  }
  done = true;
  reader.join();
  EXPECT_EQ(absent, 0);
  fill(next, "new");
  put_in_place(next, directory.path() / "elsewhere");
  EXPECT_FALSE(fs::exists(next));
  EXPECT_THAT(message_of([&] { put_in_place(next, place); }), HasSubstr("place"));
}

// A process that rewrites a file without end is killed at some instant: the file is whole, and one
// of those it wrote.
TEST(AtomicFile, AKillAtAnyInstantLeavesAWholeFile) {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "x";
  write_file(path, std::string(10000, 'a'));
  for (int round = 0; round < 30; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (char letter = 'a';; letter = letter == 'z' ? 'a' : static_cast<char>(letter + 1)) {
        AtomicFile file(path);
        for (int part = 0; part < 10; ++part) file.write(std::string(1000, letter));
        file.commit();
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(500 + 317 * round));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    const std::string text = read_file(path);
    ASSERT_EQ(text.size(), 10000u) << round;
    ASSERT_EQ(text, std::string(10000, text[0])) << round;
  }
}

TEST(MappedFile, APipeIsRefusedAtOnce) {
  const TemporaryDirectory directory;
  const fs::path pipe = directory.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(message_of([&] { MappedFile file(pipe); }), HasSubstr("it is a pipe"));
}

TEST(AtomicFile, PutsNothingInThePlaceOfWhatIsNoFile) {
  const TemporaryDirectory directory;
  const fs::path pipe = directory.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  fs::create_symlink("/dev/null", directory.path() / "link");
  EXPECT_THAT(message_of([&] { write_file(pipe, "x"); }), HasSubstr("it is a pipe"));
  EXPECT_THAT(message_of([&] { write_file("/dev/null", "x"); }), HasSubstr("it is a device"));
  EXPECT_THAT(message_of([&] { write_file(directory.path() / "link", "x"); }),
              HasSubstr("it is a device"));
  EXPECT_THAT(message_of([&] { write_file(directory.path(), "x"); }), HasSubstr("a directory"));
}

TEST(AtomicFile, TakesTheLinksPlaceAndLeavesWhatItLedTo) {
  const TemporaryDirectory directory;
  const fs::path victim = directory.path() / "victim", link = directory.path() / "link";
  write_file(victim, "mine");
  fs::create_symlink(victim, link);
  write_file(link, "new");
  EXPECT_EQ(read_file(victim), "mine");
  EXPECT_EQ(read_file(link), "new");
  EXPECT_FALSE(fs::is_symlink(link));
}

}  // namespace
}  // namespace mixtral
