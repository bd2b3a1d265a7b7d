#include "base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/temporary_name.h"

namespace mixtral {
namespace {

[[noreturn]] void fail(const char* what, const std::filesystem::path& path) {
  const int code = errno;
  throw Error(fmt::format("cannot {} {}: {}", what, path.string(), std::strerror(code)));
}

std::string_view kind_of(mode_t mode) {
  return S_ISFIFO(mode) ? "a pipe" : S_ISSOCK(mode) ? "a socket" : "a device";
}

/// Opens a regular file. A pipe without a writer does not make it wait.
int open_regular(const std::filesystem::path& path, struct stat& status) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor < 0) fail("open", path);
  if (::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode)) return descriptor;
  ::close(descriptor);
  if (S_ISDIR(status.st_mode)) {
    errno = EISDIR;
    fail("read", path);
  }
  throw Error(fmt::format("cannot read {}: it is {}, and a regular file is needed", path.string(),
                          kind_of(status.st_mode)));
}

/// Refuses to put a file in the place of a device, a pipe or a folder, also through a link.
void require_replaceable(const std::filesystem::path& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0 || S_ISREG(status.st_mode)) return;
  throw Error(fmt::format("cannot replace {}: it is {}, and a regular file is needed",
                          path.string(),
                          S_ISDIR(status.st_mode) ? "a directory" : kind_of(status.st_mode)));
}

void sync_file(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool good = descriptor >= 0 && ::fsync(descriptor) == 0;
  const int code = errno;
  if (descriptor >= 0) ::close(descriptor);
  errno = code;
  if (!good) fail("sync", path);
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  struct stat status{};
  const int descriptor = open_regular(path, status);
  size_ = static_cast<size_t>(status.st_size);
  if (size_ > 0) {
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    const int code = errno;
    ::close(descriptor);
    errno = code;
    if (address == MAP_FAILED && code == ENOMEM)
      throw Error(
          fmt::format("cannot map {}: its {} bytes do not fit the memory that this process may "
                      "address; raise `ulimit -v` where one is set",
                      path.string(), size_));
    if (address == MAP_FAILED) fail("map", path);
    data_ = static_cast<const std::byte*>(address);
  } else {
    ::close(descriptor);
  }
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

std::string read_file(const std::filesystem::path& path, uint64_t limit) {
  const MappedFile file(path);
  if (file.bytes().size() > limit)
    throw Error(fmt::format("{} has {} bytes; at most {} are accepted for this kind of file",
                            path.string(), file.bytes().size(), limit));
  return std::string(file.text());
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  require_replaceable(path_);
  // O_EXCL goes through no link, and takes no file that stands there already.
  for (int attempt = 0; attempt < 8 && descriptor_ < 0; ++attempt) {
    temporary_ = path_.parent_path() / temporary_name(path_.filename().string());
    descriptor_ =
        ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (descriptor_ < 0 && errno != EEXIST) break;
  }
  if (descriptor_ < 0) fail("create", path_);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write", path_);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) fail("sync", path_);
  const int closed = ::close(std::exchange(descriptor_, -1));
  if (closed != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int code = errno;
    ::unlink(temporary_.c_str());
    errno = code;
    fail("replace", path_);
  }
  sync_directory(path_.parent_path());
}

void write_file(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void sync_directory(const std::filesystem::path& directory) {
  const auto& place = directory.empty() ? std::filesystem::path(".") : directory;
  const int descriptor = ::open(place.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail("open", place);
  const int result = ::fsync(descriptor);
  ::close(descriptor);
  if (result != 0) fail("sync", place);
}

void sync_tree(const std::filesystem::path& directory) {
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.is_directory())
      sync_tree(entry.path());
    else if (entry.is_regular_file())
      sync_file(entry.path());
  }
  sync_directory(directory);
}

void put_in_place(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return;
  if (errno == ENOTEMPTY || errno == EEXIST) {
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) return;
    if (errno == EINVAL || errno == ENOSYS) {  // a file system that cannot swap
      const std::filesystem::path aside = from.string() + "-old";
      if (::rename(to.c_str(), aside.c_str()) == 0) {
        const bool done = ::rename(from.c_str(), to.c_str()) == 0;
        const int code = errno;
        ::rename(aside.c_str(), done ? from.c_str() : to.c_str());
        if (done) return;
        errno = code;
      }
    }
  }
  throw Error(
      fmt::format("cannot rename {} to {}: {}", from.string(), to.string(), std::strerror(errno)));
}

}  // namespace mixtral
