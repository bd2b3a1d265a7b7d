// TensorBoard event files, read with a reader of its own.
#include "train/tensorboard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/file.h"
#include "tests/train/rig.h"

namespace mixtral::testing {
namespace {

/// CRC-32C bit by bit, from its definition.
uint32_t plain_crc(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? (crc >> 1) ^ 0x82F63B78U : crc >> 1;
  }
  return ~crc;
}

template <class T>
T number_at(std::string_view bytes, size_t at) {
  T value;  // these tests run on little-endian machines
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

/// The data of each record; fails the test when the framing or a checksum is wrong.
std::vector<std::string> records(std::string_view bytes) {
  std::vector<std::string> all;
  auto masked = [](std::string_view text) {
    const uint32_t crc = plain_crc(text);
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8U;
  };
  for (size_t at = 0; at < bytes.size();) {
    const auto length = static_cast<size_t>(number_at<uint64_t>(bytes, at));
    EXPECT_EQ(number_at<uint32_t>(bytes, at + 8), masked(bytes.substr(at, 8)));
    if (at + length + 16 > bytes.size()) {
      ADD_FAILURE() << "a record ends behind the file";
      break;
    }
    const auto data = bytes.substr(at + 12, length);
    EXPECT_EQ(number_at<uint32_t>(bytes, at + 12 + length), masked(data));
    all.emplace_back(data);
    at += length + 16;
  }
  return all;
}

MetricsLine line_at(int64_t step) {
  MetricsLine line;
  line.step = step;
  line.train_loss = 10.0 / static_cast<double>(step);
  line.lr = 1e-3;
  line.seconds = static_cast<double>(step);
  line.router = RouterFigures{.load = {{0.75, 0.25}, {0.5, 0.5}}, .entropy = {0.6, 0.7}, .dead = 0};
  return line;
}

std::vector<fs::path> event_files(const fs::path& directory) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(directory)) files.push_back(entry.path());
  std::ranges::sort(files);
  return files;
}

/// The steps for which a directory's files hold scalars, in the order in which they are read.
std::vector<int64_t> steps_in(const fs::path& directory) {
  std::vector<int64_t> steps;
  for (const fs::path& file : event_files(directory))
    for (const TensorBoardEvent& event : parse_events(read_file(file)))
      if (!event.scalars.empty()) steps.push_back(event.step);
  return steps;
}

TEST(Crc32c, HasThePublishedValues) {
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending += c;
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43U);
  EXPECT_EQ(crc32c(ascending), 0x46DD794EU);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283U);
  EXPECT_EQ(crc32c(""), 0U);
}

TEST(TfRecord, IsFramedAndChecksummed) {
  for (const std::string& data : {std::string(), std::string("x"), std::string(300, '\x80')})
    EXPECT_EQ(records(tfrecord(data)), std::vector<std::string>{data});
}

TEST(TensorBoard, HoldsEveryNumberOfALine) {
  MetricsLine line = line_at(7);
  line.val_loss = 1.5;
  line.more = {{"margin", 0.25}};
  line.peak_bytes = 1 << 20;
  line.grad_norm = std::nan("");
  const Scratch scratch;
  fs::path file;
  {
    TensorBoardLog log(scratch.path() / "events", 0, {});
    log.append(line);
    file = log.path();
  }
  EXPECT_TRUE(file.filename().string().starts_with("events.out.tfevents."));
  const std::string bytes = read_file(file);
  const auto frames = records(bytes);
  ASSERT_EQ(frames.size(), 2U);
  EXPECT_NE(frames[0].find("brain.Event:2"), std::string::npos);
  const TensorBoardEvent event = parse_events(bytes).back();
  EXPECT_EQ(event.step, 7);
  EXPECT_GT(event.wall_time, 1.6e9);
  EXPECT_EQ(event.end, bytes.size());
  auto value = [&](const std::string& tag) {
    const auto found = std::ranges::find(event.scalars, tag, [](const auto& s) { return s.first; });
    EXPECT_NE(found, event.scalars.end()) << tag;
    return found == event.scalars.end() ? -1 : found->second;
  };
  EXPECT_FLOAT_EQ(value("loss/train_loss"), 10.0F / 7);
  EXPECT_EQ(value("loss/val_loss"), 1.5F);
  EXPECT_EQ(value("objective/margin"), 0.25F);
  EXPECT_EQ(value("router_entropy/layer_01"), 0.7F);
  EXPECT_EQ(value("expert_load_layer_00/expert_1"), 0.25F);
  EXPECT_EQ(value("speed/peak_bytes"), 1048576.0F);
  EXPECT_TRUE(std::isnan(value("optimizer/grad_norm")));
  EXPECT_EQ(event.scalars.size(), scalars(line).size());
}

TEST(TensorBoard, GoesOnWithoutStepsThatAreDoneAgain) {
  const Scratch scratch;
  auto session = [&](int64_t last_step, int64_t first, int64_t last) {
    TensorBoardLog log(scratch.path(), last_step, {});
    for (int64_t step = first; step <= last; ++step) log.append(line_at(step));
    return log.path();
  };
  const fs::path first = session(0, 1, 9);
  // A kill tore the last record.
  fs::resize_file(first, fs::file_size(first) - 5);
  const fs::path second = session(6, 7, 12);
  EXPECT_LT(first, second) << "readers go by the names";
  EXPECT_EQ(steps_in(scratch.path()),
            (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
  // From before the second session began.
  const fs::path third = session(3, 4, 5);
  EXPECT_LT(second, third);
  EXPECT_EQ(steps_in(scratch.path()), (std::vector<int64_t>{1, 2, 3, 4, 5}));
  for (const fs::path& file : event_files(scratch.path())) records(read_file(file));
}

TEST(TensorBoard, TakesInTheLinesOfARunThatBeganWithoutIt) {
  const Scratch scratch;
  {
    TensorBoardLog log(scratch.path(), 3, {line_at(1), line_at(2), line_at(3), line_at(4)});
    log.append(line_at(4));
  }
  EXPECT_EQ(steps_in(scratch.path()), (std::vector<int64_t>{1, 2, 3, 4}));
}

TEST(TensorBoard, ReadsDamagedFilesUpToTheDamage) {
  const Scratch scratch;
  fs::path file;
  {
    TensorBoardLog log(scratch.path(), 0, {});
    for (int64_t step = 1; step <= 3; ++step) log.append(line_at(step));
    file = log.path();
  }
  const std::string bytes = read_file(file);
  const auto whole = parse_events(bytes);
  ASSERT_EQ(whole.size(), 4U);
  for (size_t cut = 0; cut < bytes.size(); ++cut) {
    const auto events = parse_events(std::string_view(bytes).substr(0, cut));
    const auto expected = std::ranges::count_if(whole, [&](const auto& e) { return e.end <= cut; });
    ASSERT_EQ(static_cast<int64_t>(events.size()), expected) << "cut at " << cut;
  }
  for (size_t at = 0; at < bytes.size(); ++at) {
    std::string flipped = bytes;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
    const auto expected = std::ranges::count_if(whole, [&](const auto& e) { return e.end <= at; });
    ASSERT_EQ(static_cast<int64_t>(parse_events(flipped).size()), expected) << "flipped at " << at;
  }
}

}  // namespace
}  // namespace mixtral::testing
