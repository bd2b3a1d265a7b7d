// Outputs that cannot be written, text that a terminal would obey, and numbers, sizes and files
// that are not what they should be.
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>

#include "base/file.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Arguments = std::vector<std::string>;

/// Runs the program in a child whose standard output and error are what `prepare` makes of them.
template <class Prepare>
int status_of(const Arguments& arguments, const Prepare& prepare) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGPIPE, SIG_DFL);
    prepare();
    ::_exit(run_command_here(arguments));
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void write_to_full_disk(int descriptor) { ::dup2(::open("/dev/full", O_WRONLY), descriptor); }

void write_to_nobody(int descriptor) {
  int pipe[2];
  if (::pipe(pipe) != 0) ::_exit(99);
  ::close(pipe[0]);
  ::dup2(pipe[1], descriptor);
}

class Faults : public ::testing::Test {
 protected:
  void SetUp() override {
    write_file(path("rows.jsonl"), "{\"input_ids\": [1, 2, 3, 4, 5, 6, 7, 8]}\n");
    ModelConfig config = testing::minimal_config();
    fs::create_directories(path("shape"));
    config.save(path("shape"));
  }
  std::string path(const std::string& name) const { return (scratch_.path() / name).string(); }
  Arguments training(const std::string& out) const {
    return {"pretrain",
            "--model",
            path("shape"),
            "--data",
            path("rows.jsonl"),
            "--out",
            path(out),
            "--iters",
            "3",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--warmup",
            "1",
            "--log-every",
            "1",
            "--pack",
            "off",
            "--context",
            "8",
            "--sample-tokens",
            "0"};
  }

  TemporaryDirectory scratch_;
};

TEST_F(Faults, AnErrorThatCannotBeSaidIsStillAnError) {
  const Arguments failing = {"info", "--model", "nonexist"};
  EXPECT_EQ(status_of(failing, [] { write_to_full_disk(STDERR_FILENO); }), 1);
  EXPECT_EQ(status_of(failing, [] { ::close(STDERR_FILENO); }), 1);
  EXPECT_EQ(status_of(failing, [] { write_to_nobody(STDERR_FILENO); }), 1);
  EXPECT_EQ(status_of({"info", "--modle", "x"}, [] { write_to_full_disk(STDERR_FILENO); }), 2);
}

TEST_F(Faults, AnOutputThatCannotBeWrittenIsAnError) {
  for (const Arguments& printing :
       {Arguments{"info", "--model", path("shape")}, Arguments{"--version"}, Arguments{"--help"}}) {
    EXPECT_EQ(status_of(printing,
                        [] {
                          write_to_full_disk(STDOUT_FILENO);
                          write_to_full_disk(STDERR_FILENO);
                        }),
              1);
  }
}

TEST_F(Faults, TrainingGoesOnWhereItsLogCannotBeWritten) {
  EXPECT_EQ(status_of(training("full"), [] { write_to_full_disk(STDERR_FILENO); }), 0);
  EXPECT_EQ(status_of(training("nobody"), [] { write_to_nobody(STDERR_FILENO); }), 0);
  for (const char* run : {"full", "nobody"})
    EXPECT_TRUE(fs::exists(path(run) + "/checkpoints/step-00000003/model.safetensors")) << run;
}

TEST_F(Faults, NoTextFromOutsideReachesTheTerminalUnescaped) {
  const std::string hostile =
      "a\x1b]0;title\x07\nmixtral: done\xc2\x9b"
      "2J\xe2\x80\xae";
  write_file(path("config.yaml"), "\"lr\\e[2J\": 1\n");
  for (const Arguments& arguments :
       {Arguments{"info", "--model", hostile}, Arguments{hostile},
        Arguments{"info", "--" + hostile},
        Arguments{"generate", "--model", path("shape"), "--temp", hostile},
        Arguments{"generate", "--model", path("shape"), "--dtype", hostile},
        Arguments{"pretrain", "--config", path("config.yaml")},
        Arguments{"data", "check", "--data", hostile, "-q"},
        Arguments{"tokenizer", "encode", "--tokenizer", hostile}}) {
    const Outcome o = run_command(arguments);
    EXPECT_NE(o.code, 0);
    for (const std::string raw : {"\x1b", "\x07", "\xc2\x9b", "\xe2\x80\xae"})
      EXPECT_THAT(o.err, Not(HasSubstr(raw))) << o.err;
    EXPECT_EQ(std::ranges::count(o.err, '\n'), 1) << o.err;
  }
}

TEST_F(Faults, LongValuesAreQuotedInPart) {
  const std::string text(50'000, 'A');
  write_file(path("long.yaml"), "lr: \"" + text + "\"\n");
  for (const Arguments& arguments :
       {Arguments{"generate", "--model", path("shape"), "-n", text},
        Arguments{"generate", "--model", path("shape"), "--dtype", text},
        Arguments{"pretrain", "--model", "tiny", "--config", path("long.yaml")}, Arguments{text},
        Arguments{"info", "--" + text}}) {
    const Outcome o = run_command(arguments);
    EXPECT_EQ(o.code, 2);
    EXPECT_LE(o.err.size(), 4200u);
  }
}

TEST_F(Faults, NumbersAreReadAsWrittenOrRefused) {
  struct Case {
    std::string value;
    std::string says;  // empty: accepted, as ten
  };
  const Case cases[] = {{"10", ""},
                        {"010", ""},
                        {"+10", ""},
                        {"-1", "from 0 on"},
                        {"0x10", "a whole number, found \"0x10\""},
                        {"1e1", "a whole number"},
                        {"ten", "a whole number"},
                        {"18446744073709551616", "64 bits"},
                        {"99999999999999999999999", "64 bits"}};
  for (const auto& [value, says] : cases) {
    write_file(path("seed.yaml"), fmt::format("seed: {}\n", value));
    Arguments flag = training("x"), file = training("x");
    flag.insert(flag.end(), {"--dump-config", "--seed", value});
    file.insert(file.end(), {"--dump-config", "--config", path("seed.yaml")});
    for (const Arguments& arguments : {flag, file}) {
      const Outcome o = run_command(arguments);
      SCOPED_TRACE(fmt::format("{}\n{}", value, o.err));
      EXPECT_EQ(o.code, says.empty() ? 0 : 2);
      EXPECT_THAT(says.empty() ? o.out : o.err, HasSubstr(says.empty() ? "seed: 10\n" : says));
    }
  }
  for (const std::string value : {"0x1p3", "nan", "inf", "1e999", "fast"}) {
    Arguments rate = training("x");
    rate.insert(rate.end(), {"--dump-config", "--lr", value});
    EXPECT_EQ(run_command(rate).code, 2) << value;
  }
}

TEST_F(Faults, AConfigurationFileIsOneDocumentAndWritesNowhereElse) {
  const std::pair<std::string, std::string> cases[] = {
      {"iters: 3\n---\nlr: 5\n", "found 2"},
      {"iters: 3\niters: 4\n", "twice"},
      {"token-cache: true\n", "command line only"},
  };
  for (const auto& [text, says] : cases) {
    write_file(path("config.yaml"), text);
    Arguments arguments = training("x");
    arguments.insert(arguments.end(), {"--config", path("config.yaml")});
    const Outcome o = run_command(arguments);
    EXPECT_EQ(o.code, 2);
    EXPECT_THAT(o.err, HasSubstr(says));
  }
  EXPECT_FALSE(fs::exists(path(".mixtral-cache")));
  EXPECT_FALSE(fs::exists(path("x")));
}

TEST_F(Faults, ARunsOwnFileDoesNotTurnTheTokenCacheOn) {
  ASSERT_EQ(run_command(training("run")).code, 0);
  const std::string config = path("run") + "/config.yaml";
  write_file(config, read_file(config) + "token-cache: true\n");
  const Outcome o = run_command({"pretrain", "--resume", path("run"), "--iters", "4"});
  EXPECT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(o.err, HasSubstr("token-cache is left out"));
  EXPECT_FALSE(fs::exists(path(".mixtral-cache")));
}

TEST_F(Faults, SizesAreRefusedBeforeAnythingIsAllocated) {
  const auto with = [&](std::vector<std::string> more) {
    Arguments arguments = training("x");
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  const std::string shape = path("shape");
  fs::create_directories(path("wide"));
  std::string config = read_file(shape + "/config.json");
  const std::pair<std::string, std::string> wider[] = {
      {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1024"},
      {"\"num_local_experts\": 4", "\"num_local_experts\": 4096"}};
  for (const auto& [from, to] : wider) config.replace(config.find(from), from.size(), to);
  write_file(path("wide") + "/config.json", config);
  for (const Arguments& arguments :
       {with({"--batch-size", "1000000000000"}), with({"--context", "100000000"}),
        with({"--context", "9223372036854775807"}), with({"--batch-size", "2000000"}),
        with({"--context", "16000000", "--batch-size", "1000", "--pack", "on"}),
        Arguments{"info", "--model", shape, "--context", "9223372036854775807"},
        Arguments{"info", "--model", shape, "--context", "16777216", "--batch-size", "1048576"},
        Arguments{"info", "--model", shape, "--rank", "1000000000"},
        Arguments{"info", "--model", path("wide")},
        Arguments{"finetune", "--model", shape, "--data", path("rows.jsonl"), "--out", path("x"),
                  "--rank", "1000000000"},
        Arguments{"generate", "--model", shape, "--ids", "1", "--context", "9223372036854775807"},
        Arguments{"data", "check", "--data", path("rows.jsonl"), "--threads", "1000000000"}}) {
    const auto start = std::chrono::steady_clock::now();
    const Outcome o = run_command(arguments);
    SCOPED_TRACE(fmt::format("{}\n{}", fmt::join(arguments, " "), o.err));
    EXPECT_NE(o.code, 0);
    // Notes may stand before it.
    EXPECT_THAT("\n" + o.err, AllOf(HasSubstr("\nmixtral: "), Not(HasSubstr("defect"))));
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  }
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  EXPECT_LT(usage.ru_maxrss, 1 << 20) << "KiB: something filled the memory";
}

TEST_F(Faults, PipesInPlaceOfFilesAreRefusedAtOnce) {
  const std::string pipe = path("pipe.jsonl");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  fs::create_directories(path("model"));
  ASSERT_EQ(::mkfifo((path("model") + "/config.json").c_str(), 0600), 0);
  for (const Arguments& arguments :
       {Arguments{"data", "check", "--data", pipe}, Arguments{"info", "--model", path("model")},
        Arguments{"pretrain", "--model", "tiny", "--out", path("x"), "--data", path("rows.jsonl"),
                  "--config", pipe},
        Arguments{"tokenizer", "info", "--tokenizer", pipe}}) {
    const Outcome o = run_command(arguments);
    EXPECT_NE(o.code, 0);
    EXPECT_THAT(o.err, Not(HasSubstr("defect")));
  }
}

TEST_F(Faults, ImportsStayInTheirFolder) {
  fs::create_directories(path("texts"));
  write_file(path("secret.txt"), "a secret\n");
  write_file(path("texts") + "/a.txt", "A text that may be read.\n");
  fs::create_symlink(path("secret.txt"), path("texts") + "/b.txt");
  fs::create_symlink(path("texts") + "/a.txt", path("texts") + "/c.txt");
  const Outcome o = run_command({"data", "import", path("texts"), "--out", path("imported")});
  EXPECT_EQ(o.code, 0) << o.err;
  for (const auto& entry : fs::recursive_directory_iterator(path("imported")))
    if (entry.is_regular_file()) {
      EXPECT_THAT(read_file(entry.path()), Not(HasSubstr("secret")));
    }
}

}  // namespace
}  // namespace mixtral
