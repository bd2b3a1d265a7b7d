#include "cli/tokenizer_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iostream>
#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "io/json.h"
#include "tests/support/files.h"

namespace mixtral {
namespace {

using testing::HasSubstr;

/// What a command wrote to standard output, and the message of its Error or usage error, if any.
struct Outcome {
  std::string out, error;
};

Outcome run(std::vector<std::string> arguments, const std::string& input = "") {
  cli::App app("mixtral");
  add_tokenizer_command(app);
  std::istringstream in(input);
  auto* const real_input = std::cin.rdbuf(in.rdbuf());
  std::cin.clear();
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Outcome outcome;
  std::reverse(arguments.begin(), arguments.end());
  arguments.push_back("tokenizer");
  try {
    app.parse(arguments);
  } catch (const cli::ParseError& error) {
    outcome.error = error.what();
  } catch (const Error& error) {
    outcome.error = error.what();
  }
  std::fflush(stdout);
  outcome.out = testing::internal::GetCapturedStdout();
  testing::internal::GetCapturedStderr();
  std::cin.rdbuf(real_input);
  return outcome;
}

TEST(TokenizerCommand, RowsGoInAndOut) {
  const auto encoded = run({"encode", "--tokenizer", "bytes", "--jsonl"},
                           "{\"text\": \"ab\"}\n{\"text\": \"\"}\n{\"text\": \"\\u0000\\n\"}\n");
  EXPECT_EQ(encoded.error, "");
  EXPECT_EQ(encoded.out, "{\"ids\":[97,98]}\n{\"ids\":[]}\n{\"ids\":[0,10]}\n");
  EXPECT_EQ(run({"decode", "--tokenizer", "bytes", "--jsonl"}, encoded.out).out,
            "{\"text\":\"ab\"}\n{\"text\":\"\"}\n{\"text\":\"\\u0000\\n\"}\n");
  EXPECT_EQ(run({"encode", "-m", "bytes", "--jsonl", "--bos"}, "{\"text\": \"a\"}\n").out,
            "{\"ids\":[256,97]}\n");
}

TEST(TokenizerCommand, PlainTextGoesInAndOutByteForByte) {
  EXPECT_EQ(run({"encode", "-m", "bytes", "--text", "ab"}).out, "97,98\n");
  EXPECT_EQ(run({"encode", "-m", "bytes", "--text", ""}).out, "\n");
  EXPECT_EQ(run({"encode", "-m", "bytes"}, "a\n").out, "97,10\n");
  EXPECT_EQ(run({"decode", "-m", "bytes", "--ids", "97,98,256"}).out, "ab");
  EXPECT_EQ(run({"decode", "-m", "bytes"}, "97 98,\n255\n").out, "ab\xFF");
}

TEST(TokenizerCommand, BytesThatAreNotUtf8ComeInBase64) {
  EXPECT_EQ(run({"decode", "-m", "bytes", "--jsonl"}, "{\"ids\": [97, 255, 98]}\n").out,
            "{\"text\":\"a\xEF\xBF\xBD"
            "b\",\"bytes\":\"Yf9i\"}\n");
  EXPECT_EQ(run({"decode", "-m", "bytes", "--jsonl"}, "{\"ids\": [240]}\n").out,
            "{\"text\":\"\xEF\xBF\xBD\",\"bytes\":\"8A==\"}\n");
}

TEST(TokenizerCommand, BadRowsAreNamed) {
  const auto encode = [](const std::string& rows) {
    return run({"encode", "-m", "bytes", "--jsonl"}, rows).error;
  };
  EXPECT_THAT(encode("{\"text\": \"a\"}\n{\"txt\": 1}\n"), HasSubstr("stdin:2: "));
  EXPECT_THAT(encode("{\"text\": 5}\n"), HasSubstr("stdin:1: text: expected a string"));
  EXPECT_THAT(encode("{\"text\": \"a\"}\n\n"), HasSubstr("stdin:2"));
  EXPECT_THAT(run({"decode", "-m", "bytes", "--jsonl"}, "{\"ids\": [1, 258]}\n").error,
              HasSubstr("stdin:1: ids[1]: the token id 258 is outside"));
  EXPECT_THAT(run({"decode", "-m", "bytes", "--ids", "1,x"}).error,
              HasSubstr("'x' is no token id"));
}

TEST(TokenizerCommand, TrainsThenEncodesAndExplains) {
  const TemporaryDirectory directory;
  std::string rows;
  for (int i = 0; i < 200; ++i) {
    rows +=
        "{\"text\": \"the fox and the owl met by the river number " + std::to_string(i) + "\"}\n";
  }
  write_file(directory.path() / "train.jsonl", rows);
  const std::string out = (directory.path() / "tokenizer").string();
  const auto trained = run({"train", "--data", directory.path().string(), "--vocab-size", "300",
                            "--out", out, "--json"});
  ASSERT_EQ(trained.error, "");
  EXPECT_EQ(Json::parse(trained.out, "stdout").at("vocab_size").as_int(), 300);
  const auto ids = run({"encode", "-m", out, "--text", "the fox"}).out;
  EXPECT_EQ(run({"decode", "-m", out, "--ids", ids}).out, "the fox");

  const Json info = Json::parse(run({"info", "-m", out, "--json"}).out, "stdout");
  EXPECT_EQ(info.at("kind").as_string(), "sentencepiece-bpe");
  EXPECT_EQ(info.at("vocab_size").as_int(), 300);
  EXPECT_EQ(info.at("special").at("eos").at("id").as_int(), 2);
  EXPECT_TRUE(info.at("byte_fallback").as_bool());
  EXPECT_THAT(run({"info", "-m", out}).out, HasSubstr("byte fallback"));

  const std::string file = (directory.path() / "own.model").string();
  EXPECT_EQ(
      run({"train", "--data", directory.path().string(), "--vocab-size", "300", "-o", file}).error,
      "");
  EXPECT_EQ(read_file(file), read_file(directory.path() / "tokenizer" / "tokenizer.model"));
}

TEST(TokenizerCommand, MakesByteTokenizers) {
  const TemporaryDirectory directory;
  const std::string out = (directory.path() / "bytes").string();
  EXPECT_EQ(run({"train", "--kind", "bytes", "--no-specials", "--out", out}).error, "");
  const Json info = Json::parse(run({"info", "-m", out, "--json"}).out, "stdout");
  EXPECT_EQ(info.at("vocab_size").as_int(), 256);
}

TEST(TokenizerCommand, FlagsThatMakeNoSenseAreRefused) {
  EXPECT_THAT(run({"train", "--out", "x"}).error, HasSubstr("--data is missing"));
  EXPECT_THAT(run({"train", "--kind", "bytes", "--data", "x", "--out", "y"}).error,
              HasSubstr("drop --data"));
  EXPECT_THAT(run({"encode", "-m", "bytes", "--jsonl", "--text", "a"}).error,
              HasSubstr("drop --text"));
  EXPECT_THAT(run({"encode", "-m", "bytes-256", "--text", "a", "--bos"}).error,
              HasSubstr("has no BOS"));
  EXPECT_THAT(run({"encode", "-m", "/none", "--text", "a"}).error,
              HasSubstr("/none: no such tokenizer"));
  EXPECT_THAT(run({"encode", "--text", "a"}).error, HasSubstr("--tokenizer"));
}

}  // namespace
}  // namespace mixtral
