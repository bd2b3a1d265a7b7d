#include "base/direct_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace mixtral {
namespace {

[[noreturn]] void refuse(const char* what, const std::filesystem::path& path) {
  const int code = errno;
  throw Error(fmt::format("cannot {} {}: {}", what, path.string(), std::strerror(code)));
}

}  // namespace

DirectFile::DirectFile(std::filesystem::path path) : path_(std::move(path)) {
  constexpr int kHow = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  descriptor_ = ::open(path_.c_str(), kHow | O_DIRECT);
  if (descriptor_ < 0 && errno == EINVAL) {  // a file system that reads through its cache alone
    direct_ = false;
    descriptor_ = ::open(path_.c_str(), kHow);
  }
  if (descriptor_ < 0) refuse("open", path_);
  struct stat status{};
  if (::fstat(descriptor_, &status) != 0) {
    const int code = errno;
    ::close(descriptor_);
    errno = code;
    refuse("read", path_);
  }
  size_ = static_cast<uint64_t>(status.st_size);
  seconds_ = status.st_mtim.tv_sec;
  nanoseconds_ = status.st_mtim.tv_nsec;
}

DirectFile::~DirectFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

DirectFile::DirectFile(DirectFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      direct_(other.direct_),
      size_(other.size_),
      seconds_(other.seconds_),
      nanoseconds_(other.nanoseconds_) {}

void DirectFile::require_unchanged() const {
  struct stat status{};
  if (::fstat(descriptor_, &status) != 0) refuse("read", path_);
  if (static_cast<uint64_t>(status.st_size) == size_ && status.st_mtim.tv_sec == seconds_ &&
      status.st_mtim.tv_nsec == nanoseconds_)
    return;
  throw Error(
      fmt::format("{} was changed while it was in use: it had {} bytes and has {}; start again "
                  "when it is whole",
                  path_.string(), size_, status.st_size));
}

void DirectFile::drop_cached() const {
  // Advice alone: where it is not taken, nothing changes.
  (void)::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);
}

std::span<const std::byte> DirectFile::read(uint64_t begin, uint64_t bytes,
                                            std::span<std::byte> to) const {
  const uint64_t first = direct_ ? begin / kAlignment * kAlignment : begin;
  const uint64_t end = begin + bytes;
  const uint64_t wanted =
      direct_ ? (end + kAlignment - 1) / kAlignment * kAlignment - first : end - first;
  CHECK(wanted <= to.size() && reinterpret_cast<uintptr_t>(to.data()) % kAlignment == 0);
  uint64_t done = 0;
  while (first + done < end) {
    const ssize_t count =
        ::pread(descriptor_, to.data() + done, wanted - done, static_cast<off_t>(first + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) refuse("read", path_);
    if (count == 0) break;
    done += static_cast<uint64_t>(count);
    // A part that ends between two blocks is the file's last: no more can be read directly.
    if (direct_ && done % kAlignment != 0) break;
  }
  require_unchanged();
  if (first + done < end)
    throw Error(fmt::format("{} ends at byte {}, but its header tells of {}", path_.string(),
                            first + done, end));
  return to.subspan(begin - first, bytes);
}

}  // namespace mixtral
