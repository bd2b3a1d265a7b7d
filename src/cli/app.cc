#include <cstdio>
#include <filesystem>
#include <new>
#include <system_error>

#include "base/detailed_error.h"
#include "base/messages.h"
#include "cli/advice.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/help.h"
#include "cli/option_table.h"
#include "cli/usage.h"
#include "cli/version.h"

namespace mixtral {
namespace {

constexpr const char* kAbout =
    "mixtral trains, evaluates and runs Mixtral models (sparse mixtures of experts) on ordinary\n"
    "computers and NVIDIA Hopper GPUs.";

constexpr const char* kFooter =
    "A first model in minutes:\n"
    "  mixtral data stories --out data --size 20MB\n"
    "  mixtral tokenizer train --data data/pretrain_data/train.jsonl --vocab-size 4096 --out tok\n"
    "  mixtral pretrain --model tiny --tokenizer tok --data data/pretrain_data --out runs/first\n"
    "  mixtral generate --model runs/first --prompt \"Once upon a time\"\n";

/// 0, or 1 after saying that what was printed did not arrive. A flush that fails drops what was to
/// be written, and the next one has nothing left to fail on: hence the error indicator.
int output_status() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return 0;
  messages::line("mixtral: cannot write to standard output; is the disk full or the reader gone?");
  return 1;
}

int print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  return output_status();
}

/// The command that --help stands behind.
const cli::App& last_parsed(const cli::App& app) {
  const cli::App* command = &app;
  while (!command->get_subcommands().empty()) command = command->get_subcommands().back();
  return *command;
}

int report(const Error& error, int code) {
  if (const auto* detailed = dynamic_cast<const DetailedError*>(&error)) {
    messages::print("mixtral: {}", in_flags(detailed->sentence()));
    messages::lines(detailed->details());
  } else {
    messages::print("mixtral: {}", in_flags(error));
  }
  return code;
}

}  // namespace

int run_command_line(int argc, char** argv) {
  cli::App app(kAbout, "mixtral");
  app.footer(kFooter);
  app.set_help_flag("-h,--help", "The options that people use");
  app.set_help_all_flag("--help-all", "All options");
  app.set_version_flag("--version", version_text, "The version, how it was built, and for what");
  app.require_subcommand(1);
  add_commands(app);
  read_numbers_as_written(app);
  try {
    if (argc == 1) return print(short_help(describe(app)));
    app.parse(argc, argv);
    return output_status();
  } catch (const cli::CallForHelp&) {
    return print(short_help(describe(last_parsed(app))));
  } catch (const cli::CallForAllHelp&) {
    return print(full_help(describe(last_parsed(app))));
  } catch (const cli::Success& request) {  // --version
    return print(std::string(request.what()) + "\n");
  } catch (const ExitStatus& status) {
    return status.code;
  } catch (const cli::ParseError& error) {
    messages::print("mixtral: {}", usage_error(app, error));
    return 2;
  } catch (const UsageError& error) {
    return report(error, 2);
  } catch (const Error& error) {
    return report(error, 1);
  } catch (const std::filesystem::filesystem_error& error) {
    messages::print("mixtral: {}: {}", error.path1().string(), error.code().message());
    return 1;
  } catch (const std::system_error& error) {  // fmt::print's, where a full buffer cannot be written
    if (output_status() == 0)
      messages::print(
          "mixtral: the system refused a request: {}; is a limit (`ulimit -a`) too low?",
          error.what());
    return 1;
  } catch (const std::bad_alloc&) {
    messages::line(
        "mixtral: out of memory; close other programs, raise `ulimit -v` where one is set, or take "
        "a "
        "smaller batch, context or model (`mixtral info` shows what a model needs)");
    return 1;
  } catch (const std::exception& error) {
    messages::print("mixtral: a defect in the program, please report it: {}", error.what());
    return 1;
  }
}

}  // namespace mixtral
