#include "train/tensorboard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "text/protobuf.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "events.out.tfevents.";
constexpr size_t kHeader = 12, kFooter = 4;  // bytes around a record's data

// Field numbers of tensorflow/core/util/event.proto and tensorflow/core/framework/summary.proto.
namespace event {
constexpr uint32_t kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
}
namespace session_log {
constexpr uint32_t kStatus = 1;
constexpr uint64_t kStart = 1;
}  // namespace session_log
namespace summary {
constexpr uint32_t kValue = 1;
}
namespace summary_value {
constexpr uint32_t kTag = 1, kSimpleValue = 2;
}

[[noreturn]] void fail(std::string_view what, const fs::path& path) {
  throw Error(fmt::format("cannot {} {}: {}", what, path.string(), std::strerror(errno)));
}

constexpr std::array<uint32_t, 256> make_crc_table() {
  constexpr uint32_t kPolynomial = 0x82F63B78;  // 0x1EDC6F41 with its bits reversed
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    table[byte] = crc;
  }
  return table;
}

/// A CRC of data that may itself hold CRCs: rotated, and moved by a constant, as TFRecord does it.
uint32_t masked_crc(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xA282EAD8; }

template <class Unsigned>
void append_little_endian(std::string& text, Unsigned value) {
  for (size_t i = 0; i < sizeof(Unsigned); ++i)
    text += static_cast<char>((value >> (8 * i)) & 0xFF);
}

template <class Unsigned>
Unsigned read_little_endian(std::string_view bytes) {
  Unsigned value = 0;
  for (size_t i = 0; i < sizeof(Unsigned); ++i)
    value |= static_cast<Unsigned>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  return value;
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// An event without content yet.
ProtoWriter begin_event(double wall_time, int64_t step) {
  ProtoWriter message;
  message.float64(event::kWallTime, wall_time);
  message.varint(event::kStep, static_cast<uint64_t>(step));
  return message;
}

std::string scalars_event(const MetricsLine& line, double wall_time) {
  ProtoWriter values;
  for (const auto& [tag, number] : scalars(line)) {
    ProtoWriter value;
    value.bytes(summary_value::kTag, tag);
    value.float32(summary_value::kSimpleValue, static_cast<float>(number));
    values.bytes(summary::kValue, value.message());
  }
  ProtoWriter message = begin_event(wall_time, line.step);
  message.bytes(event::kSummary, values.message());
  return message.message();
}

/// What one record's data say. Throws Error when they are no event.
TensorBoardEvent parse_event(std::string_view data) {
  constexpr std::string_view kContext = "an event";
  TensorBoardEvent result;
  ProtoField field;
  ProtoReader reader(data, kContext);
  while (reader.next(field)) {
    if (field.number == event::kWallTime) result.wall_time = std::bit_cast<double>(field.value);
    if (field.number == event::kStep) result.step = static_cast<int64_t>(field.value);
    if (field.number != event::kSummary) continue;
    ProtoReader values(field.as_bytes(kContext), kContext);
    while (values.next(field)) {
      if (field.number != summary::kValue) continue;
      auto& [tag, number] = result.scalars.emplace_back("", 0.0F);
      ProtoReader value(field.as_bytes(kContext), kContext);
      ProtoField part;
      while (value.next(part)) {
        if (part.number == summary_value::kTag) tag = part.as_bytes(kContext);
        if (part.number == summary_value::kSimpleValue) number = part.as_float(kContext);
      }
    }
  }
  return result;
}

/// The event files of a directory, the oldest first: their names begin with a time.
std::vector<fs::path> event_files(const fs::path& directory) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.is_regular_file() && !entry.is_symlink() &&
        entry.path().filename().string().starts_with(kPrefix))
      files.push_back(entry.path());
  std::ranges::sort(files);
  return files;
}

/// Cuts off what an event file holds after a step, from the first such event on.
void cut_after(const fs::path& path, int64_t last_step) {
  size_t keep = 0, size = 0;
  {
    const MappedFile file(path);
    size = file.text().size();
    for (const TensorBoardEvent& e : parse_events(file.text())) {
      if (!e.scalars.empty() && e.step > last_step) break;
      keep = e.end;
    }
  }
  if (keep == size) return;
  std::error_code error;
  fs::resize_file(path, keep, error);
  if (error) throw Error(fmt::format("cannot truncate {}: {}", path.string(), error.message()));
}

/// The time for a new file's name: later than that of each there is, since readers go by it.
int64_t name_time(const std::vector<fs::path>& files) {
  auto time = static_cast<int64_t>(now());
  for (const fs::path& file : files) {
    const std::string name = file.filename().string();
    int64_t there = 0;
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), there);
    time = std::max(time, there + 1);
  }
  return time;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static constexpr auto kTable = make_crc_table();
  uint32_t crc = ~uint32_t{0};
  for (const char c : bytes)
    crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

std::string tfrecord(std::string_view data) {
  std::string record;
  append_little_endian(record, static_cast<uint64_t>(data.size()));
  append_little_endian(record, masked_crc(record));
  record += data;
  append_little_endian(record, masked_crc(data));
  return record;
}

std::vector<std::pair<std::string, double>> scalars(const MetricsLine& line) {
  std::vector<std::pair<std::string, double>> values;
  auto add = [&](std::string tag, auto value) {
    values.emplace_back(std::move(tag), static_cast<double>(value));
  };
  add("loss/loss", line.loss);
  add("loss/cross_entropy", line.cross_entropy);
  add("loss/train_loss", line.train_loss);
  if (line.val_loss) add("loss/val_loss", *line.val_loss);
  add("optimizer/lr", line.lr);
  add("optimizer/grad_norm", line.grad_norm);
  add("optimizer/skipped", line.skipped);
  add("router/aux_loss", line.aux_loss);
  add("router/z_loss", line.z_loss);
  for (const auto& [name, value] : line.more) add("objective/" + name, value);
  if (line.router) {
    add("router/dead", line.router->dead);
    for (size_t l = 0; l < line.router->entropy.size(); ++l)
      add(fmt::format("router_entropy/layer_{:02}", l), line.router->entropy[l]);
    for (size_t l = 0; l < line.router->load.size(); ++l)
      for (size_t e = 0; e < line.router->load[l].size(); ++e)
        add(fmt::format("expert_load_layer_{:02}/expert_{}", l, e), line.router->load[l][e]);
  }
  add("speed/tokens", line.tokens);
  add("speed/tok_per_s", line.tok_per_s);
  add("speed/it_per_s", line.it_per_s);
  add("speed/seconds", line.seconds);
  add("speed/peak_bytes", line.peak_bytes);
  return values;
}

std::vector<TensorBoardEvent> parse_events(std::string_view bytes) {
  std::vector<TensorBoardEvent> events;
  size_t at = 0;
  while (bytes.size() - at >= kHeader + kFooter) {
    const auto length = read_little_endian<uint64_t>(bytes.substr(at));
    if (read_little_endian<uint32_t>(bytes.substr(at + 8)) != masked_crc(bytes.substr(at, 8)))
      break;
    if (length > bytes.size() - at - kHeader - kFooter) break;
    const auto data = bytes.substr(at + kHeader, static_cast<size_t>(length));
    if (read_little_endian<uint32_t>(bytes.substr(at + kHeader + data.size())) != masked_crc(data))
      break;
    at += kHeader + data.size() + kFooter;
    try {
      events.push_back(parse_event(data));
    } catch (const Error&) {
      break;
    }
    events.back().end = at;
  }
  return events;
}

TensorBoardLog::TensorBoardLog(const fs::path& directory, int64_t last_step,
                               const std::vector<MetricsLine>& earlier) {
  std::error_code error;
  if (fs::is_symlink(directory, error))
    throw Error(fmt::format("{} is a symbolic link, and a run's events stay in its own directory",
                            directory.string()));
  fs::create_directories(directory, error);
  if (error) throw Error(fmt::format("cannot create {}: {}", directory.string(), error.message()));
  const auto files = event_files(directory);
  for (const fs::path& file : files) cut_after(file, last_step);
  path_ = directory / fmt::format("{}{:010}.mixtral", kPrefix, name_time(files));
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail("create", path_);
  try {
    ProtoWriter version = begin_event(now(), 0);
    version.bytes(event::kFileVersion, "brain.Event:2");
    write(version.message());
    if (!files.empty()) {
      // A session that starts at a step: readers drop what they had from there on.
      ProtoWriter status;
      status.varint(session_log::kStatus, session_log::kStart);
      ProtoWriter start = begin_event(now(), last_step + 1);
      start.bytes(event::kSessionLog, status.message());
      write(start.message());
      return;
    }
    const double end = now();
    for (const MetricsLine& line : earlier)
      if (line.step <= last_step)
        write(scalars_event(line, end - (earlier.back().seconds - line.seconds)));
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

TensorBoardLog::~TensorBoardLog() { ::close(descriptor_); }

void TensorBoardLog::append(const MetricsLine& line) { write(scalars_event(line, now())); }

void TensorBoardLog::write(std::string_view data) {
  const std::string record = tfrecord(data);
  std::string_view rest = record;
  while (!rest.empty()) {
    const ssize_t written = ::write(descriptor_, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("append to", path_);
    rest.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace mixtral
