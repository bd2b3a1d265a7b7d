#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <map>
#include <stdexcept>
#include <string>
#include <string_view>

#include "serve/http.h"

namespace mixtral::testing {

/// An answer as it came.
struct Received {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in small letters
  std::string body;                            // without chunks
  bool complete = false;                       // up to its end
};

/// A connection to a server on loopback that sends bytes and cuts answers out of what comes.
class Client {
 public:
  explicit Client(uint16_t port, int receive_buffer = 0) {
    socket_ = ::socket(AF_INET, SOCK_STREAM, 0);
    if (receive_buffer > 0)
      ::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    const timeval limit{.tv_sec = 20, .tv_usec = 0};
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      throw std::runtime_error("cannot connect");
  }
  ~Client() { close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }
  /// Returns whether all of it was taken.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  /// Sends a request with what HTTP/1.1 asks for, and the given lines of headers.
  void request(const std::string& method, const std::string& target, const std::string& body = "",
               const std::string& headers = "") {
    std::string text = method + " " + target + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers;
    if (!body.empty()) text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
    send(text + "\r\n" + body);
  }
  /// Reads on until the text is there. Returns whether it came.
  bool read_until(std::string_view text) {
    while (buffer_.find(text) == std::string::npos)
      if (!more()) return false;
    return true;
  }
  /// Whether the server ends the connection within the time limit; what comes before is dropped.
  bool ends() {
    buffer_.clear();
    while (more()) buffer_.clear();
    return ended_;
  }
  std::string buffer() const { return buffer_; }
  /// The server reads the end of what was sent.
  void finish_sending() { ::shutdown(socket_, SHUT_WR); }
  /// All that comes until the server ends the connection.
  std::string rest() {
    while (more()) {
    }
    return buffer_;
  }

  Received answer(bool without_body = false) {
    Received got;
    std::string line;
    if (!take_line(line) || line.size() < 12) return got;
    got.status = std::stoi(line.substr(9, 3));
    while (take_line(line) && !line.empty()) {
      const size_t colon = line.find(':');
      std::string name = line.substr(0, colon);
      for (char& c : name) c = static_cast<char>(std::tolower(c));
      got.headers[name] = line.substr(std::min(line.size(), colon + 2));
    }
    if (without_body || got.status == 100 || got.status == 204) {
      got.complete = true;
    } else if (got.headers.contains("transfer-encoding")) {
      while (take_line(line)) {
        const size_t size = std::stoul(line, nullptr, 16);
        std::string part;
        if (!take(size, part)) return got;
        got.body += part;
        if (!take_line(line)) return got;
        if (size == 0) {
          got.complete = true;
          break;
        }
      }
    } else if (got.headers.contains("content-length")) {
      got.complete = take(std::stoul(got.headers["content-length"]), got.body);
    } else {
      while (more()) {
      }
      got.body = std::exchange(buffer_, {});
      got.complete = ended_;
    }
    return got;
  }

 private:
  bool more() {
    char part[16384];
    const ssize_t n = ::recv(socket_, part, sizeof part, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) ended_ = true;
    if (n <= 0) return false;
    buffer_.append(part, static_cast<size_t>(n));
    return true;
  }
  bool take(size_t size, std::string& part) {
    while (buffer_.size() < size)
      if (!more()) return false;
    part = buffer_.substr(0, size);
    buffer_.erase(0, size);
    return true;
  }
  bool take_line(std::string& line) {
    if (!read_until("\r\n")) return false;
    const size_t end = buffer_.find("\r\n");
    line = buffer_.substr(0, end);
    buffer_.erase(0, end + 2);
    return true;
  }

  int socket_ = -1;
  std::string buffer_;
  bool ended_ = false;
};

}  // namespace mixtral::testing
