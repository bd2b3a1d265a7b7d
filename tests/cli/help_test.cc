// What the program says of its own commands and options.
#include "cli/help.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <functional>

#include "base/file.h"
#include "cli/command_table.h"
#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/completion.h"
#include "cli/man_page.h"
#include "cli/option_table.h"
#include "cli/version.h"
#include "tests/support/command.h"
#include "tests/support/files.h"

namespace mixtral {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

/// All commands, as the program has them.
CommandRow all_commands() {
  cli::App app("about", "mixtral");
  app.set_help_flag("-h,--help", "The options that people use");
  app.set_help_all_flag("--help-all", "All options");
  app.footer("Example: mixtral help\n");
  add_commands(app);
  return describe(app);
}

void for_each(const CommandRow& command, const std::function<void(const CommandRow&)>& visit) {
  visit(command);
  for (const CommandRow& inner : command.commands) for_each(inner, visit);
}

std::vector<std::string> words_of(const std::string& path) {
  std::vector<std::string> words;
  std::istringstream in(path.substr(path.find(' ') + 1));
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

size_t columns(std::string_view line) {
  return static_cast<size_t>(std::ranges::count_if(
      line, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

TEST(Help, OfEveryCommandFitsTheScreen) {
  for_each(all_commands(), [](const CommandRow& command) {
    auto arguments =
        command.path == "mixtral" ? std::vector<std::string>() : words_of(command.path);
    arguments.push_back("--help");
    const Outcome o = run_command(arguments);
    SCOPED_TRACE(o.out);
    EXPECT_EQ(o.code, 0);
    EXPECT_EQ(o.err, "");
    EXPECT_LE(std::ranges::count(o.out, '\n'), 40);
    std::istringstream lines(o.out);
    for (std::string line; std::getline(lines, line);) {
      EXPECT_LE(columns(line), 80u) << line;
      EXPECT_THAT(line, Not(::testing::EndsWith(" ")));
    }
    EXPECT_THAT(o.out, HasSubstr("Usage: " + command.path));
    EXPECT_THAT(o.out, HasSubstr("Examples:\n  mixtral"));
  });
}

TEST(Help, OfAllOptionsHasEachOfThemAndNoDescriptionAtTheMargin) {
  for_each(all_commands(), [](const CommandRow& command) {
    const std::string text = full_help(command);
    for (const OptionRow& option : command.options)
      EXPECT_THAT(text, HasSubstr(option.name())) << command.path;
    std::istringstream lines(text.substr(0, text.find(command.footer)));
    bool options = false;
    for (std::string line; std::getline(lines, line);) {
      options |= line.ends_with(":");
      if (options && !line.empty() && !line.ends_with(":")) {
        EXPECT_THAT(line, StartsWith("  ")) << command.path;
      }
      EXPECT_LE(columns(line), 80u) << line;
    }
  });
}

TEST(Help, ChosenOptionsExist) {
  const CommandRow root = all_commands();
  for (const auto& [path, groups] : chosen_options()) {
    const CommandRow& command = find_command(root, words_of(path));
    size_t count = 0;
    for (const HelpGroup& group : groups)
      for (const std::string& name : group.options) {
        EXPECT_NE(command.find(name), nullptr) << path << " " << name;
        ++count;
      }
    EXPECT_GE(count, 8u) << path;
    EXPECT_LE(count, 15u) << path;
    for (const OptionRow& option : command.options) {
      if (!option.required) continue;
      EXPECT_TRUE(std::ranges::any_of(groups,
                                      [&](const HelpGroup& group) {
                                        return std::ranges::count(group.options, option.name()) > 0;
                                      }))
          << path << " " << option.name() << " is required and not shown";
    }
  }
}

TEST(Help, IsFoundInEveryWay) {
  const std::string of_program = run_command({"--help"}).out;
  EXPECT_THAT(of_program, HasSubstr("pretrain"));
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{}, std::vector<std::string>{"help"},
        std::vector<std::string>{"-h"}}) {
    const Outcome o = run_command(arguments);
    EXPECT_EQ(o.code, 0);
    EXPECT_EQ(o.out, of_program);
  }
  EXPECT_EQ(run_command({"help", "data", "check"}).out, run_command({"data", "check", "-h"}).out);
  EXPECT_THAT(run_command({"generate", "--help-all"}).out, HasSubstr("--repeat-last-n"));
  EXPECT_THAT(run_command({"generate", "--help"}).out, Not(HasSubstr("--repeat-last-n")));
  const Outcome unknown = run_command({"help", "generat"});
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("did you mean generate?"));
}

TEST(Positionals, StandForTheOptionThatEveryoneGives) {
  const TemporaryDirectory scratch;
  const std::string rows = (scratch.path() / "rows.jsonl").string();
  write_file(rows, "{\"text\": \"a b\"}\n");
  // How much memory is free, in the next line, changes meanwhile.
  const auto first_line = [](const Outcome& o) { return o.out.substr(0, o.out.find('\n')); };
  EXPECT_THAT(first_line(run_command({"info", "tiny", "--device", "cpu"})), StartsWith("tiny: "));
  EXPECT_EQ(first_line(run_command({"info", "tiny", "--device", "cpu"})),
            first_line(run_command({"info", "--model", "tiny", "--device", "cpu"})));
  EXPECT_EQ(run_command({"data", "check", rows, "-q"}).out,
            run_command({"data", "check", "--data", rows, "-q"}).out);
  const Outcome encoded = run_command({"tokenizer", "encode", "ab c", "--tokenizer", "bytes"});
  EXPECT_EQ(encoded.code, 0) << encoded.err;
  EXPECT_EQ(encoded.out,
            run_command({"tokenizer", "encode", "--text", "ab c", "--tokenizer", "bytes"}).out);
  EXPECT_EQ(run_command({"info", "tiny", "--model", "small"}).code, 2);
}

TEST(Version, SaysWhatWasBuilt) {
  const Outcome o = run_command({"--version"});
  EXPECT_EQ(o.code, 0);
  EXPECT_THAT(o.out, StartsWith("mixtral " + version() + "\n"));
  for (const char* word : {"commit", "build", "processor", "backends", "cpu, ref"})
    EXPECT_THAT(o.out, HasSubstr(word));
}

/// What a shell prints for a script; "" where there is no such shell.
std::string printed_by(const std::string& shell, const std::string& script) {
  const TemporaryDirectory scratch;
  const auto file = scratch.path() / "script";
  write_file(file, script);
  std::FILE* const pipe = ::popen((shell + " " + file.string() + " 2>&1").c_str(), "r");
  std::string text;
  for (int c; (c = std::fgetc(pipe)) != EOF;) text += static_cast<char>(c);
  ::pclose(pipe);
  return text;
}

TEST(Completion, InBashKnowsCommandsOptionsAndValues) {
  const std::string script = completion_script(all_commands(), "bash");
  const auto complete = [&](const std::string& line) {
    return printed_by("bash", script + fmt::format("\nCOMP_WORDS=({0} ''); COMP_CWORD=$(({1}))\n"
                                                   "_mixtral; echo \"${{COMPREPLY[@]}}\"\n",
                                                   line, std::ranges::count(line, ' ') + 1));
  };
  EXPECT_THAT(complete("mixtral"), HasSubstr("pretrain"));
  EXPECT_THAT(complete("mixtral data"), HasSubstr("stories"));
  EXPECT_EQ(complete("mixtral generate --dtype"), "auto fp32 bf16 fp8 fp64\n");
  EXPECT_THAT(printed_by("bash", script + "\nCOMP_WORDS=(mixtral generate --to); COMP_CWORD=2\n"
                                          "_mixtral; echo \"${COMPREPLY[@]}\"\n"),
              HasSubstr("--top-k"));
}

TEST(Completion, OfEveryShellHasEveryOption) {
  const CommandRow root = all_commands();
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const Outcome o = run_command({"completion", shell});
    EXPECT_EQ(o.code, 0);
    for_each(root, [&](const CommandRow& command) {
      for (const OptionRow& option : command.options)
        for (const std::string& name : option.long_names)
          EXPECT_THAT(o.out,
                      HasSubstr(shell == std::string("fish") ? " -l " + name.substr(2) : name));
    });
  }
  for (const char* shell : {"zsh", "fish"})
    if (std::system(fmt::format("command -v {} >/dev/null", shell).c_str()) == 0) {
      EXPECT_EQ(printed_by(fmt::format("{} -n", shell), completion_script(root, shell)), "");
    }
  EXPECT_EQ(run_command({"completion", "tcsh"}).code, 2);
}

TEST(ManPage, HasEveryCommandAndOption) {
  const Outcome o = run_command({"man"});
  EXPECT_EQ(o.code, 0);
  EXPECT_THAT(o.out, StartsWith(".TH MIXTRAL 1"));
  for_each(all_commands(), [&](const CommandRow& command) {
    if (command.path == "mixtral") return;
    std::string escaped;
    for (const char c : command.path) escaped += c == '-' ? "\\-" : std::string(1, c);
    EXPECT_THAT(o.out, HasSubstr(".SS " + escaped));
  });
  EXPECT_THAT(o.out, HasSubstr("\\-\\-max\\-tokens"));
}

}  // namespace
}  // namespace mixtral
