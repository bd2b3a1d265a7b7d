// What a load test is made of: addresses, lengths, streams of events, figures.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "client/event_reader.h"
#include "client/lengths.h"
#include "client/load_summary.h"
#include "client/server_address.h"
#include "client/workload.h"
#include "io/json.h"
#include "tests/support/files.h"

namespace mixtral::client {
namespace {

TEST(ServerAddress, IsReadFromABaseUrl) {
  const ServerAddress plain = parse_address("http://127.0.0.1:8080");
  EXPECT_EQ(plain.host, "127.0.0.1");
  EXPECT_EQ(plain.port, 8080);
  EXPECT_EQ(plain.prefix, "/v1");
  EXPECT_EQ(plain.host_header(), "127.0.0.1:8080");
  EXPECT_EQ(parse_address("http://localhost:1/v1/").prefix, "/v1");
  EXPECT_EQ(parse_address("http://models.example/a/v1").prefix, "/a/v1");
  EXPECT_EQ(parse_address("http://models.example").port, 80);
  const ServerAddress six = parse_address("http://[::1]:9/v1");
  EXPECT_EQ(six.host, "::1");
  EXPECT_EQ(six.host_header(), "[::1]:9");
  for (const char* bad :
       {"", "127.0.0.1:80", "https://a:1", "http://", "http://a:0", "http://a:70000", "http://a:x",
        "http://[::1", "http://a b", "http://a/v1?x=1", "http://user@a"})
    EXPECT_THROW(parse_address(bad), Error) << bad;
}

TEST(Lengths, AreDrawnAsTheyAreWritten) {
  RandomStream random(7);
  EXPECT_EQ(Lengths::parse("5", "n").draw(random), 5);
  const Lengths range = Lengths::parse("3-6", "n");
  std::set<int64_t> seen;
  for (int i = 0; i < 200; ++i) seen.insert(range.draw(random));
  EXPECT_EQ(seen, (std::set<int64_t>{3, 4, 5, 6}));
  const Lengths wide = Lengths::parse("lognormal:100:0.5", "n");
  double sum = 0;
  int below = 0;
  for (int i = 0; i < 4000; ++i) {
    const int64_t length = wide.draw(random);
    sum += static_cast<double>(length);
    below += length < 100 ? 1 : 0;
  }
  EXPECT_NEAR(sum / 4000, wide.mean(), 5);
  EXPECT_NEAR(wide.mean(), 100 * std::exp(0.125), 1e-9);
  EXPECT_NEAR(below, 2000, 150);
  const Lengths cut = Lengths::parse("lognormal:100:0.5:120", "n");
  int64_t longest = 0;
  for (int i = 0; i < 200; ++i) longest = std::max(longest, cut.draw(random));
  EXPECT_EQ(longest, 120);
  for (const char* bad : {"", "0", "-1", "6-3", "3-", "lognormal:5", "lognormal:0:1",
                          "lognormal:5:0", "lognormal:5:nan", "lognormal:5:1:", "lognormal:5:1:0",
                          "lognormal:5:1:9:9", "2000000", "1.5"})
    EXPECT_THROW(Lengths::parse(bad, "n"), UsageError) << bad;
}

TEST(EventReader, FindsEventsHoweverTheBytesAreCut) {
  const std::string stream =
      ": a comment\r\n\r\nevent: x\ndata: one\n\ndata:two\r\ndata: lines\r\n\r\n\n\nid: 3\n\n"
      "data: [DONE]\n\ndata: never ends";
  for (size_t size = 1; size <= stream.size(); ++size) {
    EventReader reader;
    std::vector<std::string> events;
    for (size_t at = 0; at < stream.size(); at += size)
      reader.push(std::string_view(stream).substr(at, size),
                  [&](std::string_view data) { events.emplace_back(data); });
    EXPECT_EQ(events, (std::vector<std::string>{"one", "two\nlines", "[DONE]"})) << size;
  }
}

TEST(EventReader, RefusesAnEventWithoutEnd) {
  EventReader reader;
  const std::string part(size_t{1} << 20, 'x');
  const auto push = [&] {
    for (int i = 0; i < 20; ++i) reader.push(part, [](std::string_view) {});
  };
  EXPECT_THROW(push(), Error);
}

TEST(Workload, MakesARequestFromItsNumberAlone) {
  const Workload::Options options{.prompt = Lengths::parse("10-20", "n"),
                                  .answer = Lengths::parse("4", "n"),
                                  .model = "m",
                                  .seed = 3};
  const Workload one(options), two(options);
  (void)two.at(0);
  EXPECT_EQ(one.at(5).body, two.at(5).body);
  EXPECT_NE(one.at(5).body, one.at(6).body);
  const Json body = Json::parse(one.at(5).body, "body");
  EXPECT_EQ(one.at(5).route, "/completions");
  EXPECT_EQ(body.at("model").as_string(), "m");
  EXPECT_EQ(body.at("max_tokens").as_int(), 4);
  EXPECT_TRUE(body.at("stream").as_bool());
  EXPECT_EQ(body.find("ignore_eos"), nullptr);
}

TEST(Workload, TakesPromptsOfAFileInTurn) {
  const TemporaryDirectory scratch;
  const auto file = scratch.path() / "rows.jsonl";
  write_file(file,
             "{\"prompt\": \"a \\u00e9\", \"max_tokens\": 3}\n\n"
             "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n"
             "{\"prompt\": [1, 2]}\n{\"prompt_tokens\": 2}\n");
  const Workload work(
      {.prompt = Lengths::parse("9", "n"), .answer = Lengths::parse("7", "n"), .file = file});
  const Json text = Json::parse(work.at(0).body, "body");
  EXPECT_EQ(text.at("prompt").as_string(), "a \u00e9");
  EXPECT_EQ(text.at("max_tokens").as_int(), 3);
  EXPECT_EQ(work.at(1).route, "/chat/completions");
  EXPECT_EQ(Json::parse(work.at(1).body, "body").at("max_tokens").as_int(), 7);
  EXPECT_EQ(Json::parse(work.at(2).body, "body").at("prompt").items().size(), 2u);
  const std::string words = Json::parse(work.at(3).body, "body").at("prompt").as_string();
  EXPECT_EQ(std::ranges::count(words, ' '), 1);
  EXPECT_EQ(work.at(4).body.find("a \u00e9") != std::string::npos, true);
  for (const char* bad : {"", "{}", "{\"prompt\": \"a\", \"messages\": []}", "{\"text\": \"a\"}",
                          "[1]", "{\"prompt_tokens\": 0}"}) {
    write_file(file, std::string(bad) + "\n");
    EXPECT_THROW(Workload({.file = file}), Error) << bad;
  }
}

TEST(LoadSummary, CountsGoodAnswersAndErrorsApart) {
  LoadResults results{.model = "m", .seconds = 2};
  for (int i = 1; i <= 100; ++i)
    results.outcomes.push_back({.asked = 0,
                                .first = 0.010 * i,
                                .last = 0.010 * i + 0.9,
                                .end = 0.010 * i + 1,
                                .prompt_tokens = 5,
                                .tokens = 10,
                                .gaps = {0.1F}});
  results.outcomes.push_back({.end = 1, .error = "HTTP 429"});
  results.outcomes.push_back({.end = 1, .error = "HTTP 429"});
  results.outcomes.push_back({.first = 0.5, .end = 1, .tokens = 3, .left = true});
  const LoadSummary summary = summarize(results, {.first = 500, .token = 101});
  EXPECT_EQ(summary.requests, 103);
  EXPECT_EQ(summary.answered, 100);
  EXPECT_EQ(summary.left, 1);
  EXPECT_EQ(summary.errors.at("HTTP 429"), 2);
  EXPECT_EQ(summary.tokens, 1003);
  EXPECT_NEAR(summary.tokens_per_second, 501.5, 1e-9);
  EXPECT_NEAR(summary.first.p50, 500, 1e-6);
  EXPECT_NEAR(summary.first.p99, 990, 1e-6);
  EXPECT_NEAR(summary.first.most, 1000, 1e-6);
  EXPECT_NEAR(summary.token.p90, 100, 1e-6);
  EXPECT_EQ(summary.good, 50);
  EXPECT_EQ(summarize(results, {.token = 99}).good, 0);
  EXPECT_EQ(summarize({}, {}).answered, 0);
}

}  // namespace
}  // namespace mixtral::client
