#include "base/direct_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/file.h"
#include "tests/support/files.h"

namespace mixtral {
namespace {

using ::testing::HasSubstr;

/// Room for a read, aligned as it must be.
class Room {
 public:
  explicit Room(uint64_t bytes)
      : bytes_(DirectFile::room(bytes)),
        data_(static_cast<std::byte*>(std::aligned_alloc(DirectFile::kAlignment, bytes_))) {}
  ~Room() { std::free(data_); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  std::span<std::byte> span() const { return {data_, bytes_}; }

 private:
  uint64_t bytes_;
  std::byte* data_;
};

std::string pattern(size_t bytes) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(i * 7 + i / 251);
  return text;
}

TEST(DirectFile, ReadsAnyBytes) {
  const TemporaryDirectory directory;
  const auto path = directory.path() / "file";
  const std::string text = pattern(20'001);
  write_file(path, text);
  const DirectFile file(path);
  EXPECT_EQ(file.size(), text.size());
  for (const uint64_t begin : {0, 1, 4095, 4096, 8191, 12'288, 19'999})
    for (const uint64_t bytes : {1, 2, 4096, 5000, 20'001}) {
      if (begin + bytes > text.size()) continue;
      const Room room(bytes);
      const auto read = file.read(begin, bytes, room.span());
      ASSERT_EQ(read.size(), bytes);
      EXPECT_EQ(std::memcmp(read.data(), text.data() + begin, bytes), 0) << begin << ", " << bytes;
    }
}

TEST(DirectFile, RefusesWhatIsNotThere) {
  const TemporaryDirectory directory;
  const auto path = directory.path() / "file";
  write_file(path, pattern(5000));
  const DirectFile file(path);
  const Room room(4096);
  EXPECT_THAT(message_of([&] { (void)file.read(4000, 1001, room.span()); }),
              HasSubstr("ends at byte 5000, but its header tells of 5001"));
  EXPECT_THAT(message_of([&] { DirectFile(directory.path() / "none"); }), HasSubstr("cannot open"));
}

TEST(DirectFile, RefusesAFileThatChangedUnderWay) {
  const TemporaryDirectory directory;
  const auto path = directory.path() / "file";
  const Room room(4096);
  const auto read_after = [&](const std::function<void()>& change) {
    write_file(path, pattern(9000));
    const DirectFile file(path);
    (void)file.read(0, 100, room.span());
    change();
    return message_of([&] { (void)file.read(0, 100, room.span()); });
  };
  EXPECT_THAT(read_after([&] { std::filesystem::resize_file(path, 10); }),
              HasSubstr("was changed while it was in use: it had 9000 bytes and has 10"));
  EXPECT_THAT(read_after([&] {
                std::filesystem::last_write_time(
                    path, std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
              }),
              HasSubstr("was changed"));
  // Another file under its name is not this one.
  EXPECT_EQ(read_after([&] { write_file(path, "other"); }), "no error");
}

}  // namespace
}  // namespace mixtral
