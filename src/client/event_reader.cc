#include "client/event_reader.h"

#include "base/error.h"

namespace mixtral::client {
namespace {

constexpr size_t kMostEventBytes = size_t{16} << 20;

}  // namespace

void EventReader::push(std::string_view bytes, const Handler& on_event) {
  while (true) {
    const size_t end = bytes.find('\n');
    line_ += bytes.substr(0, end);
    if (line_.size() + data_.size() > kMostEventBytes)
      throw Error("an event of the server's stream has more than 16 MiB");
    if (end == bytes.npos) return;
    bytes.remove_prefix(end + 1);
    std::string_view line = line_;
    if (line.ends_with('\r')) line.remove_suffix(1);
    take_line(line, on_event);
    line_.clear();
  }
}

void EventReader::take_line(std::string_view line, const Handler& on_event) {
  constexpr std::string_view kData = "data:";
  if (line.starts_with(kData)) {
    line.remove_prefix(kData.size());
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (any_) data_ += '\n';
    data_ += line;
    any_ = true;
  } else if (line.empty() && any_) {
    on_event(data_);
    data_.clear();
    any_ = false;
  }
}

}  // namespace mixtral::client
