// A load test of a real server with a small random model, and of servers that are none.
#include "client/load_test.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "client/load_summary.h"
#include "serve/application.h"
#include "tests/serve/small_model.h"
#include "tests/support/files.h"

namespace mixtral::client {
namespace {

using ::testing::HasSubstr;

class LoadTestTest : public ::testing::Test {
 protected:
  LoadTestTest() {
    testing::save_small_model(scratch_.path() / "small", 5);
    serve::Application::Options options;
    options.http.port = 0;
    options.access.keys = {"secret"};
    options.models.service.context = 256;
    application_ = std::make_unique<serve::Application>(std::move(options));
    // Slow, so that the time of an answer is that of its tokens.
    application_->open(ModelSource::resolve({.model = (scratch_.path() / "small").string()}),
                       {.device = "ref", .threads = 1, .dtype = "fp32"}, {});
  }
  LoadOptions options() const {
    return {.server = parse_address("http://" + application_->http().address()),
            .key = "secret",
            .clients = 3,
            .requests = 12,
            .warmup = 2,
            .timeout = 20};
  }
  static Workload::Options work() {
    return {.prompt = Lengths::parse("20-60", "n"),
            .answer = Lengths::parse("8", "n"),
            .ignore_eos = true};
  }

  TemporaryDirectory scratch_;
  std::unique_ptr<serve::Application> application_;
};

TEST_F(LoadTestTest, MeasuresEveryRequest) {
  int64_t ended = 0;
  const LoadResults results =
      run_load(options(), Workload(work()), [&](int64_t count) { ended = count; });
  EXPECT_EQ(results.model, "small");
  EXPECT_EQ(ended, 12);
  const LoadSummary summary = summarize(results, {});
  EXPECT_EQ(summary.answered, 12);
  EXPECT_EQ(summary.tokens, 12 * 8);
  for (const Outcome& outcome : results.outcomes) {
    EXPECT_EQ(outcome.error, "");
    EXPECT_LE(outcome.asked, outcome.first);
    EXPECT_LE(outcome.first, outcome.last);
    EXPECT_LE(outcome.last, outcome.end);
    // A word is a token a letter here: the lengths that were asked for, a word more or less.
    EXPECT_GE(outcome.prompt_tokens, 12);
    EXPECT_LE(outcome.prompt_tokens, 70);
  }
  EXPECT_GT(summary.tokens_per_second, 0);
  EXPECT_LE(summary.first.p50, summary.first.p99);
}

TEST_F(LoadTestTest, TextsAreMeasuredAsTheyComeAndNotAtTheEnd) {
  Workload::Options longer = work();
  longer.answer = Lengths::parse("150", "n");
  longer.temperature = 1;  // the most probable bytes of a random model may be no text
  LoadOptions how = options();
  how.clients = 1;
  how.requests = 3;
  for (const Outcome& outcome : run_load(how, Workload(longer), {}).outcomes)
    EXPECT_GT(outcome.last - outcome.first, 0.3 * (outcome.end - outcome.asked));
}

TEST_F(LoadTestTest, ArrivalsComeAtTheirRateWhateverIsUnderWay) {
  LoadOptions how = options();
  how.rate = 100;
  how.requests = 40;
  const LoadResults results = run_load(how, Workload(work()), {});
  ASSERT_EQ(results.outcomes.size(), 40u);
  double last = 0;
  for (const Outcome& outcome : results.outcomes) last = std::max(last, outcome.asked);
  EXPECT_GT(last, 0.2);
  EXPECT_LT(last, 0.8);  // 40 exponential intervals of 10 ms: 0.4 s, give or take
  EXPECT_EQ(summarize(results, {}).answered, 40);
}

TEST_F(LoadTestTest, ClientsLeaveWhereTheyAreToAndTheServerGoesOn) {
  Workload::Options leaving = work();
  leaving.answer = Lengths::parse("40", "n");
  leaving.leaving = 1;
  const LoadSummary summary = summarize(run_load(options(), Workload(leaving), {}), {});
  EXPECT_EQ(summary.answered + summary.left, 12);
  EXPECT_GE(summary.left, 3);  // others would have left after the end
  EXPECT_TRUE(summary.errors.empty());
  EXPECT_EQ(summarize(run_load(options(), Workload(work()), {}), {}).answered, 12);
}

TEST_F(LoadTestTest, CountsErrorsByWhatTheyAre) {
  Workload::Options longer = work();
  longer.prompt = Lengths::parse("5000", "n");
  LoadOptions how = options();
  how.warmup = 0;
  const LoadSummary summary = summarize(run_load(how, Workload(longer), {}), {});
  EXPECT_EQ(summary.answered, 0);
  EXPECT_EQ(summary.errors.at("HTTP 400"), 12);
}

TEST_F(LoadTestTest, SaysWhyAServerCannotBeMeasured) {
  LoadOptions how = options();
  how.key = "wrong";
  EXPECT_THAT(message_of([&] { run_load(how, Workload(work()), {}); }), HasSubstr("401"));
  how = options();
  how.server.prefix = "/nothing";
  EXPECT_THAT(message_of([&] { run_load(how, Workload(work()), {}); }), HasSubstr("404"));
  how = options();
  application_.reset();
  EXPECT_THAT(message_of([&] { run_load(how, Workload(work()), {}); }), HasSubstr("no connection"));
}

}  // namespace
}  // namespace mixtral::client
