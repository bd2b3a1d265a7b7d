#include "base/messages.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <string>

#include "base/printable.h"

namespace mixtral::messages {
namespace {

constexpr size_t kLongestLine = 4096, kKeptEnd = 1024;
constexpr int kPatience = 1000;  // milliseconds for a reader that is slow and does not block

/// While it exists, this thread's writes to a pipe that nobody reads fail instead of raising
/// SIGPIPE. Nothing changes for standard output, whose reader's end should end the program.
class WithoutSigpipe {
 public:
  WithoutSigpipe() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    sigset_t pending;
    sigemptyset(&pending);
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    blocked_ = pthread_sigmask(SIG_BLOCK, &pipe_, &before_) == 0;
  }
  ~WithoutSigpipe() {
    if (!blocked_) return;
    if (!was_pending_) {  // take back the signal that this thread's write raised
      constexpr timespec kNow{};
      while (sigtimedwait(&pipe_, nullptr, &kNow) < 0 && errno == EINTR) continue;
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  WithoutSigpipe(const WithoutSigpipe&) = delete;
  WithoutSigpipe& operator=(const WithoutSigpipe&) = delete;

 private:
  sigset_t pipe_, before_;
  bool was_pending_ = false, blocked_ = false;
};

void write_all(std::string_view text) {
  const WithoutSigpipe guard;
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written > 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (written < 0 && errno == EAGAIN) {
      pollfd ready{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
      if (::poll(&ready, 1, kPatience) <= 0) return;
    } else if (written == 0 || errno != EINTR) {
      return;
    }
  }
}

/// On one line, and no longer than anyone reads.
std::string shown(std::string_view text) {
  std::string line = escaped(text);
  if (line.size() <= kLongestLine) return line;
  size_t begin = kLongestLine - kKeptEnd, end = line.size() - kKeptEnd;
  const auto inside = [&](size_t i) {
    return (static_cast<unsigned char>(line[i]) & 0xc0) == 0x80;
  };
  while (inside(begin)) --begin;
  while (inside(end)) ++end;
  return line.substr(0, begin) + " ... " + line.substr(end);
}

}  // namespace

void line(std::string_view text) { write_all(shown(text) + "\n"); }

void lines(std::string_view text) {
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    line(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

void redraw(std::string_view text) { write_all("\r\x1b[K" + shown(text)); }
void draw(std::string_view text) { write_all(text); }
void clear() { write_all("\r\x1b[K"); }
void end_line() { write_all("\n"); }

}  // namespace mixtral::messages
