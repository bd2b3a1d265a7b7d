// Models and adapters that are loaded and unloaded while a server runs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "io/json.h"
#include "serve/application.h"
#include "tests/serve/client.h"
#include "tests/serve/small_model.h"
#include "tests/support/files.h"

namespace mixtral::serve {
namespace {

using testing::Client;
using ::testing::HasSubstr;
using testing::Received;
using namespace std::chrono_literals;

constexpr const char* kKey = "Authorization: Bearer user\r\n";
constexpr const char* kAdministrator = "Authorization: Bearer admin\r\n";

class ModelsTest : public ::testing::Test {
 protected:
  ModelsTest() : folder_(scratch_.path() / "models") {
    testing::save_small_model(scratch_.path() / "first", 5);
    testing::save_small_model(folder_ / "second", 6);
    testing::save_small_adapter(folder_ / "tuned", 7);
    std::filesystem::create_directories(folder_ / "nothing");
  }
  void start(Models::Options models = {}) {
    Application::Options all;
    all.http.port = 0;
    all.access.keys = {"user"};
    all.access.administrator_keys = {"admin"};
    models.service.context = 256;
    models.folder = folder_;
    all.models = std::move(models);
    all.metrics = true;
    application_ = std::make_unique<Application>(std::move(all));
    const ModelSource source =
        ModelSource::resolve({.model = (scratch_.path() / "first").string()});
    application_->open(source, {.device = "cpu", .threads = 1, .dtype = "fp32"}, {});
  }
  Received send(const std::string& method, const std::string& path, const std::string& body = "",
                const std::string& key = kKey) {
    Client client(application_->http().port());
    client.request(method, path, body,
                   key + (body.empty() ? "" : "Content-Type: application/json\r\n"));
    return client.answer();
  }
  Received change(const std::string& path, const std::string& body) {
    return send("POST", path, body, kAdministrator);
  }
  Received complete(const std::string& model, const std::string& more = "") {
    return send("POST", "/v1/completions",
                R"({"prompt": "Hello", "temperature": 0, "max_tokens": 12,
                    "logit_bias": {"257": -100}, "model": ")" +
                    model + "\"" + more + "}");
  }
  std::string text(const std::string& model) {
    const Received got = complete(model);
    EXPECT_EQ(got.status, 200) << got.body;
    if (got.status != 200) return "";
    return Json::parse(got.body, "answer").at("choices").items()[0].at("text").as_string();
  }
  std::string status(const std::string& model) {
    const Received got = send("GET", "/v1/models/" + model);
    if (got.status != 200) return "none";
    return Json::parse(got.body, "model").at("status").at("value").as_string();
  }
  std::vector<std::string> names() {
    std::vector<std::string> all;
    const Json list = Json::parse(send("GET", "/v1/models").body, "models");
    for (const Json& model : list.at("data").items()) all.push_back(model.at("id").as_string());
    return all;
  }

  TemporaryDirectory scratch_;
  std::filesystem::path folder_;
  std::unique_ptr<Application> application_;
};

TEST_F(ModelsTest, AModelOfTheFolderIsLoadedAndUnloadedByRoute) {
  start();
  EXPECT_EQ(names(), (std::vector<std::string>{"first", "second"}));
  EXPECT_EQ(status("second"), "unloaded");
  EXPECT_EQ(complete("second").status, 404);
  const std::string first = text("first");
  const Received loaded = change("/models/load", R"({"model": "second"})");
  EXPECT_EQ(loaded.status, 200) << loaded.body;
  EXPECT_EQ(status("second"), "loaded");
  const std::string second = text("second");
  EXPECT_NE(second, first);
  EXPECT_EQ(text("first"), first);
  EXPECT_EQ(send("GET", "/experts?model=second").status, 200);
  EXPECT_EQ(change("/models/unload", R"({"model": "second"})").status, 200);
  EXPECT_EQ(status("second"), "unloaded");
  const Received gone = complete("second");
  EXPECT_EQ(gone.status, 404);
  EXPECT_THAT(gone.body, HasSubstr("model_not_loaded"));
  EXPECT_EQ(text("first"), first);
  EXPECT_EQ(change("/models/load", R"({"model": "second"})").status, 200);
  EXPECT_EQ(text("second"), second);
  // What an unloaded model did still counts.
  EXPECT_THAT(send("GET", "/metrics").body, HasSubstr("mixtral_generated_tokens_total 60\n"));
}

TEST_F(ModelsTest, TheFirstModelCanBeUnloadedToo) {
  start();
  const std::string first = text("");
  EXPECT_EQ(change("/models/unload", R"({"model": "first"})").status, 200);
  EXPECT_EQ(complete("").status, 404);
  EXPECT_EQ(change("/models/load", R"({"model": "first"})").status, 200);
  EXPECT_EQ(text(""), first);
}

TEST_F(ModelsTest, OnlyTheAdministratorMayAndOnlyEntriesOfTheFolder) {
  start();
  for (const char* route :
       {"/models/load", "/models/unload", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"}) {
    EXPECT_EQ(send("POST", route, R"({"model": "second"})").status, 401) << route;
    EXPECT_EQ(send("POST", route, R"({"model": "second"})", "").status, 401) << route;
  }
  EXPECT_EQ(send("GET", "/v1/models", "", kAdministrator).status, 200);
  for (const char* name : {"../first", "/etc", "..", ".", "", "a/b"})
    EXPECT_EQ(change("/models/load", R"({"model": ")" + std::string(name) + "\"}").status, 400)
        << name;
  EXPECT_EQ(change("/models/load", R"({"model": "nope"})").status, 404);
  EXPECT_EQ(change("/models/unload", R"({"model": "second"})").status, 404);
  EXPECT_EQ(change("/models/load", R"({"model": 5})").status, 400);
  const Received nothing = change("/models/load", R"({"model": "nothing"})");
  EXPECT_EQ(nothing.status, 400);
  EXPECT_THAT(nothing.body, HasSubstr("config.json"));
  EXPECT_EQ(change("/v1/load_lora_adapter", R"({"lora_name": "a b", "lora_path": "tuned"})").status,
            400);
  EXPECT_EQ(change("/v1/load_lora_adapter", R"({"lora_name": "a", "lora_path": "../x"})").status,
            400);
}

TEST_F(ModelsTest, WithoutAnyKeyNothingCanBeChanged) {
  Application::Options all;
  all.http.port = 0;
  all.models.folder = folder_;
  Application application(std::move(all));
  application.open(ModelSource::resolve({.model = (scratch_.path() / "first").string()}),
                   {.device = "cpu", .threads = 1, .dtype = "fp32"}, {});
  Client client(application.http().port());
  client.request("POST", "/models/load", R"({"model": "second"})",
                 "Content-Type: application/json\r\n");
  EXPECT_EQ(client.answer().status, 403);
}

TEST_F(ModelsTest, AnAdapterComesAndGoes) {
  start();
  const std::string base = text("first");
  EXPECT_EQ(complete("first:mine").status, 404);
  const std::string load = R"({"lora_name": "mine", "lora_path": "tuned"})";
  const Received loaded = change("/v1/load_lora_adapter", load);
  EXPECT_EQ(loaded.status, 200) << loaded.body;
  EXPECT_EQ(change("/v1/load_lora_adapter", load).status, 400);
  const std::string tuned = text("first:mine");
  EXPECT_NE(tuned, base);
  EXPECT_EQ(text("first"), base);
  EXPECT_EQ(names(), (std::vector<std::string>{"first", "first:mine", "second"}));
  EXPECT_EQ(change("/v1/unload_lora_adapter", R"({"lora_name": "mine"})").status, 200);
  EXPECT_EQ(change("/v1/unload_lora_adapter", R"({"lora_name": "mine"})").status, 404);
  EXPECT_EQ(complete("first:mine").status, 404);
  EXPECT_EQ(text("first"), base);
  EXPECT_EQ(change("/v1/load_lora_adapter", load).status, 200);
  EXPECT_EQ(text("first:mine"), tuned);
  // It comes back with its base.
  EXPECT_EQ(change("/models/unload", R"({"model": "first"})").status, 200);
  EXPECT_EQ(change("/models/load", R"({"model": "first"})").status, 200);
  EXPECT_EQ(text("first:mine"), tuned);
}

TEST_F(ModelsTest, AnswersUnderWayEndAndThoseThatWaitAreToldWhy) {
  Models::Options models;
  models.service.parallel = 1;
  start(std::move(models));
  ASSERT_EQ(change("/models/load", R"({"model": "second"})").status, 200);
  Client running(application_->http().port());
  running.request("POST", "/v1/completions",
                  R"({"model": "second", "prompt": "a", "max_tokens": 200, "stream": true,
                      "logit_bias": {"257": -100}})",
                  std::string(kKey) + "Content-Type: application/json\r\n");
  ASSERT_TRUE(running.read_until("data: "));
  EXPECT_EQ(change("/models/unload", R"({"model": "second"})").status, 200);
  const Received got = running.answer();
  EXPECT_TRUE(got.complete);
  EXPECT_THAT(got.body, HasSubstr("[DONE]"));
}

TEST_F(ModelsTest, WhatTakesTooLongIsEndedByAnError) {
  Models::Options models;
  models.grace = 0ms;
  start(std::move(models));
  ASSERT_EQ(change("/models/load", R"({"model": "second"})").status, 200);
  Client running(application_->http().port());
  running.request("POST", "/v1/completions",
                  R"({"model": "second", "prompt": "a", "max_tokens": 250, "stream": true,
                      "n": 64, "logit_bias": {"257": -100}})",
                  std::string(kKey) + "Content-Type: application/json\r\n");
  ASSERT_TRUE(running.read_until("data: "));
  EXPECT_EQ(change("/models/unload", R"({"model": "second"})").status, 200);
  EXPECT_THAT(running.answer().body, HasSubstr("was unloaded"));
}

TEST_F(ModelsTest, AnIdleModelIsUnloadedAndComesBackWhenAskedFor) {
  Models::Options models;
  models.idle = 100ms;
  start(std::move(models));
  const std::string first = text("first");
  ASSERT_EQ(change("/models/load", R"({"model": "second", "pin": true})").status, 200);
  for (int i = 0; i < 500 && status("first") != "unloaded"; ++i) std::this_thread::sleep_for(10ms);
  EXPECT_EQ(status("first"), "unloaded");
  EXPECT_EQ(status("second"), "loaded");  // pinned
  std::vector<std::thread> clients;
  std::vector<std::string> got(6);
  for (std::string& each : got) clients.emplace_back([&] { each = text("first"); });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(got, std::vector<std::string>(6, first));
}

TEST_F(ModelsTest, AModelThatDoesNotFitTheBudgetIsRefusedWithItsPlan) {
  Models::Options models;
  models.budget = int64_t{1} << 40;
  start(models);
  const int64_t one = application_->models().list().front().service->bytes();
  EXPECT_GT(one, 0);
  application_.reset();
  models.budget = one + one / 2;
  start(models);
  const Received refused = change("/models/load", R"({"model": "second"})");
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr("needs more memory"));
  EXPECT_THAT(refused.body, HasSubstr("weights"));
  EXPECT_THAT(refused.body, HasSubstr("key-value cache"));
  EXPECT_EQ(status("second"), "unloaded");
  ASSERT_EQ(change("/models/unload", R"({"model": "first"})").status, 200);
  EXPECT_EQ(change("/models/load", R"({"model": "second"})").status, 200);
}

}  // namespace
}  // namespace mixtral::serve
