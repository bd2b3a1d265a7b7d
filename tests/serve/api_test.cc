// A whole server with a small random model, asked as clients ask it. What the model says means
// nothing, but it has to be what the engine says without a server, whoever else asks.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "infer/methods.h"
#include "io/json.h"
#include "serve/application.h"
#include "tests/serve/client.h"
#include "tests/serve/small_model.h"
#include "tests/support/files.h"
#include "text/byte_tokenizer.h"
#include "text/utf8.h"

namespace mixtral::serve {
namespace {

using ::testing::AllOf;
using testing::Client;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Received;
using namespace std::chrono_literals;

constexpr int64_t kContext = 256;

class ApiTest : public ::testing::Test {
 protected:
  ApiTest() {
    directory_ = scratch_.path() / "small";
    testing::save_small_model(directory_, 5);
  }
  void start(Service::Options options = {.context = kContext, .parallel = 4, .queue = 64},
             int64_t draft_tokens = 0) {
    Application::Options all;
    all.http.port = 0;
    all.models.service = std::move(options);
    all.metrics = true;
    application_ = std::make_unique<Application>(std::move(all));
    const ModelSource source = ModelSource::resolve({.model = directory_.string()});
    application_->open(
        source, {.device = "cpu", .threads = 1, .dtype = "fp32", .draft_tokens = draft_tokens}, {});
  }
  uint16_t port() const { return application_->http().port(); }

  Received post(const std::string& path, const std::string& body) {
    Client client(port());
    client.request("POST", path, body, "Content-Type: application/json\r\n");
    return client.answer();
  }
  Json good(const std::string& path, const std::string& body) {
    const Received got = post(path, body);
    EXPECT_EQ(got.status, 200) << body << "\n" << got.body;
    return Json::parse(got.body, path);
  }
  static std::string completion(const std::string& prompt, const std::string& more) {
    return R"({"model": "small", "prompt": ")" + prompt + R"(", "temperature": 0)" + more + "}";
  }
  std::string text_of(const std::string& prompt, const std::string& more = "") {
    return good("/v1/completions", completion(prompt, more))
        .at("choices")
        .items()[0]
        .at("text")
        .as_string();
  }
  /// What `generate --temp 0` says, as valid UTF-8.
  std::string generated(const std::string& prompt, int64_t tokens) {
    const ModelSource source = ModelSource::resolve({.model = directory_.string()});
    const OpenedModel open = open_model(
        source, {.device = "cpu", .threads = 1, .dtype = "fp32", .context = kContext}, {});
    Engine engine(*open.backend, *open.model);
    TextOptions options;
    options.tokens = {
        .sampling = {.temperature = 0}, .max_tokens = tokens, .stop_ids = source.stop_ids()};
    return generate(engine, &tokenizer_, prompt_tokens(tokenizer_, prompt), options).text;
  }
  /// The data of a stream's events.
  static std::vector<std::string> events(const Received& got) {
    std::vector<std::string> data;
    size_t at = 0;
    while (at < got.body.size()) {
      const size_t end = got.body.find("\n\n", at);
      EXPECT_NE(end, std::string::npos);
      EXPECT_EQ(got.body.substr(at, 6), "data: ");
      data.push_back(got.body.substr(at + 6, end - at - 6));
      at = end + 2;
    }
    return data;
  }

  TemporaryDirectory scratch_;
  std::filesystem::path directory_;
  ByteTokenizer tokenizer_;
  std::unique_ptr<Application> application_;
};

TEST_F(ApiTest, AGreedyCompletionIsWhatGenerateSaysAloneAndAmongEight) {
  const std::vector<std::string> prompts = {"a", "Hello",      "The mill", "xyz", "One two three",
                                            "Q", "0123456789", "Zo\u00eb"};
  std::vector<std::string> want;
  for (const std::string& prompt : prompts) want.push_back(generated(prompt, 40));
  start();
  for (size_t i = 0; i < prompts.size(); ++i)
    EXPECT_EQ(text_of(prompts[i], R"(, "max_tokens": 40)"), want[i]);
  std::vector<std::string> got(prompts.size());
  std::vector<std::thread> clients;
  for (size_t i = 0; i < prompts.size(); ++i)
    clients.emplace_back([&, i] { got[i] = text_of(prompts[i], R"(, "max_tokens": 40)"); });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(got, want);
}

TEST_F(ApiTest, AStreamIsTheWholeAnswerInWholeCharacters) {
  start();
  const std::string want = text_of("Hello", R"(, "max_tokens": 60)");
  const Received got =
      post("/v1/completions", completion("Hello", R"(, "max_tokens": 60, "stream": true,
                                                    "stream_options": {"include_usage": true})"));
  EXPECT_THAT(got.headers.at("content-type"), HasSubstr("text/event-stream"));
  std::vector<std::string> data = events(got);
  ASSERT_GE(data.size(), 3U);
  EXPECT_EQ(data.back(), "[DONE]");
  data.pop_back();
  const Json usage = Json::parse(data.back(), "usage");
  EXPECT_TRUE(usage.at("choices").items().empty());
  EXPECT_LE(usage.at("usage").at("completion_tokens").as_int(), 60);
  data.pop_back();
  std::string text;
  for (size_t i = 0; i < data.size(); ++i) {
    const Json chunk = Json::parse(data[i], "chunk");
    EXPECT_TRUE(chunk.at("usage").is_null());
    const Json& choice = chunk.at("choices").items()[0];
    text += choice.at("text").as_string();
    EXPECT_EQ(choice.at("finish_reason").is_null(), i + 1 < data.size());
  }
  EXPECT_EQ(text, want);
}

TEST_F(ApiTest, AStreamedConversationHasItsRoleOnceAndOneReason) {
  start();
  const Received got = post("/v1/chat/completions", R"({"messages": [{"role": "user",
      "content": "Hi"}], "max_tokens": 8, "stream": true, "n": 2, "temperature": 1, "seed": 3})");
  const std::vector<std::string> data = events(got);
  std::vector<int> roles(2, 0), reasons(2, 0);
  for (size_t i = 0; i + 1 < data.size(); ++i) {
    const Json chunk = Json::parse(data[i], "chunk");
    EXPECT_EQ(chunk.at("object").as_string(), "chat.completion.chunk");
    const Json& choice = chunk.at("choices").items()[0];
    const auto index = static_cast<size_t>(choice.at("index").as_int());
    if (choice.at("delta").find("role") != nullptr) {
      EXPECT_EQ(reasons[index], 0);
      ++roles[index];
    }
    if (!choice.at("finish_reason").is_null()) ++reasons[index];
  }
  EXPECT_EQ(data.back(), "[DONE]");
  EXPECT_EQ(roles, std::vector<int>(2, 1));
  EXPECT_EQ(reasons, std::vector<int>(2, 1));
}

TEST_F(ApiTest, PromptsComeAsTextOrTokens) {
  start();
  const auto count = [&](const std::string& prompt) {
    return good("/v1/completions", R"({"prompt": )" + prompt + R"(, "temperature": 0})")
        .at("usage")
        .at("prompt_tokens")
        .as_int();
  };
  EXPECT_EQ(count(R"("ab")"), 3);
  EXPECT_EQ(count(R"(["ab"])"), 3);
  EXPECT_EQ(count("[256, 97, 98]"), 3);
  EXPECT_EQ(count("[[256, 97, 98]]"), 3);
  EXPECT_EQ(count(R"("<s>ab")"), 3);
  EXPECT_EQ(count(R"("")"), 1);
  EXPECT_EQ(count(R"(["a", "b"])"), 4);
}

TEST_F(ApiTest, ATemplateAsTextMakesTheConversationsTokens) {
  start();
  const std::string messages = R"("messages": [{"role": "developer", "content": "Be brief."},
      {"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant",
      "content": "Yes."}, {"role": "user", "content": "More"}, {"role": "user", "content": "!"}])";
  const std::string prompt = good("/apply-template", "{" + messages + "}").at("prompt").as_string();
  const Json chat = good("/v1/chat/completions", "{" + messages + R"(, "max_tokens": 12,
      "temperature": 0})");
  std::string quoted;
  for (const char c : prompt) quoted += c == '\n' ? std::string("\\n") : std::string(1, c);
  const Json completed = good("/v1/completions", completion(quoted, R"(, "max_tokens": 12)"));
  EXPECT_EQ(chat.at("usage").at("prompt_tokens").as_int(),
            completed.at("usage").at("prompt_tokens").as_int());
  EXPECT_EQ(chat.at("choices").items()[0].at("message").at("content").as_string(),
            completed.at("choices").items()[0].at("text").as_string());
}

TEST_F(ApiTest, StopTextsAreNoPartOfTheAnswer) {
  start();
  const std::string text = text_of("Hello", R"(, "max_tokens": 30, "logit_bias": {"257": -100})");
  ASSERT_GT(text.size(), 12U);
  // The byte that the answer first has at place 10 or later and not before.
  size_t at = 10;
  while (at < text.size() && (text.find(text[at]) < at || text[at] == '"' || text[at] == '\\' ||
                              text[at] < ' ' || text[at] > '~'))
    ++at;
  if (at == text.size()) GTEST_SKIP() << "the random answer has no such character";
  EXPECT_EQ(text_of("Hello", R"(, "max_tokens": 30, "logit_bias": {"257": -100}, "stop": ["never",
      ")" + std::string(1, text[at]) +
                                 R"("])"),
            text.substr(0, at));
}

TEST_F(ApiTest, BiasAndPenaltiesChangeWhatIsDrawn) {
  start();
  EXPECT_EQ(text_of("Hello", R"(, "max_tokens": 3, "logit_bias": {"65": 100})"), "AAA");
  // A token that was drawn loses to the next one: 2 for being there, 2 more each time.
  const std::string both = R"("logit_bias": {"65": 100, "66": 97}, "max_tokens": 4)";
  EXPECT_EQ(text_of("Hello", ", " + both), "AAAA");
  const std::string penalised =
      text_of("Hello", R"(, "presence_penalty": 2, "frequency_penalty": 2, )" + both);
  EXPECT_THAT(penalised, HasSubstr("B"));
  EXPECT_EQ(penalised[0], 'A');
}

TEST_F(ApiTest, LogprobsOfPromptAndAnswerAgree) {
  start();
  const Json made = good("/v1/completions", completion("Hello", R"(, "max_tokens": 6, "logprobs": 2,
                                                 "logit_bias": {"257": -100})"));
  const Json& made_logprobs = made.at("choices").items()[0].at("logprobs");
  ASSERT_EQ(made_logprobs.at("tokens").items().size(), 6U);
  for (size_t i = 0; i < 6; ++i) {
    double best = -1e9;
    for (const auto& [name, value] : made_logprobs.at("top_logprobs").items()[i].members())
      best = std::max(best, value.as_double());
    EXPECT_EQ(made_logprobs.at("token_logprobs").items()[i].as_double(), best);
  }
  const Json echoed = good(
      "/v1/completions", completion("Hello", R"(, "max_tokens": 0, "logprobs": 1, "echo": true)"));
  const Json& choice = echoed.at("choices").items()[0];
  EXPECT_EQ(choice.at("text").as_string(), "Hello");
  EXPECT_EQ(echoed.at("usage").at("completion_tokens").as_int(), 0);
  ASSERT_EQ(choice.at("logprobs").at("token_logprobs").items().size(), 6U);
  EXPECT_TRUE(choice.at("logprobs").at("token_logprobs").items()[0].is_null());
}

TEST_F(ApiTest, TheTokenThatEndsAnEchoedTextHasALogprob) {
  start();
  const Json ended =
      good("/v1/completions", completion("Hello", R"(, "max_tokens": 1, "logprobs": 1, "echo": true,
                                                  "logit_bias": {"257": 100})"));
  const Json& choice = ended.at("choices").items()[0];
  EXPECT_EQ(choice.at("text").as_string(), "Hello");
  EXPECT_EQ(choice.at("finish_reason").as_string(), "stop");
  EXPECT_EQ(choice.at("logprobs").at("token_logprobs").items().size(), 7U);
}

TEST_F(ApiTest, UsageCountsWhatWasInTheCache) {
  start();
  const std::string prompt(100, 'x');
  const std::string body = completion(prompt, R"(, "max_tokens": 4)");
  const auto cached = [&] {
    return good("/v1/completions", body)
        .at("usage")
        .at("prompt_tokens_details")
        .at("cached_tokens")
        .as_int();
  };
  EXPECT_EQ(cached(), 0);
  EXPECT_GE(cached(), 80);
}

TEST_F(ApiTest, WhatCannotBeServedIsRefusedByName) {
  start();
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("temperature": -0.1)", "temperature"},
      {R"("temperature": "1")", "temperature"},
      {R"("top_p": 0)", "top_p"},
      {R"("n": 0)", "\"n\""},
      {R"("n": 100000)", "\"n\""},
      {R"("seed": 1.5)", "seed"},
      {R"("stop": [""])", "stop"},
      {R"("stop": 5)", "stop"},
      {R"("stop": ["a", "b", "c", "d", "e"])", "stop"},
      {R"("logit_bias": {"x": 1})", "logit_bias"},
      {R"("logit_bias": {"65": 101})", "logit_bias"},
      {R"("logit_bias": {"9999": 1})", "logit_bias"},
      {R"("presence_penalty": 3)", "presence_penalty"},
      {R"("max_tokens": -1)", "max_tokens"},
      {R"("suffix": "x")", "suffix"},
      {R"("best_of": 4)", "best_of"},
      {R"("stream_options": {})", "stream_options"},
      {R"("grammar": "")", "grammar"}};
  for (const auto& [field, name] : cases) {
    const Received got = post("/v1/completions", R"({"prompt": "x", )" + field + "}");
    EXPECT_EQ(got.status, 400) << field;
    EXPECT_THAT(got.body, HasSubstr(name)) << field;
    const Received streamed =
        post("/v1/completions", R"({"prompt": "x", "stream": true, )" + field + "}");
    if (name != "stream_options") {
      EXPECT_EQ(streamed.status, 400) << field;
    }
  }
  for (const char* prompt : {"[]", "[[]]", "[70000]", "[-1]", "[1.5]", R"(["a", 5])", "{}", "null"})
    EXPECT_EQ(post("/v1/completions", R"({"prompt": )" + std::string(prompt) + "}").status, 400)
        << prompt;
  const Received unknown = post("/v1/completions", R"({"model": "nope", "prompt": "x"})");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_THAT(unknown.body, HasSubstr("model_not_found"));
  const Received longer = post("/v1/completions", completion(std::string(300, 'x'), ""));
  EXPECT_EQ(longer.status, 400);
  EXPECT_THAT(longer.body, HasSubstr("context_length_exceeded"));
  EXPECT_THAT(longer.body, HasSubstr("301"));
  // More tokens than there is room for are cut.
  EXPECT_LE(good("/v1/completions", completion(std::string(200, 'x'), R"(, "max_tokens": 32000)"))
                .at("usage")
                .at("total_tokens")
                .as_int(),
            kContext);
}

TEST_F(ApiTest, ABoundedQueueSaysWhenToTryAgainAndAClientThatLeavesMakesRoom) {
  start({.context = kContext, .parallel = 1, .queue = 0});
  const std::string forever = completion(
      "x", R"(, "max_tokens": 250, "logit_bias": {"257": -100}, "stream": true, "n": 128)");
  Client first(port());
  first.request("POST", "/v1/completions", forever);
  ASSERT_TRUE(first.read_until("data:"));
  const Received refused = post("/v1/completions", completion("x", ""));
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.headers.at("retry-after"), "1");
  first.close();
  int status = 0;
  for (int i = 0; i < 300 && status != 200; ++i) {
    status = post("/v1/completions", completion("x", R"(, "max_tokens": 1)")).status;
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_EQ(status, 200);
}

TEST_F(ApiTest, AStreamEndsBetweenTwoEventsWhenTheServerEnds) {
  start();
  Client client(port());
  client.request("POST", "/v1/completions",
                 completion("x", R"(, "max_tokens": 250, "logit_bias": {"257": -100},
                                    "stream": true, "n": 128)"));
  ASSERT_TRUE(client.read_until("data:"));
  application_->finish(50ms);
  const Received got = client.answer();
  EXPECT_TRUE(got.complete);
  EXPECT_TRUE(got.body.ends_with("\n\n"));
  EXPECT_THAT(got.body, HasSubstr("shutting down"));
}

TEST_F(ApiTest, EveryProtocolGivesTheSameText) {
  start();
  const std::string turns = R"("messages": [{"role": "user", "content": "Ann saw"}])";
  const std::string text = good("/v1/chat/completions", "{" + turns +
                                                            R"(, "temperature": 0,
                                                                "max_tokens": 12})")
                               .at("choices")
                               .items()[0]
                               .at("message")
                               .at("content")
                               .as_string();
  const Json message = good("/v1/messages", R"({"model": "small", "temperature": 0,
                                               "max_tokens": 12, )" +
                                                turns + "}");
  EXPECT_EQ(message.at("content").items()[0].at("text").as_string(), text);
  const Json counted = good("/v1/messages/count_tokens", R"({"model": "small", )" + turns + "}");
  EXPECT_EQ(message.at("usage").at("input_tokens").as_int(), counted.at("input_tokens").as_int());
  const Json response = good("/v1/responses", R"({"model": "small", "input": "Ann saw",
                                                  "temperature": 0, "max_output_tokens": 12})");
  EXPECT_EQ(response.at("output").items()[0].at("content").items()[0].at("text").as_string(), text);
  EXPECT_EQ(response.at("usage").at("input_tokens").as_int(), counted.at("input_tokens").as_int());
}

TEST_F(ApiTest, SaysWhichExpertsMadeATokenAndWhatTheyHaveTaken) {
  start();
  const Json answer =
      good("/v1/completions",
           completion("Ann", R"(, "max_tokens": 5, "ignore_eos": true, "experts": true)"));
  const Json& tokens = answer.at("choices").items()[0].at("experts");
  ASSERT_EQ(tokens.items().size(), 5U);
  for (const Json& token : tokens.items()) {
    ASSERT_EQ(token.at("ids").items().size(), 1U);  // layers
    double sum = 0;
    for (const Json& weight : token.at("weights").items()[0].items()) sum += weight.as_double();
    EXPECT_NEAR(sum, 1, 1e-5);
  }
  Client client(port());
  const auto ask = [&] {
    client.request("GET", "/experts");
    return Json::parse(client.answer().body, "/experts");
  };
  // BOS, three letters and all new tokens but the last have gone through the model. The last step
  // is counted when it is over, perhaps after its answer was sent.
  for (int i = 0; i < 500 && ask().at("tokens").as_int() < 8; ++i)
    std::this_thread::sleep_for(10ms);
  const Json load = ask();
  EXPECT_EQ(load.at("tokens").as_int(), 8);
  int64_t taken = 0;
  for (const Json& count : load.at("counts").items()[0].items()) taken += count.as_int();
  EXPECT_EQ(taken, 8 * load.at("experts_per_token").as_int());
  for (const char* window : {"0", "601", "x", "1.5", ""}) {
    client.request("GET", std::string("/experts?window=") + window);
    EXPECT_EQ(client.answer().status, 400) << window;
  }
}

TEST_F(ApiTest, SaysWhereThePromptsTokensWent) {
  using nlohmann::json;
  start();
  const std::string fields =
      R"(, "max_tokens": 2, "ignore_eos": true, "n": 2, "experts": true, "prompt_experts": true)";
  const auto whole = [&](const std::string& path, const std::string& body) {
    return json::parse(post(path, body + "}").body);
  };
  // The parts of a stream, which come before the answer's first token.
  const auto streamed = [&](const std::string& path, const std::string& body) {
    json all = json::array();
    bool begun = false;
    for (const std::string& data : events(post(path, body + R"(, "stream": true})"))) {
      if (data == "[DONE]") continue;
      const json choice = json::parse(data).at("choices").at(0);
      begun = begun || (choice.contains("experts") && !choice.at("experts").empty());
      if (!choice.contains("prompt_experts")) continue;
      EXPECT_EQ(choice.at("index"), 0);
      EXPECT_FALSE(begun);
      for (const json& token : choice.at("prompt_experts")) all.push_back(token);
    }
    return all;
  };
  std::string body = completion(std::string(200, 'k'), fields);
  body.pop_back();
  const json first = whole("/v1/completions", body).at("choices");
  const json& routes = first.at(0).at("prompt_experts");
  ASSERT_EQ(routes.size(), 201U);  // with BOS
  EXPECT_FALSE(first.at(1).contains("prompt_experts"));
  // The pass over the prompt's last token made the first new one.
  EXPECT_EQ(routes.back(), first.at(0).at("experts").at(0));
  // A prompt whose routes are wanted is computed anew, though the cache has it.
  EXPECT_EQ(whole("/v1/completions", body).at("choices").at(0).at("prompt_experts"), routes);
  EXPECT_EQ(streamed("/v1/completions", body), routes);

  body = R"({"model": "small", "messages": [{"role": "user", "content": "Hi"}])" + fields;
  const json chat = whole("/v1/chat/completions", body);
  const json& turns = chat.at("choices").at(0).at("prompt_experts");
  EXPECT_EQ(turns.size(), chat.at("usage").at("prompt_tokens"));
  EXPECT_EQ(streamed("/v1/chat/completions", body), turns);
}

TEST_F(ApiTest, TheOpenApiDocumentNamesEveryRouteAndNoOther) {
  start();
  Client client(port());
  client.request("GET", "/openapi.json");
  std::set<std::string> documented, routed;
  const Json document = Json::parse(client.answer().body, "/openapi.json");
  for (const auto& [path, methods] : document.at("paths").members())
    for (const auto& [method, operation] : methods.members()) {
      std::string name = method;
      std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::toupper(c); });
      documented.insert(fmt::format("{} {}", name, path));
    }
  for (const Route& route : application_->routes())
    if (!route.path.starts_with("/page/")) routed.insert(route.method + " " + route.path);
  EXPECT_EQ(documented, routed);
}

TEST_F(ApiTest, CountsTokensInItsMetrics) {
  start();
  (void)text_of("Hello", R"(, "max_tokens": 7, "logit_bias": {"257": -100})");
  Client client(port());
  client.request("GET", "/metrics");
  EXPECT_THAT(client.answer().body, HasSubstr("mixtral_generated_tokens_total 7\n"));
}

TEST_F(ApiTest, SpeculationChangesNoAnswerAndIsCounted) {
  start({.context = kContext, .parallel = 4, .queue = 64}, 4);
  // A bias makes it repeat itself.
  const std::string more = R"(, "max_tokens": 60, "logit_bias": {"98": 100})";
  EXPECT_EQ(text_of("abab", more), std::string(60, 'b'));
  EXPECT_EQ(text_of("Hello", R"(, "max_tokens": 40)"), generated("Hello", 40));
  Client client(port());
  client.request("GET", "/metrics");
  EXPECT_THAT(client.answer().body,
              AllOf(HasSubstr("mixtral_draft_tokens_total "),
                    HasSubstr("mixtral_draft_tokens_accepted_total "),
                    Not(HasSubstr("mixtral_draft_tokens_accepted_total 0\n"))));
}

TEST(Application, SaysThatTheModelIsLoading) {
  Application::Options options;
  options.http.port = 0;
  const Application application(std::move(options));
  Client client(application.http().port());
  client.request("GET", "/health");
  EXPECT_EQ(client.answer().status, 503);
  client.request("GET", "/v1/models");
  EXPECT_EQ(client.answer().status, 503);
}

}  // namespace
}  // namespace mixtral::serve
