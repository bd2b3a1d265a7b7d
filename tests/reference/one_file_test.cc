// Runs reference/one_file.cc against Hugging Face's numbers and against the engine, through the two
// programs' command lines. The engine is $MIXTRAL_ENGINE, or build/release/mixtral.

#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;
using Json = nlohmann::json;
using Strings = std::vector<std::string>;

constexpr double kLogits = 2e-4;  // of the largest logit
constexpr double kLosses = 1e-3;

const fs::path kFixtures = fs::path(MIXTRAL_SOURCE_DIR) / ".." / "shared" / "fixtures";

struct Result {
  int status = -1;
  std::string out;
};

// Runs a program; its error output is part of the result where `errors` says so.
Result run(const std::string& program, const Strings& arguments, bool errors = false) {
  std::string command = "'" + program + "'";
  for (const std::string& argument : arguments) command += " '" + argument + "'";
  command += errors ? " 2>&1" : " 2>/dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  Result result;
  char buffer[4096];
  while (const size_t count = fread(buffer, 1, sizeof buffer, pipe))
    result.out.append(buffer, count);
  const int status = pclose(pipe);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  return result;
}

Result one_file(const Strings& arguments) { return run(ONE_FILE, arguments); }

std::string engine() {
  const char* named = std::getenv("MIXTRAL_ENGINE");
  const fs::path path = named ? named : fs::path(MIXTRAL_SOURCE_DIR) / "build/release/mixtral";
  return fs::exists(path) ? path.string() : "";
}

fs::path scratch_root() {
  return fs::path(testing::TempDir()) / ("one_file_test_" + std::to_string(getpid()));
}

// An empty folder for a test's files; all of them go when the tests end.
fs::path scratch(const std::string& name) {
  const fs::path path = scratch_root() / name;
  fs::remove_all(path);
  fs::create_directories(path);
  return path;
}

// The largest differences that were found, told when the tests end.
struct Worst {
  double logits = 0, losses = 0;  // logits: of the largest one
} worst;

class Cleanup : public testing::Environment {
  void TearDown() override {
    std::printf("largest differences: logits %.1e of the largest, losses %.1e\n", worst.logits,
                worst.losses);
    fs::remove_all(scratch_root());
  }
};
[[maybe_unused]] const auto* const kCleanup = testing::AddGlobalTestEnvironment(new Cleanup);

std::map<std::string, mx::array> tensors(const fs::path& file) {
  std::map<std::string, mx::array> all;
  for (const auto& [name, tensor] : mx::load_safetensors(file.string()).first)
    all.insert_or_assign(name, tensor);
  return all;
}

double largest(const mx::array& a) { return mx::max(mx::abs(a)).item<float>(); }

std::vector<Json> read_lines(const fs::path& path) {
  std::ifstream file(path);
  std::vector<Json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  return lines;
}

std::string joined(const std::vector<int>& ids) {
  std::string text;
  for (const int id : ids) text += (text.empty() ? "" : ",") + std::to_string(id);
  return text;
}

// A model, perhaps with an adapter, and rows of tokens for it.
struct Case {
  fs::path model, adapter, data;

  Strings model_flags() const {
    Strings flags = {"--model", model.string()};
    if (!adapter.empty()) flags.insert(flags.end(), {"--adapter", adapter.string()});
    return flags;
  }
};

Case fixture(const std::string& name) {
  const fs::path folder = kFixtures / name;
  if (!name.starts_with("lora-")) return {folder, {}, folder / "data.jsonl"};
  return {folder / "base", folder / "adapter", folder / "data.jsonl"};
}

mx::array logits(const std::string& program, const Case& c, const std::vector<int>& ids) {
  const fs::path out = scratch("logits") / "logits.safetensors";
  Strings flags = c.model_flags();
  flags.insert(flags.begin(), "generate");
  flags.insert(flags.end(), {"--method", "generate_raw", "--ids", joined(ids), "--out", out});
  const Result result = run(program, flags, true);
  EXPECT_EQ(result.status, 0) << result.out;
  mx::array read = tensors(out).at("logits");
  mx::eval(read);
  return read;
}

void expect_logits(const mx::array& found, const mx::array& expected) {
  ASSERT_EQ(found.shape(), expected.shape());
  const double difference = largest(found - expected) / largest(expected);
  EXPECT_LE(difference, kLogits);
  worst.logits = std::max(worst.logits, difference);
}

// Ten steps of AdamW; both programs know these flags. Returns the losses.
Strings training_flags(const Case& c, const Json& adamw, size_t rows) {
  auto text = [](const Json& value) { return value.is_null() ? std::string("0") : value.dump(); };
  Strings flags = {"--data", c.data, "--iters", "10", "--batch-size", std::to_string(rows)};
  if (c.adapter.empty())
    flags.insert(flags.begin(), {"pretrain", "--init", c.model});
  else
    flags.insert(flags.begin(), {"finetune", "--model", c.model, "--adapter", c.adapter});
  flags.insert(flags.end(), {"--shuffle", "off", "--schedule", "constant", "--warmup", "0"});
  flags.insert(flags.end(), {"--lr", text(adamw["lr"]), "--adam-eps", text(adamw["eps"])});
  flags.insert(flags.end(),
               {"--beta1", text(adamw["betas"][0]), "--beta2", text(adamw["betas"][1])});
  flags.insert(flags.end(), {"--weight-decay", text(adamw["weight_decay"])});
  flags.insert(flags.end(), {"--grad-clip", text(adamw["clip_norm"]), "--aux-coef", "0.02"});
  flags.insert(flags.end(), {"--aux-loss", adamw.value("aux_loss", "hf"), "--log-every", "1"});
  return flags;
}

std::vector<double> losses(const std::string& program, Strings flags, const fs::path& out) {
  const bool ours = program == ONE_FILE;
  flags.insert(flags.end(), {"--out", out});
  if (ours) flags.insert(flags.end(), {"--rows", "records"});
  if (!ours) flags.insert(flags.end(), {"--pack", "off", "--dtype", "fp32"});
  const Result result = run(program, flags, true);
  EXPECT_EQ(result.status, 0) << result.out;
  std::vector<double> all;
  for (const Json& line : read_lines(out / "metrics.jsonl"))
    all.push_back(line.at(ours ? "train_loss" : "loss"));
  return all;
}

void expect_losses(const std::vector<double>& found, const std::vector<double>& expected) {
  ASSERT_EQ(found.size(), 10u);
  ASSERT_EQ(expected.size(), 10u);
  for (size_t i = 0; i < 10; ++i) {
    EXPECT_NEAR(found[i], expected[i], kLosses) << "step " << i + 1;
    worst.losses = std::max(worst.losses, std::abs(found[i] - expected[i]));
  }
}

const Json kAdamw = {{"lr", 1e-3},          {"betas", {0.9, 0.95}}, {"eps", 1e-8},
                     {"weight_decay", 0.1}, {"clip_norm", 1.0},     {"aux_loss", "per-layer"}};

// ------------------------------------------------------------------- against Hugging Face's
// numbers

class HuggingFace : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!fs::exists(kFixtures)) GTEST_SKIP() << kFixtures << " is absent";
    c_ = fixture(GetParam());
    rows_ = read_lines(c_.data);
    expected_ = tensors(kFixtures / GetParam() / "expected.safetensors");
    report_ = Json::parse(std::ifstream(kFixtures / GetParam() / "expected.json"));
  }
  Case c_;
  std::vector<Json> rows_;
  std::map<std::string, mx::array> expected_;
  Json report_;
};

TEST_P(HuggingFace, LogitsAgree) {
  for (size_t i = 0; i < rows_.size(); ++i)
    expect_logits(logits(ONE_FILE, c_, rows_[i].at("input_ids")),
                  mx::take(expected_.at("logits"), static_cast<int>(i), 0));
}

TEST_P(HuggingFace, GreedyTokensAgree) {
  if (!expected_.contains("greedy")) return;  // the adapters' cases have none
  mx::array greedy = mx::contiguous(mx::flatten(expected_.at("greedy")));
  mx::eval(greedy);
  const std::vector<int> ids(greedy.data<int>(), greedy.data<int>() + greedy.size());
  const std::vector<int> prompt(ids.begin(), ids.begin() + 8);
  const Result result = one_file({"generate", "--model", c_.model, "--ids", joined(prompt),
                                  "--temp", "0", "--max-tokens", std::to_string(ids.size() - 8)});
  EXPECT_EQ(result.out, joined(ids) + "\n");
}

TEST_P(HuggingFace, TenLossesAndTheWeightsAfterThemAgree) {
  const fs::path out = scratch("hugging_face_" + GetParam());
  const Json& adamw = report_.at("adamw");
  expect_losses(losses(ONE_FILE, training_flags(c_, adamw, rows_.size()), out), adamw["losses"]);
  const bool lora = !c_.adapter.empty();
  const auto saved = tensors(out / (lora ? "adapter_model.safetensors" : "model.safetensors"));
  int compared = 0;
  for (const auto& [full_name, expected] : expected_) {
    if (!full_name.starts_with("after10.")) continue;
    std::string name = full_name.substr(8);
    if (const auto at = name.find(".default."); at != std::string::npos) name.erase(at, 8);
    ASSERT_TRUE(saved.contains(name)) << name;
    // Where a gradient is all but zero, AdamW's first steps are ±lr by its sign.
    EXPECT_LE(largest(saved.at(name) - expected), 2e-3 * largest(expected)) << name;
    ++compared;
  }
  EXPECT_GT(compared, 0);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, HuggingFace,
                         testing::Values("gqa", "mha8x2", "headdim", "sliding", "sharded", "tied",
                                         "lora-qv", "lora-attention-rs"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

// -------------------------------------------------------------------------- with data of our own

const Strings kTexts = {
    "The mill stood by the river, and the river turned the wheel.",
    "Anna counted 12 sacks of flour. \"That is one too few,\" she said.",
    "Ein Käse, zwei Brötchen – und ein Kaffee, bitte!",
    "for (int i = 0; i < n; ++i) sum += x[i];",
    "The wheel turned the stone, the stone ground the corn.",
    "She looked behind the door, and there lay the last sack.",
};

fs::path text_data(const fs::path& folder) {
  std::ofstream train(folder / "train.jsonl"), val(folder / "val.jsonl");
  for (const std::string& text : kTexts) train << Json{{"text", text}}.dump() << '\n';
  val << Json{{"text", "The river ground the flour, and Anna counted the stones."}}.dump() << '\n';
  return folder;
}

// A model of text, trained a little, and its data; made once.
const Case& own_case() {
  static const Case made = [] {
    const fs::path folder = scratch("own");
    text_data(folder);
    const Result result =
        one_file({"pretrain", "--data", folder, "--out", folder / "model", "--iters", "12", "--lr",
                  "5e-3", "--context", "48", "--batch-size", "4", "--log-every", "1"});
    EXPECT_EQ(result.status, 0);
    return Case{folder / "model", {}, folder / "train.jsonl"};
  }();
  return made;
}

// A LoRA on q, v and the router whose B is no longer zero.
Case own_adapter() {
  Case c = own_case();
  c.adapter = scratch("own_adapter");
  const Result result = one_file({"finetune", "--model", c.model, "--data", c.data, "--out",
                                  c.adapter, "--iters", "3", "--lr", "1e-2", "--warmup", "0"});
  EXPECT_EQ(result.status, 0);
  return c;
}

TEST(OneFile, PretrainingLowersTrainingAndValidationLoss) {
  const auto lines = read_lines(own_case().model / "metrics.jsonl");
  ASSERT_EQ(lines.size(), 12u);
  EXPECT_NEAR(lines.front().at("cross_entropy").get<double>(), std::log(258.0), 0.3);
  EXPECT_LT(lines.back().at("cross_entropy").get<double>(), 4.5);
  EXPECT_LT(lines.back().at("val_loss").get<double>(), 4.5);
}

TEST(OneFile, SavesWhatItLoaded) {
  const fs::path out = scratch("saved");
  const Case& c = own_case();
  ASSERT_EQ(one_file({"finetune", "--method", "full", "--model", c.model, "--data", c.data, "--out",
                      out, "--iters", "1", "--lr", "0"})
                .status,
            0);
  const auto before = tensors(c.model / "model.safetensors");
  const auto after = tensors(out / "model.safetensors");
  ASSERT_EQ(before.size(), after.size());
  for (const auto& [name, tensor] : before)
    EXPECT_TRUE(mx::array_equal(tensor, after.at(name)).item<bool>()) << name;
}

TEST(OneFile, ReadsAllExpertsInOneTensor) {
  const Case& c = own_case();
  const fs::path folder = scratch("packed");
  fs::copy(c.model / "config.json", folder / "config.json");
  std::unordered_map<std::string, mx::array> packed;
  const auto weights = tensors(c.model / "model.safetensors");
  for (const auto& [name, tensor] : weights) {
    const auto moe = name.find("block_sparse_moe.");
    if (moe == std::string::npos) packed.insert_or_assign(name, tensor);
    if (!name.ends_with("gate.weight")) continue;
    const std::string layer = name.substr(0, moe);
    packed.insert_or_assign(layer + "mlp.gate.weight", tensor);
    std::vector<mx::array> gate_up, down;
    for (int e = 0; e < tensor.shape(0); ++e) {
      const std::string expert = layer + "block_sparse_moe.experts." + std::to_string(e);
      gate_up.push_back(mx::concatenate(
          {weights.at(expert + ".w1.weight"), weights.at(expert + ".w3.weight")}, 0));
      down.push_back(weights.at(expert + ".w2.weight"));
    }
    packed.insert_or_assign(layer + "mlp.experts.gate_up_proj", mx::stack(gate_up));
    packed.insert_or_assign(layer + "mlp.experts.down_proj", mx::stack(down));
  }
  mx::save_safetensors((folder / "model.safetensors").string(), packed);
  const std::vector<int> ids = {256, 84, 104, 101, 32};
  expect_logits(logits(ONE_FILE, {folder, {}, {}}, ids), logits(ONE_FILE, c, ids));
}

TEST(OneFile, ANewAdapterChangesNothing) {
  Case c = own_case();
  const std::vector<int> ids = {256, 84, 104, 101, 32};
  const mx::array before = logits(ONE_FILE, c, ids);
  c.adapter = scratch("new_adapter");
  ASSERT_EQ(one_file({"finetune", "--model", c.model, "--data", c.data, "--out", c.adapter,
                      "--iters", "1", "--lr", "0"})
                .status,
            0);
  EXPECT_EQ(largest(logits(ONE_FILE, c, ids) - before), 0);
  expect_logits(logits(ONE_FILE, own_adapter(), ids), logits(ONE_FILE, own_adapter(), ids));
  EXPECT_GT(largest(logits(ONE_FILE, own_adapter(), ids) - before), 0);
}

TEST(OneFile, EachMethodGenerates) {
  const std::string model = own_case().model;
  auto generated = [&](const std::string& method, const std::string& temperature) {
    const Result result =
        one_file({"generate", "--model", model, "--prompt", "The ", "--method", method, "--temp",
                  temperature, "--max-tokens", "12", "--logprobs", "on"});
    EXPECT_EQ(result.status, 0) << method;
    return result.out;
  };
  const std::string text = generated("generate", "0");
  EXPECT_TRUE(text.starts_with("The ")) << text;
  EXPECT_NE(text.find("log-probability"), std::string::npos);
  EXPECT_EQ(text, generated("generate", "0"));
  EXPECT_TRUE(generated("generate_after_training", "0").starts_with("The "));
  // The best token of the table is the one that temperature 0 draws.
  const std::string one = generated("generate_one_token", "0");
  EXPECT_NE(generated("just_generate_one_god_damn_token", "1").find(one), std::string::npos) << one;
  EXPECT_NE(generated("generate_raw", "1").find("after 256"), std::string::npos);
}

TEST(OneFile, RefusesWithAReason) {
  const std::string model = own_case().model;
  const fs::path bad = scratch("bad");
  std::ofstream(bad / "key.jsonl") << "{\"text\": \"good\"}\n{\"txt\": \"bad\"}\n";
  std::ofstream(bad / "token.jsonl") << "{\"input_ids\": [1, 2, 258]}\n";
  std::ofstream(bad / "label.jsonl") << "{\"input_ids\": [1, 2], \"labels\": [1]}\n";
  const std::string out = scratch("refused");
  struct {
    Strings arguments;
    int status;
    std::string reason;
  } const cases[] = {
      {{"train"}, 2, "expected pretrain, finetune or generate"},
      {{"generate"}, 2, "--model is needed"},
      {{"generate", "--model", model, "--temprature", "1"}, 2, "--temprature"},
      {{"generate", "--model", model, "--prompt", "a", "--temp", "warm"}, 2, "--temp"},
      {{"generate", "--model", model, "--prompt", "a", "--method", "all"}, 2, "--method all"},
      {{"generate", "--model", model, "--ids", "258"}, 1, "vocabulary"},
      {{"generate", "--model", out}, 1, "config.json: cannot be opened"},
      {{"finetune", "--model", model, "--data", bad / "key.jsonl", "--out", out}, 1, "key.jsonl:2"},
      {{"finetune", "--model", model, "--data", bad / "token.jsonl", "--out", out},
       1,
       "vocabulary"},
      {{"finetune", "--model", model, "--data", bad / "label.jsonl", "--out", out}, 1, "label"},
      {{"finetune", "--model", model, "--data", own_case().data, "--out", out, "--targets", "w9"},
       1,
       "w9"},
  };
  for (const auto& c : cases) {
    const Result result = run(ONE_FILE, c.arguments, true);
    EXPECT_EQ(result.status, c.status) << result.out;
    EXPECT_NE(result.out.find(c.reason), std::string::npos) << result.out;
  }
}

// --------------------------------------------------------------------------- against the engine

class Engine : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (engine().empty()) GTEST_SKIP() << "no engine; set MIXTRAL_ENGINE";
    if (GetParam() == "own") c_ = own_case();
    if (GetParam() == "own-adapter") c_ = own_adapter();
    if (!c_.model.empty()) return;
    if (!fs::exists(kFixtures)) GTEST_SKIP() << kFixtures << " is absent";
    c_ = fixture(GetParam());
  }
  Case c_;
};

TEST_P(Engine, LogitsAgree) {
  std::vector<std::vector<int>> rows = {{256, 84, 104, 101, 32, 109, 105, 108, 108, 32}};
  if (!GetParam().starts_with("own")) {
    rows.clear();
    for (const Json& row : read_lines(c_.data)) rows.push_back(row.at("input_ids"));
  }
  for (const auto& ids : rows) expect_logits(logits(ONE_FILE, c_, ids), logits(engine(), c_, ids));
}

TEST_P(Engine, GreedyTokensAgree) {
  const bool own = GetParam().starts_with("own");
  Strings flags = c_.model_flags();
  flags.insert(flags.begin(), "generate");
  flags.insert(flags.end(), {"--temp", "0", "--max-tokens", "24"});
  flags.insert(flags.end(), {own ? "--prompt" : "--ids", own ? "The mill " : "5,9,17,33,65"});
  const Result ours = one_file(flags), theirs = run(engine(), flags);
  EXPECT_EQ(theirs.status, 0);
  EXPECT_EQ(ours.out, theirs.out);
}

// The own data's rows have different lengths, and their last batch is as large as the others.
TEST_P(Engine, TenLossesAgree) {
  const size_t rows = GetParam().starts_with("own") ? 3 : read_lines(c_.data).size();
  const Strings flags = training_flags(c_, kAdamw, rows);
  const fs::path out = scratch("engine");
  expect_losses(losses(ONE_FILE, flags, out / "ours"), losses(engine(), flags, out / "theirs"));
}

INSTANTIATE_TEST_SUITE_P(Models, Engine,
                         testing::Values("own", "own-adapter", "gqa", "mha8x2", "headdim",
                                         "sliding", "sharded", "tied", "lora-qv",
                                         "lora-attention-rs"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST(EngineFiles, ReadsAndContinuesEachOthersSentencePieceModels) {
  if (engine().empty()) GTEST_SKIP() << "no engine; set MIXTRAL_ENGINE";
  const fs::path folder = scratch("pieces");
  text_data(folder);
  const std::string pieces = folder / "pieces", ours = folder / "ours", theirs = folder / "theirs";
  Result result = run(engine(),
                      {"tokenizer", "train", "--data", folder / "train.jsonl", "--vocab-size",
                       "360", "--out", pieces},
                      true);
  ASSERT_EQ(result.status, 0) << result.out;
  const Strings common = {"--data", folder, "--tokenizer", pieces,         "--iters",
                          "12",     "--lr", "5e-3",        "--batch-size", "3"};
  Strings flags = {"pretrain", "--out", ours};
  flags.insert(flags.end(), common.begin(), common.end());
  ASSERT_EQ(one_file(flags).status, 0);
  flags = {"pretrain", "--model", "tiny", "--sample-tokens", "0", "--out", theirs};
  flags.insert(flags.end(), common.begin(), common.end());
  result = run(engine(), flags, true);
  ASSERT_EQ(result.status, 0) << result.out;
  const std::string checkpoint = fs::path(theirs) / "checkpoints" / "step-00000012";
  for (const std::string& model : {ours, checkpoint}) {
    const Strings ask = {
        "generate", "--model", model,          "--prompt", "Anna zählt ☃ the wheel",
        "--temp",   "0",       "--max-tokens", "24"};
    EXPECT_EQ(one_file(ask).out, run(engine(), ask).out);
  }
}

}  // namespace
