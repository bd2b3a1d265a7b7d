#include "cli/data_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "base/error.h"
#include "base/messages.h"

namespace mixtral {

void put(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size())
    throw Error("cannot write to standard output; is the disk full or the reader gone?");
}

ProgressLine::ProgressLine(bool quiet) : shown_(!quiet && ::isatty(STDERR_FILENO) != 0) {}

ProgressLine::~ProgressLine() {
  if (used_) messages::clear();
}

void ProgressLine::show(std::string_view what, double share) {
  if (!shown_) return;
  used_ = true;
  messages::redraw(fmt::format("{} {:3.0f}%", what, 100 * share));
}

void add_data_command(cli::App& app) {
  cli::App* command = app.add_subcommand("data", "Make, import and check data for training");
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  mixtral data stories --out data --size 20MB\n"
      "  mixtral data import book.txt --out data/book\n"
      "  mixtral data check --data data/pretrain_data --tokenizer tok\n");
  add_data_stories(*command);
  add_data_import(*command);
  add_data_check(*command);
}

}  // namespace mixtral
