// What a model's name means, and what its files may look like, from the command line on.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <array>
#include <map>

#include "backends/registry.h"
#include "base/file.h"
#include "io/manifest.h"
#include "io/safetensors_writer.h"
#include "model/checkpoint.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class OpenModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto backend = make_backend("ref");
    Mixtral model(*backend, testing::minimal_config(), {});
    nn::initialise(*backend, model.parameters(), {.seed = 1, .deviation = 0.3});
    fs::create_directory(model_);
    save_model(*backend, model, model_, Dtype::f32);
  }

  static Outcome generate(const std::string& model) {
    return run_command({"generate", "--model", model, "--ids", "1,5", "-n", "3", "--temp", "0",
                        "--ignore-eos", "--device", "cpu", "--json", "-t", "1"});
  }

  /// Changes one text of config.json.
  void change_config(const std::string& before, const std::string& after) const {
    std::string text = read_file(model_ / "config.json");
    ASSERT_NE(text.find(before), std::string::npos) << before;
    write_file(model_ / "config.json", text.replace(text.find(before), before.size(), after));
  }

  const TemporaryDirectory scratch_;
  const fs::path model_ = scratch_.path() / "model";
};

/// How often a file is opened while something runs.
template <class Action>
int count_opens(const fs::path& file, const Action& action) {
  const int watch = ::inotify_init1(IN_NONBLOCK);
  EXPECT_GE(::inotify_add_watch(watch, file.c_str(), IN_OPEN), 0);
  action();
  int count = 0;
  alignas(inotify_event) std::array<char, 4096> events;
  for (ssize_t size; (size = ::read(watch, events.data(), events.size())) > 0;)
    count += static_cast<int>(size / static_cast<ssize_t>(sizeof(inotify_event)));
  ::close(watch);
  return count;
}

TEST_F(OpenModelTest, GenerateOpensConfigJsonOnce) {
  EXPECT_EQ(
      count_opens(model_ / "config.json", [&] { EXPECT_EQ(generate(model_.string()).code, 0); }),
      1);
  // A checkpoint's is checked, too.
  const fs::path run = scratch_.path() / "run", checkpoint = run / "checkpoints" / "step-00000001";
  fs::create_directories(checkpoint.parent_path());
  fs::copy(model_, checkpoint);
  write_file(checkpoint / "state.json", "{}");
  std::vector<float> moments(1);
  write_safetensors(checkpoint / "optimizer.safetensors", {{"m", Tensor(std::span(moments))}});
  Manifest::of_directory(checkpoint).save(checkpoint);
  EXPECT_EQ(
      count_opens(checkpoint / "config.json", [&] { EXPECT_EQ(generate(run.string()).code, 0); }),
      1);
  write_file(checkpoint / "state.json", "[]");
  EXPECT_THAT(generate(run.string()).err, HasSubstr("state.json is damaged"));
}

TEST_F(OpenModelTest, ExpertsThatAreReadWhileTheyAreNeededGiveTheSameTokens) {
  const fs::path adapter = scratch_.path() / "adapter";
  fs::create_directory(adapter);
  write_file(adapter / "adapter_config.json",
             R"({"peft_type":"LORA","r":1,"lora_alpha":1,"target_modules":["w2"]})");
  std::vector<float> a(16, 0.5f), b(16, 0.5f);
  std::map<std::string, Tensor> tensors;
  for (int layer = 0; layer < 2; ++layer)
    for (int expert = 0; expert < 4; ++expert) {
      const std::string name = fmt::format(
          "base_model.model.model.layers.{}.block_sparse_moe.experts.{}.w2.lora_", layer, expert);
      tensors[name + "A.weight"] = Tensor(a.data(), {1, 16}, Dtype::f32);
      tensors[name + "B.weight"] = Tensor(b.data(), {16, 1}, Dtype::f32);
    }
  write_safetensors(adapter / "adapter_model.safetensors", tensors);
  std::vector<std::string> outputs;
  for (const bool adapted : {false, true}) {
    std::vector<std::string> command = {
        "generate", "--model",  model_.string(), "--ids",  "1,5,9,2", "-n", "12",          "--temp",
        "0",        "--device", "cpu",           "--json", "-t",      "2",  "--ignore-eos"};
    if (adapted) command.insert(command.end(), {"--adapter", adapter.string()});
    const Outcome whole = run_command(command);
    ASSERT_EQ(whole.code, 0) << whole.err;
    outputs.push_back(whole.out);
    command.insert(command.end(), {"--expert-memory", "6KB"});
    const Outcome part = run_command(command);
    EXPECT_EQ(part.out, whole.out);
    EXPECT_THAT(part.err, AllOf(HasSubstr("2 of 8 are in memory at once (6.0 KiB of 24.0 KiB)"),
                                HasSubstr("uses found in memory"), HasSubstr("of guesses right")));
  }
  EXPECT_NE(outputs[0], outputs[1]);
}

TEST_F(OpenModelTest, RefusesMemoryForExpertsThatIsOfNoUse) {
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> command = {"generate", "--model", model_.string(), "--ids", "1",
                                        "-n",       "1"};
    if (std::ranges::find(more, "--device") == more.end())
      more.insert(more.end(), {"--device", "cpu"});
    command.insert(command.end(), more.begin(), more.end());
    const Outcome o = run_command(command);
    EXPECT_EQ(o.code, 2) << o.err;
    return o.err;
  };
  EXPECT_THAT(with({"--expert-memory", "5KB"}),
              HasSubstr("--expert-memory: expected at least 6.0 KiB, which one of the 4 experts of "
                        "each layer takes, found 5.0 KiB"));
  EXPECT_THAT(with({"--expert-memory", "6KB", "--device", "ref"}),
              HasSubstr("a CPU reads experts from a model's files"));
  EXPECT_THAT(with({"--expert-memory", "6KB", "--random-weights"}), HasSubstr("--expert-memory"));
}

TEST_F(OpenModelTest, SettingsOfTrainingAloneMatterToTrainingAlone) {
  const std::string plain = generate(model_.string()).out;
  ASSERT_THAT(plain, HasSubstr("ids"));
  write_file(scratch_.path() / "rows.jsonl", R"({"input_ids":[1,2,3]})"
                                             "\n");
  const std::string rows = (scratch_.path() / "rows.jsonl").string();
  for (const char* key : {"attention_dropout", "router_jitter_noise"}) {
    change_config(fmt::format("\"{}\": 0.0", key), fmt::format("\"{}\": 0.25", key));
    EXPECT_EQ(generate(model_.string()).out, plain) << key;
    const Outcome tuned =
        run_command({"finetune", "--model", model_.string(), "--data", rows, "--out",
                     (scratch_.path() / "tuned").string(), "--iters", "1", "-q"});
    EXPECT_EQ(tuned.code, 1);
    EXPECT_THAT(tuned.err, AllOf(HasSubstr(key), HasSubstr("0.25")));
    EXPECT_THAT(
        run_command({"inspect", "gradients", "--model", model_.string(), "--data", rows}).err,
        HasSubstr(key));
    EXPECT_EQ(run_command({"evaluate", "--model", model_.string(), "--data", rows, "-q"}).code, 0);
    change_config(fmt::format("\"{}\": 0.25", key), fmt::format("\"{}\": 0.0", key));
  }
}

TEST_F(OpenModelTest, MergeKeepsWhatStandsBesideTheWeights) {
  write_file(model_ / "tokenizer.json", R"({"version":"1.0","added_tokens":[]})");
  write_file(model_ / "tokenizer_config.json", R"({"chat_template":"x"})");
  write_file(model_ / "generation_config.json",
             R"({"bos_token_id":1,"eos_token_id":[2,7],"temperature":0.7})");
  const fs::path adapter = scratch_.path() / "adapter";
  fs::create_directory(adapter);
  write_file(adapter / "adapter_config.json",
             R"({"peft_type":"LORA","r":1,"lora_alpha":1,"target_modules":["lm_head"]})");
  std::vector<float> a(16, 0.5f), b(32, 0.5f);
  write_safetensors(
      adapter / "adapter_model.safetensors",
      {{"base_model.model.lm_head.lora_A.weight", Tensor(a.data(), {1, 16}, Dtype::f32)},
       {"base_model.model.lm_head.lora_B.weight", Tensor(b.data(), {32, 1}, Dtype::f32)}});
  const fs::path out = scratch_.path() / "merged";
  const Outcome o = run_command({"merge", "--model", model_.string(), "--adapter", adapter.string(),
                                 "--out", out.string(), "--json"});
  ASSERT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.out, HasSubstr("\"tokenizer\":true"));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
    EXPECT_EQ(read_file(out / name), read_file(model_ / name)) << name;
  EXPECT_EQ(ModelConfig::load(out).eos_ids, (std::vector<int64_t>{2, 7}));
}

}  // namespace
}  // namespace mixtral
