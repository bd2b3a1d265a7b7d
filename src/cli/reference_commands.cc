// The commands help, completion and man, made from the tables of options.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/completion.h"
#include "cli/help.h"
#include "cli/man_page.h"
#include "cli/option_table.h"
#include "cli/version.h"

namespace mixtral {

void add_reference_commands(cli::App& app) {
  const cli::App* const root = &app;
  auto words = std::make_shared<std::vector<std::string>>();
  cli::App* help = app.add_subcommand("help", "Explain a command, or list all");
  help->footer("Example: mixtral help data check\n");
  help->add_option("command", *words, "The command, such as data check");
  help->callback(
      [root, words] { fmt::print("{}", short_help(find_command(describe(*root), *words))); });

  auto shell = std::make_shared<std::string>();
  cli::App* completion = app.add_subcommand(
      "completion", "Print the script with which a shell completes commands and options");
  completion->footer(
      "Examples:\n"
      "  mixtral completion bash > ~/.local/share/bash-completion/completions/mixtral\n"
      "  mixtral completion zsh > ~/.zfunc/_mixtral\n"
      "  mixtral completion fish > ~/.config/fish/completions/mixtral.fish\n");
  completion->add_option("shell", *shell, "bash, zsh or fish")
      ->required()
      ->check(cli::IsMember({"bash", "zsh", "fish"}));
  completion->callback(
      [root, shell] { fmt::print("{}", completion_script(describe(*root), *shell)); });

  cli::App* man = app.add_subcommand("man", "Print the manual page of all commands");
  man->footer("Example: mixtral man | man -l -\n");
  man->callback([root] { fmt::print("{}", man_page(describe(*root), version())); });
}

}  // namespace mixtral
