// What the cache keeps of earlier prompts, saved to a file and restored by route.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>

#include "base/file.h"
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

class SlotsTest : public ::testing::Test {
 protected:
  SlotsTest() : states_(scratch_.path() / "states") {
    std::filesystem::create_directories(states_);
    testing::save_small_model(scratch_.path() / "one", 5);
    testing::save_small_model(scratch_.path() / "two", 6);
  }
  void start(const std::string& model, const std::string& dtype = "fp32", int64_t context = 256,
             std::optional<ops::CacheType> cache = {}) {
    application_.reset();
    Application::Options all;
    all.http.port = 0;
    all.access.keys = {"key"};
    all.models.service.context = context;
    all.models.states = states_;
    application_ = std::make_unique<Application>(std::move(all));
    const ModelSource source = ModelSource::resolve({.model = (scratch_.path() / model).string()});
    application_->open(source, {.device = "cpu", .threads = 1, .dtype = dtype, .cache = cache}, {});
  }
  Received post(const std::string& path, const std::string& body) {
    Client client(application_->http().port());
    client.request("POST", path, body,
                   "Authorization: Bearer key\r\nContent-Type: application/json\r\n");
    return client.answer();
  }
  Received act(const std::string& action, const std::string& file) {
    return post("/slots/0?action=" + action, R"({"filename": ")" + file + "\"}");
  }
  struct Answer {
    std::string text;
    int64_t cached = 0;
  };
  Answer ask(const std::string& prompt) {
    const Received got = post(
        "/v1/completions", R"({"temperature": 0, "max_tokens": 10, "prompt": ")" + prompt + "\"}");
    EXPECT_EQ(got.status, 200) << got.body;
    const Json json = Json::parse(got.body, "answer");
    return {.text = json.at("choices").items()[0].at("text").as_string(),
            .cached = json.at("usage").at("prompt_tokens_details").at("cached_tokens").as_int()};
  }
  int64_t number(const Received& got, const std::string& key) {
    EXPECT_EQ(got.status, 200) << got.body;
    return Json::parse(got.body, "answer").at(key).as_int();
  }

  const std::string long_ = std::string(70, 'a') + "and then something else happened",
                    other_ = std::string(70, 'a') + "but nothing at all came of it";
  TemporaryDirectory scratch_;
  std::filesystem::path states_;
  std::unique_ptr<Application> application_;
};

TEST_F(SlotsTest, ANewServerGoesOnWhereTheOldOneWas) {
  start("one");
  const Answer first = ask(long_), second = ask(other_);
  EXPECT_EQ(first.cached, 0);
  const Received saved = act("save", "state.bin");
  const int64_t tokens = number(saved, "n_saved");
  EXPECT_GE(tokens, 6 * 16 + 2 * 16);
  EXPECT_EQ(number(saved, "n_written"),
            static_cast<int64_t>(std::filesystem::file_size(states_ / "state.bin")));
  start("one");
  EXPECT_EQ(number(act("restore", "state.bin"), "n_restored"), tokens);
  const Answer again = ask(long_);
  EXPECT_EQ(again.text, first.text);
  EXPECT_GE(again.cached, 6 * 16);
  EXPECT_EQ(ask(other_).text, second.text);
  // A second time nothing changes; erased, it is gone.
  EXPECT_EQ(number(act("restore", "state.bin"), "n_restored"), tokens);
  EXPECT_GE(number(post("/slots/0?action=erase", "{}"), "n_erased"), tokens);
  EXPECT_EQ(ask(long_).cached, 0);
}

TEST_F(SlotsTest, AnswersGoOnWhileStatesAreSavedAndRestored) {
  start("one");
  const Answer want = ask(long_);
  std::atomic<bool> stop = false;
  std::thread client([&] {
    while (!stop) EXPECT_EQ(ask(long_).text, want.text);
  });
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(act("save", "state.bin").status, 200);
    EXPECT_EQ(post("/slots/0?action=erase", "").status, 200);
    EXPECT_EQ(act("restore", "state.bin").status, 200);
  }
  stop = true;
  client.join();
}

TEST_F(SlotsTest, AFileOfAnotherModelTypeOrVersionIsRefusedByName) {
  start("one");
  (void)ask(long_);
  ASSERT_EQ(act("save", "state.bin").status, 200);
  start("two");
  const Received other = act("restore", "state.bin");
  EXPECT_EQ(other.status, 400);
  EXPECT_THAT(other.body, HasSubstr("state.bin"));
  EXPECT_THAT(other.body, HasSubstr("another model"));
  start("one", "bf16");
  EXPECT_EQ(act("restore", "state.bin").status, 400);
  start("one", "fp32", 64);
  EXPECT_THAT(act("restore", "state.bin").body, HasSubstr("longer than this server's context"));
  start("one");
  std::string bytes = read_file(states_ / "state.bin");
  const size_t version = bytes.find(R"("version":"2")");
  ASSERT_NE(version, std::string::npos);
  bytes[version + 11] = '7';
  write_file(states_ / "newer.bin", bytes);
  EXPECT_THAT(act("restore", "newer.bin").body, HasSubstr("version 7"));
}

TEST_F(SlotsTest, AFileOfKeysAndValuesInAnotherTypeIsRefusedByName) {
  start("one", "fp32", 256, ops::CacheType::fp8);
  const Answer want = ask(long_);
  ASSERT_EQ(act("save", "state.bin").status, 200);
  start("one", "fp32", 256, ops::CacheType::int8);  // of the same size
  const Received other = act("restore", "state.bin");
  EXPECT_EQ(other.status, 400);
  EXPECT_THAT(other.body, HasSubstr("in fp8, and this server's in int8"));
  start("one", "fp32", 256, ops::CacheType::fp8);
  EXPECT_EQ(act("restore", "state.bin").status, 200);
  EXPECT_EQ(ask(long_).text, want.text);
}

TEST_F(SlotsTest, ADamagedFileIsRefused) {
  start("one");
  const Answer want = ask(long_);
  ASSERT_EQ(act("save", "state.bin").status, 200);
  ASSERT_EQ(post("/slots/0?action=erase", "").status, 200);
  const std::string bytes = read_file(states_ / "state.bin");
  for (const size_t at : {bytes.size() / 2, bytes.size() - 1, size_t{3}, size_t{40}}) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x55);
    write_file(states_ / "damaged.bin", damaged);
    EXPECT_EQ(act("restore", "damaged.bin").status, 400) << at;
  }
  for (const size_t size : {size_t{0}, size_t{7}, bytes.size() / 2, bytes.size() - 1}) {
    write_file(states_ / "short.bin", bytes.substr(0, size));
    EXPECT_EQ(act("restore", "short.bin").status, 400) << size;
  }
  EXPECT_EQ(ask(long_).text, want.text);
}

TEST_F(SlotsTest, OnlyFilesOfTheFolderAndWithAKey) {
  start("one");
  (void)ask(long_);
  for (const char* name : {"", "../state.bin", "/tmp/x", ".hidden", "a/b", "a b", "x\\u0000"})
    EXPECT_EQ(act("save", name).status, 400) << name;
  EXPECT_TRUE(std::filesystem::is_empty(states_));
  EXPECT_EQ(act("restore", "absent.bin").status, 404);
  EXPECT_EQ(act("copy", "state.bin").status, 400);
  EXPECT_EQ(post("/slots/1?action=save", R"({"filename": "a"})").status, 404);
  EXPECT_EQ(post("/slots/0", R"({"filename": "a"})").status, 400);
  Client client(application_->http().port());
  client.request("POST", "/slots/0?action=save", R"({"filename": "a"})");
  EXPECT_EQ(client.answer().status, 401);
  states_.clear();
  start("one");
  EXPECT_EQ(act("save", "state.bin").status, 403);
}

}  // namespace
}  // namespace mixtral::serve
