// What the server does with connections: it is given a handler that echoes bodies, and bytes on
// sockets.
#include "serve/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "tests/serve/client.h"

namespace mixtral::serve {
namespace {

using testing::Client;
using ::testing::HasSubstr;
using testing::Received;
using namespace std::chrono_literals;

constexpr uint64_t kMostBody = 1000;

/// POST /echo sends the body back; /later keeps the reply for the test; /stream sends three parts.
class Echo : public HttpHandler {
 public:
  std::optional<HttpResponse> refuse(const HttpHead& head) override {
    if (head.path() == "/refused") return HttpResponse{.status = 404, .body = "no"};
    return std::nullopt;
  }
  uint64_t most_body(const HttpHead&) override { return kMostBody; }
  HttpResponse broken(int status, std::string_view reason) override {
    return {.status = status, .body = std::string(reason)};
  }
  void handle(HttpRequest request, std::shared_ptr<Reply> reply) override {
    ++handled;
    if (request.head.path() == "/later") {
      reply->on_gone([this] { ++gone; });
      const std::lock_guard lock(mutex);
      kept.push_back(std::move(reply));
    } else if (request.head.path() == "/stream") {
      reply->begin({.headers = {{"Content-Type", "text/event-stream"}}});
      for (const char* part : {"one", "two", "three"}) reply->write(part);
      reply->end();
    } else if (request.head.path() == "/dropped") {
      // The last owner lets go.
    } else {
      reply->send({.body = request.head.method + ":" + request.body});
    }
  }
  std::shared_ptr<Reply> take_kept() {
    for (int i = 0; i < 500; ++i) {
      {
        const std::lock_guard lock(mutex);
        if (!kept.empty()) {
          auto reply = kept.back();
          kept.pop_back();
          return reply;
        }
      }
      std::this_thread::sleep_for(10ms);
    }
    return nullptr;
  }

  std::atomic<int> handled = 0, gone = 0;
  std::mutex mutex;
  std::vector<std::shared_ptr<Reply>> kept;
};

class HttpServerTest : public ::testing::Test {
 protected:
  void start(HttpServer::Options options = {}) {
    options.port = 0;
    server_ = std::make_unique<HttpServer>(options);
    server_->start(echo_);
  }
  uint16_t port() const { return server_->port(); }
  Received one(const std::string& bytes) {
    Client client(port());
    client.send(bytes);
    return client.answer();
  }

  Echo echo_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersManyRequestsOfOneConnectionInOrder) {
  start();
  Client client(port());
  // Two at once, as a client that does not wait sends them.
  client.send(
      "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\noneGET /refused HTTP/1.1\r\nHost: "
      "x\r\n\r\n");
  EXPECT_EQ(client.answer().body, "POST:one");
  EXPECT_EQ(client.answer().status, 404);
  client.request("POST", "/refused", "a body that is skipped");
  EXPECT_EQ(client.answer().status, 404);
  client.request("POST", "/a", "two");
  EXPECT_EQ(client.answer().body, "POST:two");
}

TEST_F(HttpServerTest, ReadsBodiesInChunksOfAnySize) {
  start();
  for (const size_t size : {1U, 7U, 64U}) {
    const std::string body(200, 'x');
    std::string bytes = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (size_t at = 0; at < body.size(); at += size) {
      const std::string part = body.substr(at, size);
      char line[16];
      std::snprintf(line, sizeof line, "%zx\r\n", part.size());
      bytes += line + part + "\r\n";
    }
    EXPECT_EQ(one(bytes + "0\r\n\r\n").body, "POST:" + body) << size;
  }
}

TEST_F(HttpServerTest, SaysContinueBeforeABodyThatWaitsForIt) {
  start();
  Client client(port());
  client.send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.answer().status, 100);
  client.send("abc");
  EXPECT_EQ(client.answer().body, "POST:abc");
  Client refused(port());
  refused.send(
      "POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(refused.answer().status, 404);
  EXPECT_TRUE(refused.ends());
}

TEST_F(HttpServerTest, RefusesWhatCouldBeReadInTwoWays) {
  start();
  const std::string chunked = "Transfer-Encoding: chunked\r\n", length = "Content-Length: 4\r\n";
  const std::vector<std::string> heads = {
      "Host: x\r\n" + chunked + length,
      "Host: x\r\n" + length + chunked,
      "Host: x\r\n" + length + "Content-Length: 5\r\n",
      "Host: x\r\nTransfer-Encoding: gzip, chunked\r\n",
      "Host: x\r\nTransfer-Encoding: identity\r\n",
      "Host: x\r\nContent-Length: -4\r\n",
      "Host: x\r\nContent-Length: 4, 4\r\n",
      "Host: x\r\nContent-Length: 99999999999999999999999\r\n",
      "Host: x\r\nHost: y\r\n",
      "",
      "Host : x\r\n",
      "Host: x\r\nA: b\r\n folded\r\nNo colon\r\n",
  };
  for (const std::string& head : heads) {
    Client client(port());
    client.send("POST /a HTTP/1.1\r\n" + head +
                "\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_EQ(client.answer().status, 400) << head;
    EXPECT_TRUE(client.ends()) << head;
  }
  EXPECT_EQ(echo_.handled, 0);
}

TEST_F(HttpServerTest, RefusesWhatIsNoHttp) {
  start();
  for (const std::string bytes : {"\x16\x03\x01 hello\r\n\r\n", "hello\r\n\r\n",
                                  "GET / HTTP/2.0\r\nHost: x\r\n\r\n", "GET\r\n\r\n"}) {
    Client client(port());
    client.send(bytes);
    EXPECT_EQ(client.answer().status, 400) << bytes;
    EXPECT_TRUE(client.ends());
  }
}

TEST_F(HttpServerTest, BoundsHeadsAndBodies) {
  start();
  Client long_head(port());
  long_head.send("GET / HTTP/1.1\r\nHost: x\r\n");
  for (int i = 0; i < 200; ++i)
    if (!long_head.send("X-" + std::to_string(i) + ": " + std::string(1000, 'a') + "\r\n")) break;
  EXPECT_EQ(long_head.answer().status, 431);
  Client declared(port());
  declared.send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n");
  EXPECT_EQ(declared.answer().status, 413);
  Client endless(port());
  endless.send("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string part = "10000\r\n" + std::string(0x10000, ' ') + "\r\n";
  int sent = 0;
  while (sent < 4096 && endless.send(part)) ++sent;
  EXPECT_LT(sent, 4096);
  EXPECT_EQ(echo_.handled, 0);
}

TEST_F(HttpServerTest, EndsConnectionsThatSendTooSlowly) {
  start({.first_head = 200ms, .idle = 200ms, .head = 200ms, .stalled = 200ms});
  Client silent(port());
  EXPECT_TRUE(silent.ends());
  Client half(port());
  half.send("POST /a HTT");
  EXPECT_EQ(half.answer().status, 408);
  Client body(port());
  body.send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_EQ(body.answer().status, 408);
  Client idle(port());
  idle.request("POST", "/a", "x");
  EXPECT_EQ(idle.answer().status, 200);
  EXPECT_TRUE(idle.ends());
}

TEST_F(HttpServerTest, MakesRoomForNewConnectionsFromThoseThatWait) {
  start({.connections = 3});
  std::vector<std::unique_ptr<Client>> waiting;
  for (int i = 0; i < 3; ++i) waiting.push_back(std::make_unique<Client>(port()));
  for (int i = 0; i < 500 && server_->connections() < 3; ++i) std::this_thread::sleep_for(10ms);
  Client client(port());
  client.request("POST", "/a", "x");
  EXPECT_EQ(client.answer().body, "POST:x");
}

TEST_F(HttpServerTest, StreamsInChunksAndGoesOn) {
  start();
  Client client(port());
  client.request("GET", "/stream");
  const Received got = client.answer();
  EXPECT_EQ(got.body, "onetwothree");
  EXPECT_TRUE(got.complete);
  client.request("POST", "/a", "x");
  EXPECT_EQ(client.answer().body, "POST:x");
  // HTTP/1.0 knows no chunks: the body ends with the connection.
  const Received old = one("GET /stream HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.body, "onetwothree");
  EXPECT_FALSE(old.headers.contains("transfer-encoding"));
}

TEST_F(HttpServerTest, AnswersHeadWithoutABody) {
  start();
  Client client(port());
  client.request("HEAD", "/a");
  const Received got = client.answer(true);
  EXPECT_EQ(got.status, 200);
  EXPECT_EQ(got.headers.at("content-length"), "5");
  client.request("POST", "/a", "x");
  EXPECT_EQ(client.answer().body, "POST:x");
}

TEST_F(HttpServerTest, SaysWhenAClientIsGone) {
  start();
  auto client = std::make_unique<Client>(port());
  client->request("GET", "/later");
  const std::shared_ptr<Reply> reply = echo_.take_kept();
  ASSERT_TRUE(reply);
  EXPECT_EQ(echo_.gone, 0);
  client.reset();
  for (int i = 0; i < 500 && echo_.gone == 0; ++i) std::this_thread::sleep_for(10ms);
  EXPECT_EQ(echo_.gone, 1);
  EXPECT_FALSE(reply->write("x"));
  int late = 0;
  reply->on_gone([&] { ++late; });  // has happened already
  EXPECT_EQ(late, 1);
}

TEST_F(HttpServerTest, BoundsWhatASlowReaderLeavesUnread) {
  start({.unread_bytes = 1 << 20});
  Client client(port(), 4096);
  client.request("GET", "/later");
  const std::shared_ptr<Reply> reply = echo_.take_kept();
  ASSERT_TRUE(reply);
  reply->begin({});
  const std::string part(64 << 10, 'x');
  int written = 0;
  while (written < 1000 && reply->write(part)) ++written;
  EXPECT_LT(written, 200);  // the bound, and what the system holds
}

TEST_F(HttpServerTest, TakesOnePartThatIsLargerThanTheBoundAndSmallOnesBehindIt) {
  start({.unread_bytes = 1 << 16});
  Client client(port());
  client.request("GET", "/later");
  const std::shared_ptr<Reply> reply = echo_.take_kept();
  ASSERT_TRUE(reply);
  reply->begin({});
  std::string all(16 << 20, 'x');
  EXPECT_TRUE(reply->write(all));
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(reply->write("y"));
  reply->end();
  const Received got = client.answer();
  EXPECT_EQ(got.body, all.append(1000, 'y'));
}

TEST_F(HttpServerTest, EndsAConnectionWhoseReplyIsDropped) {
  start();
  Client client(port());
  client.request("GET", "/dropped");
  EXPECT_TRUE(client.ends());
}

TEST_F(HttpServerTest, FinishesAnswersAndClosesTheRest) {
  start();
  Client idle(port()), busy(port());
  busy.request("GET", "/later");
  const std::shared_ptr<Reply> reply = echo_.take_kept();
  ASSERT_TRUE(reply);
  server_->finish();
  EXPECT_TRUE(idle.ends());
  reply->send({.body = "done"});
  EXPECT_EQ(busy.answer().body, "done");
  EXPECT_TRUE(busy.ends());
  EXPECT_THROW(Client late(port()), std::runtime_error);
}

TEST(HttpServer, SaysWhereItCannotListen) {
  const HttpServer first({.port = 0});
  try {
    const HttpServer second({.port = first.port()});
    FAIL() << "two servers at one port";
  } catch (const std::exception& error) {
    EXPECT_THAT(error.what(), HasSubstr(std::to_string(first.port())));
  }
  EXPECT_TRUE(first.loopback());
}

}  // namespace
}  // namespace mixtral::serve
