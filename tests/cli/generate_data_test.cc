// generate --data: each row's result is that of the row alone, results come in the rows' order, an
// interrupted run goes on, and what is no row is refused by file and line.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include "backends/registry.h"
#include "base/file.h"
#include "base/random.h"
#include "io/json.h"
#include "model/adapter.h"
#include "model/checkpoint.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/models.h"
#include "text/byte_tokenizer.h"
#include "text/chat_template.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class GenerateData : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    scratch_ = std::make_unique<TemporaryDirectory>();
    ModelConfig config = testing::minimal_config();
    config.vocab_size = 258;
    config.max_positions = 160;
    config.bos_id = 256;
    config.eos_ids = {257};
    const auto backend = make_backend("cpu", 1);
    Mixtral model(*backend, config, {});
    nn::initialise(*backend, model.parameters(),
                   {.seed = 3, .deviation = 0.3, .embedding_deviation = 0.3});
    fs::create_directories(path("model"));
    save_model(*backend, model, path("model"), Dtype::f32);
    ByteTokenizer().save(path("model"));
    save_chat_template_name(path("model"), ChatTemplate::seed);
  }
  static void TearDownTestSuite() { scratch_.reset(); }

  static std::string path(const std::string& name) { return (scratch_->path() / name).string(); }
  static std::string write(const std::string& name, const std::string& text) {
    write_file(path(name), text);
    return path(name);
  }
  static Outcome generate(const std::vector<std::string>& more) {
    std::vector<std::string> arguments{"generate", "--model", path("model"), "--device",
                                       "cpu",      "--dtype", "fp32",        "-q"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_command(arguments);
  }
  static std::string results_of(const std::string& rows, const std::vector<std::string>& more) {
    const std::string out = path("results.jsonl");
    fs::remove(out);
    std::vector<std::string> arguments{"--data", rows, "--out", out};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = generate(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    return read_file(out);
  }

  static std::unique_ptr<TemporaryDirectory> scratch_;
};
std::unique_ptr<TemporaryDirectory> GenerateData::scratch_;

constexpr const char* kRows =
    R"({"prompt": "Once upon a time"}
{"ids": [5, 7, 9], "max_tokens": 3, "stop": null}
{"prompt": "Once upon a time there was", "temp": 1.5, "seed": 9, "top_p": 0.9, "max_tokens": 30}
{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]}
{"prompt": "", "temp": 2, "top_k": 20, "min_p": 0.001, "stop": ["e", "a"], "max_tokens": 40}
{"prompt": "é", "repeat_penalty": 1.5, "repeat_last_n": 4}
{"prompt": "long", "max_tokens": 500}
)";

std::vector<Json> parse_lines(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line, "results"));
  return lines;
}

std::vector<int64_t> ids_of(const Json& json) {
  std::vector<int64_t> ids;
  for (const Json& id : json.at("ids").items()) ids.push_back(id.as_int());
  return ids;
}

TEST_F(GenerateData, ResultsDoNotDependOnHowManyRowsRunAtOnce) {
  const std::string rows = write("rows.jsonl", kRows);
  const std::string one = results_of(rows, {"--parallel", "1", "--temp", "0", "--ignore-eos"});
  for (const char* parallel : {"2", "8", "32"})
    EXPECT_EQ(results_of(rows, {"--parallel", parallel, "--temp", "0", "--ignore-eos"}), one)
        << parallel;
  EXPECT_EQ(results_of(rows, {"--temp", "0", "--ignore-eos", "-t", "3"}), one);
}

TEST_F(GenerateData, RowsMayNameAdapters) {
  const auto backend = make_backend("cpu", 1);
  const auto model = load_model(*backend, path("model"), {});
  int seed = 0;
  for (const auto& [name, target] :
       {std::pair{"first", "q_proj"}, std::pair{"second", "gate_up_proj"}}) {
    AdapterFile file = new_adapter({.targets = {target}, .rank = 2 + seed}, model->config());
    RandomStream random(static_cast<uint64_t>(++seed));
    for (AdapterModule& module : file.modules) {
      const TargetShape shape = target_shape(model->config(), module.target);
      module.a.resize(static_cast<size_t>(shape.groups * module.rank * shape.inputs));
      module.b.resize(static_cast<size_t>(shape.groups * shape.rows * module.rank));
      for (auto* values : {&module.a, &module.b})
        for (float& value : *values) value = static_cast<float>(random.uniform() - 0.5);
    }
    fs::create_directories(path(name));
    Adapter(*backend, *model, std::move(file), {}).save(path(name));
  }
  const std::vector<std::string> named{"", "first", "second", "first", ""};
  std::string text;
  for (size_t i = 0; i < named.size(); ++i) {
    const std::string field = named[i].empty() ? "null" : fmt::format("\"{}\"", path(named[i]));
    text += fmt::format(R"({{"prompt": "Once upon{:.{}}", "adapter": {}}})", " a time", i, field);
    text += '\n';
  }
  const std::string rows = write("adapters.jsonl", text);
  const std::vector<std::string> how{"--temp", "0", "-n", "12", "--ignore-eos"};
  for (const char* parallel : {"1", "4"}) {
    std::vector<std::string> more = how;
    more.insert(more.end(), {"--parallel", parallel, "--adapter", path("second")});
    const auto results = parse_lines(results_of(rows, more));
    ASSERT_EQ(results.size(), named.size());
    for (size_t i = 0; i < named.size(); ++i) {
      std::vector<std::string> alone = how;
      const std::string adapter = named[i].empty() ? "second" : named[i];
      alone.insert(alone.end(), {"--adapter", path(adapter), "--json", "-p",
                                 fmt::format("Once upon{:.{}}", " a time", i)});
      const Outcome outcome = generate(alone);
      ASSERT_EQ(outcome.code, 0) << outcome.err;
      EXPECT_EQ(ids_of(results[i]), ids_of(Json::parse(outcome.out, "out"))) << i;
    }
  }
}

TEST_F(GenerateData, EachResultIsThatOfTheRowAlone) {
  const std::string rows = write("rows.jsonl", kRows);
  const auto results = parse_lines(results_of(rows, {"--temp", "0", "-n", "20"}));
  const std::vector<std::vector<std::string>> alone{
      {"-p", "Once upon a time", "--temp", "0", "-n", "20"},
      {"--ids", "5,7,9", "-n", "3", "--temp", "0"},
      {"-p", "Once upon a time there was", "--temp", "1.5", "--seed", "9", "--top-p", "0.9", "-n",
       "30"},
      {"-p", "Hello", "--system", "Be brief.", "--temp", "0", "-n", "20"},
      {"-p", "", "--temp", "2", "--top-k", "20", "--min-p", "0.001", "--stop", "e", "--stop", "a",
       "-n", "40"},
      {"-p", "é", "--temp", "0", "-n", "20", "--repeat-penalty", "1.5", "--repeat-last-n", "4"},
      {"-p", "long", "--temp", "0", "-n", "500"},
  };
  ASSERT_EQ(results.size(), alone.size());
  for (size_t i = 0; i < alone.size(); ++i) {
    std::vector<std::string> arguments = alone[i];
    arguments.emplace_back("--json");
    const Outcome outcome = generate(arguments);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const Json expected = Json::parse(outcome.out, "out");
    EXPECT_EQ(results[i].at("index").as_int(), static_cast<int64_t>(i));
    EXPECT_EQ(ids_of(results[i]), ids_of(expected)) << i;
    EXPECT_EQ(results[i].at("text").as_string(), expected.at("text").as_string()) << i;
    EXPECT_EQ(results[i].at("finish_reason").as_string(), expected.at("finish_reason").as_string())
        << i;
  }
}

TEST_F(GenerateData, AnInterruptedRunGoesOnWhereverItEnded) {
  const std::string rows = write("rows.jsonl", kRows), out = path("results.jsonl");
  const std::vector<std::string> how{"--temp", "0", "-n", "20"};
  const std::string whole = results_of(rows, how);
  std::vector<std::string> arguments{"--data", rows, "--out", out, "--resume"};
  arguments.insert(arguments.end(), how.begin(), how.end());
  const size_t second = whole.find('\n') + 1;
  for (const size_t kept :
       {size_t{0}, size_t{1}, second - 1, second, second + 9,
        whole.rfind('\n', whole.size() - 2) + 1, whole.size() - 1, whole.size()}) {
    write_file(out, whole.substr(0, kept));
    const Outcome outcome = generate(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(read_file(out), whole) << kept << " bytes kept";
  }
  fs::remove(out);
  EXPECT_EQ(generate(arguments).code, 0);  // nothing to go on from
  EXPECT_EQ(read_file(out), whole);
}

TEST_F(GenerateData, ResultsOfAnInterruptedRunAreNotLost) {
  const std::string rows = write("rows.jsonl", kRows), out = path("results.jsonl");
  const std::string whole = results_of(rows, {"--temp", "0", "-n", "5"});
  const std::string part = whole.substr(0, whole.find('\n') + 1);
  write_file(out, part);
  const Outcome refused = generate({"--data", rows, "--out", out});
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.err, HasSubstr("1 results of 7 rows"));
  EXPECT_THAT(refused.err, HasSubstr("--resume"));
  EXPECT_EQ(read_file(out), part);
  // Results of all rows are replaced, as with any --out.
  write_file(out, whole);
  EXPECT_EQ(generate({"--data", rows, "--out", out, "--temp", "0", "-n", "4"}).code, 0);
  EXPECT_NE(read_file(out), whole);
}

TEST_F(GenerateData, ResultsOfOtherRowsAreNotGoneOnFrom) {
  const std::string rows = write("rows.jsonl", kRows), out = path("results.jsonl");
  const std::string whole = results_of(rows, {"--temp", "0", "-n", "5"});
  const std::string first = whole.substr(0, whole.find('\n') + 1);
  const std::string bad_middle = first + "{\"index\": 1, \n" + first;
  for (const auto& [text, message] : std::vector<std::pair<std::string, std::string>>{
           {first + first, "results.jsonl:2: is no result of"},
           {bad_middle, "results.jsonl:2"},
           {R"({"index":0,"ids":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18]})"
            "\n",
            "results.jsonl:1: is no result of"},
           {whole + first, "results.jsonl:8: there are results of more than the 7 rows"}}) {
    write_file(out, text);
    const Outcome outcome = generate({"--data", rows, "--out", out, "--resume"});
    EXPECT_EQ(outcome.code, 1);
    EXPECT_THAT(outcome.err, HasSubstr(message));
    EXPECT_EQ(read_file(out), text);  // as it was
  }
}

TEST_F(GenerateData, RefusesWhatIsNoRowByFileAndLine) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {R"({"prompt": 5})", "prompt: expected a string, found"},
      {R"({"prompt": "a", "ids": [1]})", "ids: there is \"prompt\" already"},
      {R"({"temp": 0})", "there is no prompt; expected one of prompt, ids, messages"},
      {R"({"prompt": null})", "there is no prompt"},
      {R"({"ids": []})", "no tokens"},
      {R"({"ids": [1, 258]})", "ids[1]: expected a whole number from 0 to 257, found 258"},
      {R"({"ids": [1.5]})", "ids[0]"},
      {R"({"prompt": "a", "max_token": 5})", "max_token: unknown field"},
      {R"({"prompt": "a", "max_tokens": 0})", "max_tokens: expected a whole number from 1"},
      {R"({"prompt": "a", "max_tokens": "5"})", "max_tokens: expected"},
      {R"({"prompt": "a", "temp": -1})", "temp: expected a number from 0 to 100, found -1"},
      {R"({"prompt": "a", "temp": true})", "temp: expected"},
      {R"({"prompt": "a", "top_p": 1.5})", "top_p: expected a number from 0 to 1"},
      {R"({"prompt": "a", "top_k": -1})", "top_k: expected a whole number from 0"},
      {R"({"prompt": "a", "min_p": 2})", "min_p: expected a number from 0 to 1"},
      {R"({"prompt": "a", "seed": -3})", "seed: expected a whole number from 0"},
      {R"({"prompt": "a", "stop": 5})", "stop: expected"},
      {R"({"prompt": "a", "stop": [5]})", "stop[0]: expected a string"},
      {R"({"prompt": "a", "stop": ""})", "stop: a stop text is empty"},
      {R"({"prompt": "a", "adapter": "x"})", "adapter x: there is no such directory"},
      {R"({"prompt": "a", "adapter": ""})", "adapter: the adapter's name is empty"},
      {R"({"prompt": "a", "adapter": 3})", "adapter: expected a string"},
      {R"({"messages": []})", "messages"},
      {R"({"messages": [{"role": "user"}]})", "content"},
      {R"({"messages": [{"role": "king", "content": "a"}]})", "messages"},
      {R"({"messages": [{"role": "user", "content": "a", "name": "b"}]})", "unknown field"},
      {R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})",
       "the last turn is the assistant's"},
      {R"(["prompt"])", "expected an object"},
      {R"({"prompt": "a")", "not valid JSON"},
      {"", "not valid JSON"},
      {R"({"prompt": "a", "prompt": "b"})", "prompt"},
  };
  for (const auto& [row, message] : cases) {
    const std::string rows = write("bad.jsonl", "{\"prompt\": \"good\"}\n" + row + "\n");
    const Outcome outcome = generate({"--data", rows, "--out", path("never.jsonl")});
    EXPECT_EQ(outcome.code, 1) << row;
    EXPECT_THAT(outcome.err, HasSubstr(rows + ":2: ")) << row;
    EXPECT_THAT(outcome.err, HasSubstr(message)) << row;
    EXPECT_FALSE(fs::exists(path("never.jsonl"))) << row;
  }
  EXPECT_THAT(generate({"--data", write("none.jsonl", "")}).err, HasSubstr("holds no row"));
  const std::string rows = write("rows.jsonl", kRows);
  EXPECT_THAT(generate({"--data", rows, "--context", "10"}).err,
              HasSubstr("rows.jsonl:1: a prompt of 17 tokens leaves no room"));
}

TEST_F(GenerateData, FlagsThatHaveNoUseAreRefused) {
  const std::string rows = write("rows.jsonl", kRows);
  for (const std::vector<std::string>& flags :
       std::vector<std::vector<std::string>>{{"--prompt", "a"},
                                             {"--ids", "1"},
                                             {"--system", "a"},
                                             {"--chat"},
                                             {"--top", "3"},
                                             {"--json"},
                                             {"--method", "generate_raw"}}) {
    std::vector<std::string> arguments{"--data", rows};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Outcome outcome = generate(arguments);
    EXPECT_EQ(outcome.code, 2) << flags[0];
    EXPECT_THAT(outcome.err, HasSubstr(flags[0]));
  }
  for (const std::vector<std::string>& flags :
       std::vector<std::vector<std::string>>{{"--parallel", "3"}, {"--resume"}}) {
    std::vector<std::string> arguments{"-p", "a"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    EXPECT_EQ(generate(arguments).code, 2) << flags[0];
  }
}

TEST_F(GenerateData, WritesToStandardOutputWithoutOut) {
  const std::string rows = write("rows.jsonl", kRows);
  const std::vector<std::string> how{"--temp", "0", "-n", "5", "--logprobs"};
  std::vector<std::string> arguments{"--data", rows};
  arguments.insert(arguments.end(), how.begin(), how.end());
  const Outcome outcome = generate(arguments);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, results_of(rows, how));
  EXPECT_EQ(parse_lines(outcome.out)[1].at("logprobs").items().size(), 3U);
}

}  // namespace
}  // namespace mixtral
