// What a user is told when a command line, a file or a machine is not as it should be: each error
// names the flag, file or value, what was expected, and a way out.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "backends/registry.h"
#include "base/file.h"
#include "cli/commands.h"
#include "io/json.h"
#include "io/safetensors_writer.h"
#include "model/adapter_file.h"
#include "model/checkpoint.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using Arguments = std::vector<std::string>;

class BadInput : public ::testing::Test {
 protected:
  void SetUp() override {
    ModelConfig config = testing::minimal_config();
    config.num_layers = 1;
    config.num_experts = 2;
    config.experts_per_token = 1;
    const auto backend = make_backend("cpu", 1);
    Mixtral model(*backend, config, {});
    nn::initialise(*backend, model.parameters(), {.seed = 4, .deviation = 0.1});
    fs::create_directories(path("model"));
    save_model(*backend, model, path("model"), Dtype::f32);
    write_file(path("rows.jsonl"), "{\"input_ids\": [1, 2, 3, 4]}\n");
    write_file(path("text.jsonl"), "{\"text\": \"abc\"}\n");
    write_file(path("bad.jsonl"),
               "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 99]}\n{\"txt\": 1}\n");
    write_file(path("empty.jsonl"), "");
    write_file(path("table.csv"), "a,b\n");
    write_file(path("x.gguf"), "GGUF");
    fs::create_directories(path("folder"));
    fs::create_directories(path("splits"));
    write_file(path("splits") + "/test.jsonl", "{\"input_ids\": [1, 2, 3, 4]}\n");
  }

  std::string path(const std::string& name) const { return (scratch_.path() / name).string(); }

  /// A copy of the model with one file changed.
  std::string model_with(const std::string& file, const std::string& text) const {
    const std::string copy = path("model-with-" + file);
    fs::remove_all(copy);
    fs::copy(path("model"), copy);
    write_file(copy + "/" + file, text);
    return copy;
  }

  struct Case {
    Arguments arguments;
    int code;
    std::vector<std::string> says;
  };
  void expect(const std::vector<Case>& cases) const {
    for (const Case& c : cases) {
      const Outcome o = run_command(c.arguments);
      SCOPED_TRACE(fmt::format("mixtral {}\n{}", fmt::join(c.arguments, " "), o.err));
      EXPECT_EQ(o.code, c.code);
      EXPECT_EQ(o.out, "");
      EXPECT_THAT(o.err, ::testing::StartsWith("mixtral: "));
      EXPECT_THAT(o.err, Not(HasSubstr("defect")));
      for (const auto& words : c.says) EXPECT_THAT(o.err, HasSubstr(words));
    }
  }

  TemporaryDirectory scratch_;
};

TEST_F(BadInput, CommandLines) {
  const std::string model = path("model"), rows = path("rows.jsonl");
  const std::string many = fmt::format("{}", fmt::join(std::vector<int>(33, 1), ","));
  expect({
      {{"pretrian"}, 2, {"no command 'pretrian'", "did you mean pretrain?"}},
      {{"data", "chekc"}, 2, {"mixtral data has no command 'chekc'", "did you mean check?"}},
      {{"data"}, 2, {"mixtral data needs a command: "}},
      {{"generate", "--modle", "x"}, 2, {"takes no '--modle'", "did you mean --model?"}},
      {{"plot", "a", "--asci"}, 2, {"did you mean --ascii?"}},
      {{"generate"}, 2, {"--model is required", "`mixtral generate --help`"}},
      {{"generate", "--model", model, "--ids", "1", "--max-token", "3"},
       2,
       {"takes no '--max-token'", "did you mean --max-tokens?"}},
      {{"generate", "--model", model, "--ids", "1", "-n", "0"},
       2,
       {"--max-tokens is 0, expected 1"}},
      {{"generate", "--model", model, "--ids", "1", "--temp", "-1"},
       2,
       {"--temp: expected 0 to 100, found -1;"}},
      {{"generate", "--model", model, "--ids", "1", "--temp", "hot"},
       2,
       {"--temp: expected a number, found \"hot\""}},
      {{"generate", "--model", model, "--ids", "1", "--temp", "nan"},
       2,
       {"--temp: expected 0 to 100, found nan"}},
      {{"generate", "--model", model, "--ids", "1", "--repeat-penalty", "nan"},
       2,
       {"--repeat-penalty: expected 0.01 to 100, found nan"}},
      {{"evaluate", "--model", model, "--data", rows, "--aux-coef", "nan"}, 2, {"--aux-coef"}},
      {{"info", "--model", model, "--gpu", "nan"}, 2, {"--gpu: expected 1 to"}},
      {{"data", "check", "--data", rows, "--validation-fraction", "nan"},
       2,
       {"--validation-fraction: expected 0 to 0.99, found nan"}},
      {{"generate", "--model", model, "--ids", "1", "--top-p", "2"},
       2,
       {"--top-p: expected 0 to 1, found 2"}},
      {{"generate", "--model", model, "--ids", "1", "--method", "foo"},
       2,
       {"--method is 'foo', expected one of generate,"}},
      {{"generate", "--model", model, "--ids", "1", "--top-k", "-1"},
       2,
       {"--top-k: expected at least 0, found -1;"}},
      {{"generate", "--model", model, "--ids", "1", "--context", "-1"},
       2,
       {"--context: expected 0 to 16777216, found -1;"}},
      {{"chat", "--model", model, "--context", "-1"},
       2,
       {"--context: expected 0 to 16777216, found -1;"}},
      {{"evaluate", "--model", model, "--data", rows, "--context", "-1"},
       2,
       {"--context: expected 0 to 16777216, found -1;"}},
      {{"evaluate", "--model", model, "--data", rows, "--exact-match", "--limit", "-1"},
       2,
       {"--limit: expected at least 0, found -1;"}},
      {{"evaluate", "--model", model, "--data", rows, "--exact-match", "--show", "-1"},
       2,
       {"--show: expected at least 0, found -1;"}},
      {{"evaluate", "--model", model, "--data", rows, "--exact-match", "-n", "0"},
       2,
       {"--max-tokens is 0, expected 1 to"}},
      {{"evaluate", "--model", model, "--data", rows, "--limit", "3"},
       2,
       {"--limit is about the questions of --exact-match"}},
      {{"evaluate", "--model", model, "--data", rows, "--show", "3"}, 2, {"--show is about"}},
      {{"evaluate", "--model", model, "--data", rows, "-n", "3"}, 2, {"--max-tokens is about"}},
      {{"evaluate", "--model", model, "--data", rows, "--response-marker", "A:"},
       2,
       {"--response-marker is about"}},
      {{"evaluate", "--model", model, "--data", rows, "--exact-match", "--batch-size", "3"},
       2,
       {"--exact-match has no use for --batch-size; leave it out"}},
      {{"evaluate", "--model", model, "--data", rows, "--exact-match", "--pack", "off"},
       2,
       {"no use for --pack"}},
      {{"evaluate", "--model", model, "--data", rows, "--exact-match", "--shuffle", "on"},
       2,
       {"no use for --shuffle"}},
      {{"evaluate", "--model", model, "--data", rows, "--exact-match", "--aux-loss", "hf"},
       2,
       {"no use for --aux-loss"}},
      {{"evaluate", "--model", model, "--data", rows, "--exact-match", "--aux-coef", "1"},
       2,
       {"no use for --aux-coef"}},
      {{"evaluate", "--model", model, "--data", rows, "--exact-match", "--z-coef", "1"},
       2,
       {"no use for --z-coef"}},
      {{"inspect", "experts", "--model", model, "--data", rows, "--tokens", "-1"},
       2,
       {"--tokens: expected at least 0, found -1;"}},
      {{"info", "--model", model, "--num-layers", "-1"},
       2,
       {"--num-layers: expected at least 0, found -1;"}},
      {{"data", "stories", "--out", path("data"), "--questions", "-1"},
       2,
       {"--questions: expected at least 0, found -1;"}},
      {{"data", "stories", "--out", path("data"), "--preferences", "-1"},
       2,
       {"--preferences: expected at least 0, found -1;"}},
      {{"data", "check", "--data", rows, "--grad-accumulation", "0"},
       2,
       {"--grad-accumulation: expected 1 to 1048576, found 0;"}},
      {{"data", "check", "--data", rows, "--vocab-size", "0"},
       2,
       {"--vocab-size: expected at least 1, found 0;"}},
      {{"data", "check", "--data", rows, "--sample", "-1"},
       2,
       {"--sample: expected at least 0, found -1;"}},
      {{"data", "check", "--data", rows, "--problems", "-1"},
       2,
       {"--problems: expected at least 0, found -1;"}},
      {{"data", "check", "--data", rows, "--iters", "-3"},
       2,
       {"--iters: expected at least 1, found -3;"}},
      {{"data", "check", "--data", rows, "--tokens-per-second", "-5"},
       2,
       {"--tokens-per-second: expected 0.001 to"}},
      {{"generate", "--model", model, "--ids", "1,x"}, 2, {"--ids: 'x'", "5,7,9"}},
      {{"generate", "--model", model, "--ids", "99"}, 1, {"token id 99", "vocabulary of 32"}},
      {{"generate", "--model", model, "--prompt", "hi"}, 2, {"no tokenizer", "--ids"}},
      {{"generate", "--model", model, "--ids", "1", "--device", "gpu"},
       2,
       {"--device gpu", "auto, cpu, ref"}},
      {{"generate", "--model", "tinny", "--ids", "1"}, 1, {"--model tinny", "did you mean tiny?"}},
      {{"generate", "--model", path("table.csv"), "--ids", "1"}, 1, {"is a file", "config.json"}},
      {{"generate", "--model", path("x.gguf"), "--ids", "1"}, 1, {"x.gguf", "cut short"}},
      {{"generate", "--model", path("folder"), "--ids", "1"}, 1, {"folder", "config.json"}},
      {{"generate", "--model", model, "--ids", "1", "--method", "generate_raw", "--out",
        path("nowhere/logits")},
       1,
       {"nowhere/logits", "No such file"}},
      {{"generate", "--model", model, "--ids", "1", "--chat"}, 2, {"--ids", "--chat"}},
      {{"generate", "--model", model, "--ids", "1", "--system", "Hi"}, 2, {"--ids", "--system"}},
      {{"generate", "--model", model, "--ids", "1", "--out", path("x")},
       2,
       {"--method generate has no use for --out"}},
      {{"generate", "--model", model, "--ids", "1", "--method", "generate_raw", "--temp", "1"},
       2,
       {"no use for --temp"}},
      {{"generate", "--model", model, "--ids", "1", "--method", "generate_one_token", "-n", "2"},
       2,
       {"no use for --max-tokens"}},
      {{"generate", "--model", model, "--ids", "1", "--method", "generate_after_training"},
       2,
       {"no use for --ids"}},
      {{"generate", "--model", model, "--method", "generate_after_training", "--top-k", "3"},
       2,
       {"no use for --top-k"}},
      {{"merge", "--model", model, "--adapter", "a", "--out", path("x"), "--dtype", "fp32"},
       2,
       {"takes no '--dtype'"}},
      {{"merge", "--model", model, "--adapter", "a", "--out", path("x"), "--seed", "3"},
       2,
       {"takes no '--seed'"}},
      {{"chat", "--model", model, "--json"}, 2, {"mixtral chat takes no '--json'"}},
      {{"info", "--model", model, "--seed", "3"}, 2, {"mixtral info takes no '--seed'"}},
      {{"info", "--model", model, "--rope-frequencies", "bf16"},
       2,
       {"mixtral info takes no '--rope-frequencies'"}},
      {{"generate", "--model", model, "--ids", "1", "--context", "2000000000"},
       2,
       {"--context", "found 2000000000"}},
      {{"evaluate", "--model", model, "--data", rows, "--context", "33"},
       2,
       {"--context 33", "32 positions"}},
      {{"inspect", "route", "--model", model, "--ids", many}, 2, {"33 tokens", "32 positions"}},
      {{"evaluate", "--model", model}, 2, {"--data is missing"}},
      {{"evaluate", "--model", model, "--data", rows, "--batch-size", "0"},
       2,
       {"--batch-size is 0, expected 1 to"}},
      {{"inspect", "gradients", "--model", model, "--data", rows, "--quantize-base", "fp8"},
       2,
       {"--quantize-base fp8", "--adapter"}},
      {{"generate", "--model", model, "--ids", "1", "--quantize-base", "int8"},
       2,
       {"--quantize-base is 'int8'", "off,fp8,nf4"}},
      {{"finetune", "--model", "tiny", "--data", rows, "--out", path("run")},
       1,
       {"--model tiny", "no weights", "mixtral pretrain"}},
      {{"merge", "--model", model, "--adapter", path("nowhere"), "--out", path("merged")},
       1,
       {"--adapter", "nowhere"}},
      {{"plot", path("folder")}, 1, {"folder", "metrics.jsonl"}},
      {{"chat", "--model", model}, 2, {"no tokenizer", "--tokenizer"}},
      {{"info", "--model", path("nowhere")}, 1, {"--model", "nowhere"}},
      {{"info", "--model", model, "--gpu", "80", "--device", "cpu"}, 2, {"--device", "--gpu"}},
      {{"info", "--model", model, "--gpu", "0"}, 2, {"--gpu: expected 1 to 1000000, found 0"}},
      {{"tokenizer", "encode", "--tokenizer", path("nowhere")}, 1, {"nowhere", "SentencePiece"}},
      {{"data", "import", path("nowhere"), "--out", path("data")}, 1, {"nowhere"}},
  });
}

void expect_examples(const cli::App& command, const std::string& path) {
  EXPECT_THAT(command.get_footer(), HasSubstr(path + " "));
  for (const cli::App* inner : command.get_subcommands([](const cli::App*) { return true; }))
    expect_examples(*inner, path + " " + inner->get_name());
}

TEST(Help, EveryCommandHasExamplesOfItsOwn) {
  cli::App app("about", "mixtral");
  app.footer("mixtral ");  // what those without would inherit
  add_commands(app);
  expect_examples(app, "mixtral");
}

TEST_F(BadInput, Data) {
  const auto evaluate = [&](const std::string& name) {
    return Arguments{"evaluate", "--model", path("model"), "--data", path(name)};
  };
  expect({
      {evaluate("nowhere"), 1, {"nowhere"}},
      {evaluate("folder"), 1, {"folder", "train.jsonl"}},
      {evaluate("table.csv"), 1, {"table.csv", ".jsonl", ".txt"}},
      {evaluate("empty.jsonl"), 1, {"empty.jsonl: there are no records", "{\"text\": \"...\"}"}},
      {evaluate("splits"), 1, {"splits", "no val.jsonl or val.txt", "only test"}},
      {evaluate("text.jsonl"), 2, {"text.jsonl:1", "--tokenizer"}},
      {evaluate("bad.jsonl"),
       1,
       {"bad.jsonl:2: ", "outside the vocabulary", "bad.jsonl:3: ", "data check", "--fix"}},
      {{"inspect", "gradients", "--model", path("model"), "--data", path("rows.jsonl"), "--method",
        "dpo", "--out", path("g")},
       1,
       {"rows.jsonl", "preference pairs"}},
      {{"pretrain", "--model", "tiny", "--data", path("splits"), "--out", path("run")},
       1,
       {"splits", "no train.jsonl or train.txt", "only test"}},
  });
  EXPECT_FALSE(fs::exists(path("run")));
}

TEST_F(BadInput, ModelFiles) {
  const std::string weights = read_file(path("model") + "/model.safetensors");
  const std::string config = read_file(path("model") + "/config.json");
  const auto generate = [](const std::string& model) {
    return Arguments{"generate", "--model", model, "--ids", "1", "-n", "1"};
  };
  std::string more_layers = config;
  more_layers.replace(more_layers.find("\"num_hidden_layers\": 1"), 22, "\"num_hidden_layers\": 2");
  const std::pair<std::string, std::vector<std::string>> configs[] = {
      {"{", {"config.json", "JSON"}},
      {"{\"model_type\": \"llama\"}", {"config.json: model_type", "mixtral", "llama"}},
      {more_layers, {"model.layers.1.", "is missing"}},
  };
  for (const auto& [text, says] : configs)
    expect({{generate(model_with("config.json", text)), 1, says}});
  const std::pair<std::string, std::vector<std::string>> files[] = {
      {"", {"model.safetensors", "too few"}},
      {weights.substr(0, weights.size() - 7), {"model.safetensors", "cut short"}},
      {weights + "x", {"model.safetensors", "1 bytes follow"}},
  };
  for (const auto& [text, says] : files)
    expect({{generate(model_with("model.safetensors", text)), 1, says}});
  expect({{{"generate", "--model", path("model"), "--prompt", "a", "--tokenizer",
            model_with("tokenizer.model", "not a model")},
           1,
           {"tokenizer.model", "damaged or not a SentencePiece model"}}});
}

// ---- Memory

TEST_F(BadInput, ModelsThatDoNotFitAreRefusedWithATable) {
  ModelConfig config = builtin_config("8x7b");
  config.num_layers = 1024;  // 2.7 TB in 16 bits, more than any device has, or 0.7 in 4
  fs::create_directories(path("big"));
  config.save(path("big"));  // and no weights: they are not looked for
  for (const Arguments& arguments :
       {Arguments{"generate", "--model", path("big"), "--ids", "1"},
        Arguments{"evaluate", "--model", path("big"), "--data", path("rows.jsonl")},
        Arguments{"pretrain", "--model", path("big"), "--data", path("rows.jsonl"), "--out",
                  path("run"), "-q"}})
    expect({{arguments, 1, {"more memory than is free", "weights", "total", "smaller model"}}});
}

TEST_F(BadInput, AMergeThatCannotBeComparedIsRefusedBeforeAnyWork) {
  ModelConfig config = builtin_config("8x7b");
  config.num_layers = 1024;  // 6 TB in 32 bits, for which no machine has room
  fs::create_directories(path("big"));
  config.save(path("big"));  // and no weights: they are not looked for
  fs::create_directories(path("adapter"));
  const AdapterFile adapter =
      new_adapter({.targets = {"q_proj"}, .rank = 1, .last_layers = 1}, config);
  const PeftLayout layout(adapter, config);
  std::vector<float> values(static_cast<size_t>(config.hidden_size));
  std::map<std::string, Tensor> tensors;
  for (const AdapterModule& module : adapter.modules)
    for (const char matrix : {'A', 'B'}) {
      const int64_t size = config.hidden_size;
      tensors.emplace(
          layout.name(module, matrix, 0),
          Tensor(values.data(), matrix == 'A' ? Shape{1, size} : Shape{size, 1}, Dtype::f32));
    }
  write_safetensors(path("adapter") + "/adapter_model.safetensors", tensors);
  write_file(path("adapter") + "/adapter_config.json", layout.config());
  const Arguments merge = {"merge", "--model", path("big"), "--adapter", path("adapter"),
                           "--out", path("m"), "--device",  "ref"};
  expect({{merge, 1, {"more memory than is free", "--no-check", "weights"}}});
  EXPECT_FALSE(fs::exists(path("m")));
}

/// Runs the command in a child; how much memory it had at most, in bytes.
int64_t measured_peak(const Arguments& arguments) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (!std::freopen("/dev/null", "w", stdout)) ::_exit(99);
    ::_exit(run_command_here(arguments));
  }
  int status = 0;
  rusage usage{};
  ::wait4(child, &status, 0, &usage);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  return int64_t{usage.ru_maxrss} * 1024;
}

TEST_F(BadInput, TheMemoryThatInfoPlansIsWithinATenthOfWhatTrainingTakes) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer takes memory of its own";
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
  GTEST_SKIP() << "the sanitizer takes memory of its own";
#endif
#endif
  std::string row;
  for (int i = 0; i < 256; ++i) row += (i ? "," : "{\"input_ids\": [") + std::to_string(i % 64);
  std::string rows;
  for (int i = 0; i < 16; ++i) rows += row + "]}\n";
  write_file(path("long.jsonl"), rows);
  const Arguments shape = {"--hidden-size", "256", "--intermediate-size", "512", "--layers", "8"};
  Arguments train = {"pretrain",
                     "--model",
                     "tiny",
                     "--data",
                     path("long.jsonl"),
                     "--out",
                     path("run"),
                     "--iters",
                     "2",
                     "--batch-size",
                     "4",
                     "--context",
                     "256",
                     "--pack",
                     "off",
                     "--save-every",
                     "1",
                     "--threads",
                     "1",
                     "--device",
                     "cpu",
                     "--sample-tokens",
                     "0",
                     "-q"};
  train.insert(train.end(), shape.begin(), shape.end());
  const auto peak = static_cast<double>(measured_peak(train));
  const auto checkpoint = (fs::path(path("run")) / "checkpoints" / "latest").string();
  const Outcome info = run_command({"info", "--model", checkpoint, "--batch-size", "4", "--context",
                                    "256", "--device", "cpu", "--dtype", "fp32", "--json"});
  ASSERT_EQ(info.code, 0) << info.err;
  const Json json = Json::parse(info.out, "info");
  const double planned = json.at("training").at("total").as_double();
  // The program itself, its libraries and this test, before any model.
  const auto program = static_cast<double>(measured_peak({"--version"}));
  EXPECT_GT(planned, 200e6) << "too small to tell";
  EXPECT_NEAR(planned + program, peak, 0.1 * peak)
      << "planned " << planned / 1e6 << " MB, the program " << program / 1e6 << " MB";
}

}  // namespace
}  // namespace mixtral
