// --speculate and --draft-model on the command line: the same text, what came of the guesses at the
// end, and draft models that do not fit refused by name.
#include <gmock/gmock.h>

#include "backends/registry.h"
#include "base/file.h"
#include "model/checkpoint.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/models.h"
#include "text/byte_tokenizer.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class SpeculationCommand : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    scratch_ = std::make_unique<TemporaryDirectory>();
    ModelConfig config = testing::minimal_config();
    config.vocab_size = 258;
    config.max_positions = 400;
    config.bos_id = 256;
    config.eos_ids = {257};
    save("model", config, 3);
    config.num_layers = 1;
    save("draft", config, 4);
    config.max_positions = 64;
    save("short", config, 4);
    config.vocab_size = 300;
    save("larger", config, 4);
  }
  static void save(const std::string& name, const ModelConfig& config, uint64_t seed) {
    const auto backend = make_backend("cpu", 1);
    Mixtral model(*backend, config, {});
    nn::initialise(*backend, model.parameters(),
                   {.seed = seed, .deviation = 0.3, .embedding_deviation = 0.3});
    fs::create_directories(path(name));
    save_model(*backend, model, path(name), Dtype::f32);
    ByteTokenizer().save(path(name));
  }
  static void TearDownTestSuite() { scratch_.reset(); }
  static std::string path(const std::string& name) { return (scratch_->path() / name).string(); }

  static Outcome generate(const std::vector<std::string>& more) {
    std::vector<std::string> arguments{"generate", "--model", path("model"), "--device",
                                       "cpu",      "--dtype", "fp32",        "--ignore-eos"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_command(arguments);
  }

  static std::unique_ptr<TemporaryDirectory> scratch_;
};
std::unique_ptr<TemporaryDirectory> SpeculationCommand::scratch_;

TEST_F(SpeculationCommand, TheTextIsTheSameAndWhatCameOfItIsSaid) {
  for (const char* temperature : {"0", "0.7"}) {
    // A penalty below 1 makes it repeat itself.
    const std::vector<std::string> arguments{"--prompt",
                                             "the cat and the cat and the ",
                                             "-n",
                                             "300",
                                             "--temp",
                                             temperature,
                                             "--repeat-penalty",
                                             "0.2",
                                             "--logprobs"};
    const Outcome plain = generate(arguments);
    ASSERT_EQ(plain.code, 0) << plain.err;
    EXPECT_THAT(plain.err, Not(HasSubstr("speculation")));
    for (const std::vector<std::string>& how :
         {std::vector<std::string>{"--speculate", "6"},
          {"--num-speculative-tokens", "1"},
          {"--draft-model", path("draft")},
          {"--draft-model", path("model"), "--speculate", "3"}}) {
      std::vector<std::string> all = arguments;
      all.insert(all.end(), how.begin(), how.end());
      const Outcome outcome = generate(all);
      EXPECT_EQ(outcome.code, 0) << outcome.err;
      EXPECT_EQ(outcome.out, plain.out);
      EXPECT_THAT(outcome.err, AllOf(HasSubstr("speculation: "), HasSubstr("accepted")));
    }
  }
}

TEST_F(SpeculationCommand, RowsOfAFileGetTheSameResults) {
  std::string rows;
  for (const char* text : {"abab", "one two one two one ", "xyz xyz xyz"})
    for (const char* settings : {R"("temp": 0)", R"("temp": 0.5, "repeat_penalty": 0.3)"})
      rows += std::string(R"({"prompt": ")") + text + R"(", "max_tokens": 90, )" + settings + "}\n";
  write_file(path("rows.jsonl"), rows);
  const Outcome plain = generate({"--data", path("rows.jsonl")});
  ASSERT_EQ(plain.code, 0) << plain.err;
  for (const char* parallel : {"1", "4"}) {
    const Outcome outcome = generate({"--data", path("rows.jsonl"), "--parallel", parallel,
                                      "--speculate", "5", "--draft-model", path("draft")});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.out, plain.out) << parallel;
  }
}

TEST_F(SpeculationCommand, AConversationIsTheSame) {
  const std::string input = "ab ab ab ab\nab ab ab\n/exit\n";
  const std::vector<std::string> arguments{"chat",     "--model", path("model"),
                                           "--device", "cpu",     "--dtype",
                                           "fp32",     "-n",      "60",
                                           "--temp",   "0",       "--chat-template",
                                           "seed",     "-q",      "--repeat-penalty",
                                           "0.2"};
  const Outcome plain = run_command(arguments, input);
  ASSERT_EQ(plain.code, 0) << plain.err;
  std::vector<std::string> speculating = arguments;
  speculating.insert(speculating.end(), {"--speculate", "4"});
  EXPECT_EQ(run_command(speculating, input).out, plain.out);
}

TEST_F(SpeculationCommand, DraftModelsThatDoNotFitAreRefusedByName) {
  const auto refusal = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments{"--prompt", "a", "-n", "100"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = generate(arguments);
    EXPECT_NE(outcome.code, 0);
    EXPECT_EQ(outcome.out, "");
    return outcome.err;
  };
  EXPECT_THAT(refusal({"--draft-model", path("larger")}),
              AllOf(HasSubstr("--draft-model"), HasSubstr(path("larger")), HasSubstr("300"),
                    HasSubstr("258")));
  EXPECT_THAT(refusal({"--draft-model", path("short")}),
              AllOf(HasSubstr(path("short")), HasSubstr("64 positions")));
  EXPECT_THAT(refusal({"--draft-model", path("nothing")}),
              AllOf(HasSubstr("--draft-model"), HasSubstr("nothing")));
  EXPECT_THAT(refusal({"--draft-model", path("draft"), "--speculate", "0"}),
              HasSubstr("--speculate 0"));
  EXPECT_THAT(refusal({"--speculate", "65"}), HasSubstr("--speculate"));
  EXPECT_THAT(generate({"--prompt", "a", "--speculate", "4", "--method", "generate_raw"}).err,
              HasSubstr("has no use for --speculate"));
}

}  // namespace
}  // namespace mixtral
