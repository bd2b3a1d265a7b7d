#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <new>
#include <system_error>

#include "cli/advice.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/usage.h"
#include "cli/version.h"

namespace mixtral {
namespace {

constexpr const char* kAbout =
    "mixtral trains, evaluates and runs Mixtral models (sparse mixtures of experts) on ordinary\n"
    "computers and NVIDIA Hopper GPUs. `mixtral COMMAND --help` explains each command.";

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
  fmt::print(stderr,
             "mixtral: cannot write to standard output; is the disk full or the reader gone?\n");
  return 1;
}

}  // namespace

int run_command_line(int argc, char** argv) {
  CLI::App app(kAbout, "mixtral");
  app.footer(kFooter);
  app.set_version_flag("--version", std::string(kVersion));
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default(false);
  add_commands(app);
  try {
    app.parse(argc, argv);
    return output_status();
  } catch (const CLI::Success& request) {  // --help, --version
    const int code = app.exit(request);
    std::cout.flush();
    return code != 0 ? code : output_status();
  } catch (const ExitStatus& status) {
    return status.code;
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "mixtral: {}\n", usage_error(app, error));
    return 2;
  } catch (const UsageError& error) {
    fmt::print(stderr, "mixtral: {}\n", in_flags(error));
    return 2;
  } catch (const Error& error) {
    fmt::print(stderr, "mixtral: {}\n", in_flags(error));
    return 1;
  } catch (const std::filesystem::filesystem_error& error) {
    fmt::print(stderr, "mixtral: {}: {}\n", error.path1().string(), error.code().message());
    return 1;
  } catch (const std::system_error& error) {  // fmt::print's, where a full buffer cannot be written
    if (output_status() == 0)
      fmt::print(stderr, "mixtral: the system refused a request: {}\n", error.what());
    return 1;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "mixtral: out of memory; `mixtral info` shows what a model needs\n");
    return 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "mixtral: a defect in the program, please report it: {}\n", error.what());
    return 1;
  }
}

}  // namespace mixtral
