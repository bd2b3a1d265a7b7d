// Who gets which answer, before any model is asked.
#include "serve/router.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/json.h"
#include "serve/fields.h"

namespace mixtral::serve {
namespace {

using ::testing::HasSubstr;

class Recorded : public Reply {
 public:
  void send(HttpResponse response) override { got = std::move(response); }
  void begin(HttpResponse) override {}
  bool write(std::string_view) override { return true; }
  void end() override {}
  void on_gone(std::function<void()>) override {}
  HttpResponse got;
};

std::string header(const HttpResponse& response, std::string_view name) {
  return std::string(HttpHead{.headers = response.headers}.header(name));
}

class RouterTest : public ::testing::Test {
 protected:
  Router make(AccessOptions options = {}) {
    Router router(std::move(options));
    const auto echo = [](const HttpRequest& request, const std::shared_ptr<Reply>& reply) {
      reply->send({.body = request.parts.empty() ? "plain" : request.parts[0]});
    };
    router.add({.method = "GET", .path = "/", .handler = echo, .access = Access::open});
    router.add({.method = "GET", .path = "/v1/models", .handler = echo});
    router.add({.method = "GET", .path = "/v1/models/{model}", .handler = echo});
    router.add({.method = "POST", .path = "/v1/completions", .handler = echo});
    router.add({.method = "GET", .path = "/health", .handler = echo, .access = Access::open});
    router.add({.method = "POST",
                .path = "/v1/fails",
                .handler = [](const HttpRequest&, const std::shared_ptr<Reply>&) {
                  throw std::logic_error("secret");
                }});
    return router;
  }
  HttpResponse ask(Router& router, const std::string& method, const std::string& target,
                   HttpHeaders headers = {}) {
    if (HttpHead{.headers = headers}.count("Host") == 0) headers.emplace_back("Host", "localhost");
    const HttpHead head{.method = method, .target = target, .headers = std::move(headers)};
    if (auto refused = router.refuse(head)) return *refused;
    const auto reply = std::make_shared<Recorded>();
    router.handle({.head = head}, reply);
    return reply->got;
  }
};

TEST_F(RouterTest, FindsPathsWithAndWithoutV1AndASlashAtTheEnd) {
  Router router = make();
  for (const char* path : {"/v1/models", "/v1/models/", "/models", "/models/", "/v1/models?x=1"})
    EXPECT_EQ(ask(router, "GET", path).body, "plain") << path;
  EXPECT_EQ(ask(router, "GET", "/v1/models/a%3Ab").body, "a:b");
  for (const char* path : {"/v1", "/v1/models/a/b", "/v1//models", "/../etc/passwd", "/%2e%2e/etc",
                           "/v1/models/%zz", "*", "/v2/models"})
    EXPECT_EQ(ask(router, "GET", path).status, 404) << path;
}

TEST_F(RouterTest, NamesTheMethodsOfAPath) {
  Router router = make();
  const HttpResponse got = ask(router, "GET", "/v1/completions");
  EXPECT_EQ(got.status, 405);
  EXPECT_EQ(header(got, "Allow"), "OPTIONS, POST");
  EXPECT_EQ(ask(router, "HEAD", "/v1/models").status, 200);
}

TEST_F(RouterTest, AsksForAKey) {
  Router router = make({.keys = {"right", "other"}});
  const std::vector<std::pair<HttpHeaders, int>> cases = {
      {{}, 401},
      {{{"Authorization", "Bearer right"}}, 200},
      {{{"authorization", "bEARER   other"}}, 200},
      {{{"X-Api-Key", "right"}}, 200},
      {{{"Authorization", "Bearer righ"}}, 401},
      {{{"Authorization", "Bearer rightt"}}, 401},
      {{{"Authorization", "Bearer "}}, 401},
      {{{"Authorization", "right"}}, 401},
      {{{"Authorization", "Basic right"}}, 401},
      {{{"x-api-key", "wrong"}, {"Authorization", "Bearer right"}}, 401}};
  for (const auto& [headers, status] : cases) {
    const HttpResponse got = ask(router, "GET", "/v1/models", headers);
    EXPECT_EQ(got.status, status) << (headers.empty() ? "" : headers[0].second);
    EXPECT_EQ(header(got, "WWW-Authenticate"), status == 401 ? "Bearer" : "");
  }
  EXPECT_EQ(ask(router, "GET", "/health").status, 200);
  EXPECT_EQ(ask(router, "GET", "/nothing").status, 401);
}

TEST_F(RouterTest, ServesOnlyLoopbackNamesOnLoopback) {
  Router router = make();
  for (const char* host : {"localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.1.2.3", "[::1]:80"})
    EXPECT_EQ(ask(router, "GET", "/v1/models", {{"Host", host}}).status, 200) << host;
  for (const char* host : {"evil.example", "127.0.0.1.evil.example", "127.evil", "localhost.evil",
                           "192.168.0.1", "[::2]", ""})
    EXPECT_EQ(ask(router, "GET", "/v1/models", {{"Host", host}}).status, 403) << host;
  Router open = make({.loopback = false});
  EXPECT_EQ(ask(open, "GET", "/v1/models", {{"Host", "model.example"}}).status, 200);
}

TEST_F(RouterTest, RefusesOtherSitesPages) {
  Router router = make();
  const auto post = [&](Router& to, HttpHeaders headers) {
    headers.emplace_back("Host", "127.0.0.1:80");
    return ask(to, "POST", "/v1/completions", std::move(headers)).status;
  };
  EXPECT_EQ(post(router, {}), 200);
  EXPECT_EQ(post(router, {{"Origin", "http://127.0.0.1:80"}}), 200);
  EXPECT_EQ(post(router, {{"Origin", "http://evil.example"}}), 403);
  EXPECT_EQ(post(router, {{"Origin", "null"}}), 403);
  EXPECT_EQ(post(router, {{"Sec-Fetch-Site", "cross-site"}}), 403);
  EXPECT_EQ(post(router, {{"Content-Type", "text/plain"}}), 415);
  Router allowing = make({.allowed_origins = {"http://app.example"}});
  EXPECT_EQ(post(allowing, {{"Origin", "http://app.example"}}), 200);
  EXPECT_EQ(post(allowing, {{"Origin", "http://app.example.evil"}}), 403);
}

TEST_F(RouterTest, TellsBrowsersWhichOriginsMayCall) {
  Router router = make({.keys = {"k"}, .allowed_origins = {"http://app.example"}});
  const HttpHeaders from_app{{"Origin", "http://app.example"}};
  const HttpResponse preflight = ask(router, "OPTIONS", "/v1/completions", from_app);
  EXPECT_EQ(preflight.status, 204);
  EXPECT_EQ(header(preflight, "Access-Control-Allow-Origin"), "http://app.example");
  EXPECT_THAT(header(preflight, "Access-Control-Allow-Methods"), HasSubstr("POST"));
  for (const char* name : {"authorization", "content-type", "x-api-key"})
    EXPECT_THAT(header(preflight, "Access-Control-Allow-Headers"), HasSubstr(name));
  const HttpResponse error = ask(router, "POST", "/v1/completions", from_app);
  EXPECT_EQ(error.status, 401);
  EXPECT_EQ(header(error, "Access-Control-Allow-Origin"), "http://app.example");
  const HttpResponse other = ask(router, "OPTIONS", "/v1/completions", {{"Origin", "http://b"}});
  EXPECT_EQ(header(other, "Access-Control-Allow-Origin"), "");
}

TEST_F(RouterTest, RefusesBodiesThatItCannotRead) {
  Router router = make();
  const auto status = [&](const char* name, const char* value) {
    return ask(router, "POST", "/v1/completions", {{name, value}}).status;
  };
  EXPECT_EQ(status("Content-Encoding", "gzip"), 415);
  EXPECT_EQ(status("Content-Encoding", "identity"), 200);
  EXPECT_EQ(status("Content-Type", "application/json; charset=utf-8"), 200);
  EXPECT_EQ(status("Content-Type", "APPLICATION/JSON"), 200);
  EXPECT_EQ(status("Content-Type", "multipart/form-data; boundary=x"), 415);
}

TEST_F(RouterTest, KeepsDefectsToItself) {
  Router router = make();
  const HttpResponse got = ask(router, "POST", "/v1/fails");
  EXPECT_EQ(got.status, 500);
  EXPECT_EQ(got.body.find("secret"), std::string::npos);
}

TEST(ApiError, StaysSmallWhateverItQuotes) {
  const std::string huge(100'000, '\x01');
  for (const ApiError& error : {unknown_model(huge), ApiError(400, huge, huge, huge)}) {
    const HttpResponse response = openai_error(error);
    EXPECT_LT(response.body.size(), 4096U);
    const Json json = Json::parse(response.body, "error");
    EXPECT_TRUE(json.at("error").at("message").is_string());
  }
}

std::string message_of(const std::string& body, const std::function<void(Fields&)>& read) {
  try {
    const Json json = parse_body(body);
    Fields fields(json);
    read(fields);
    fields.finish();
    return "";
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status(), 400);
    return std::string(error.what()) + " [" + error.param() + "]";
  }
}

TEST(Fields, AreTakenOrRefusedByName) {
  const auto read = [](Fields& fields) {
    (void)fields.number("temperature", 0, 2);
    (void)fields.integer("seed", -5, 5);
    (void)fields.boolean("stream");
    (void)fields.text("user", 4);
  };
  EXPECT_EQ(message_of(R"({"temperature": 1, "seed": 5.0, "stream": null, "user": "abcd"})", read),
            "");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"temperature": "1"})", "[temperature]"},
      {R"({"temperature": 2.1})", "[temperature]"},
      {R"({"temperature": true})", "[temperature]"},
      {R"({"seed": 1.5})", "[seed]"},
      {R"({"seed": 6})", "[seed]"},
      {R"({"seed": 1e300})", "[seed]"},
      {R"({"stream": 1})", "[stream]"},
      {R"({"user": "abcde"})", "[user]"},
      {R"({"temperatur": 1})", "did you mean temperature"},
      {"", "request body"},
      {"[]", "request body"},
      {"{", "request body"},
      {R"({"seed": NaN})", "request body"},
      {R"({"seed": 1e999})", "request body"},
      {R"({"seed": 1, "seed": 2})", "seed"},
      {"{\"user\": \"\xff\"}", "request body"},
      {std::string(100'000, '['), "request body"},
      {"{\"" + std::string(100'000, 'f') + "\": 1}", "there is no such field"}};
  for (const auto& [body, part] : cases)
    EXPECT_THAT(message_of(body, read), HasSubstr(part)) << body.substr(0, 60);
}

}  // namespace
}  // namespace mixtral::serve
