#include "cli/tokenizer_template.h"

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/error.h"
#include "io/gguf.h"
#include "io/json.h"
#include "text/jinja_template.h"
#include "text/tokenizer_config.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using jinja::Value;

struct Options {
  std::string file, name;
  bool jsonl = false;
};

/// A template, and the tokens that it may name.
struct Loaded {
  std::string text, source;
  std::optional<std::string> bos, eos, unk, pad;
};

/// {"template", "bos_token", "eos_token"}, the last two may be null.
Loaded load_file(const fs::path& file) {
  const Json json = Json::load(file);
  Loaded loaded{json.at("template").as_string(), file.string(), {}, {}, {}, {}};
  const auto read = [&](const char* key, std::optional<std::string>& token) {
    if (const Json* value = json.find(key); value != nullptr && !value->is_null())
      token = value->as_string();
  };
  read("bos_token", loaded.bos);
  read("eos_token", loaded.eos);
  read("unk_token", loaded.unk);
  read("pad_token", loaded.pad);
  return loaded;
}

Loaded load_directory(const fs::path& directory, const std::string& name) {
  const TokenizerConfig config = read_tokenizer_config(directory);
  const std::string wanted = name.empty() ? "default" : name;
  std::string names;
  for (const TokenizerConfig::Template& item : config.templates) {
    if (item.name == wanted)
      return {item.text, item.source, config.bos, config.eos, config.unk, config.pad};
    names += (names.empty() ? "" : ", ") + item.name;
  }
  throw Error(fmt::format("{}: there is no chat template '{}' here; {}", directory.string(),
                          printable(wanted),
                          names.empty() ? "there is none at all" : "there are: " + names));
}

/// The variables of a row of input: its keys, and what transformers adds.
Value variables_of(const Json& row, const Loaded& loaded, const std::string& where) {
  Value variables = Value::dict();
  const auto token = [&](const char* key, const std::optional<std::string>& text) {
    if (text) variables.set(Value::of(key), Value::of(*text));
  };
  token("bos_token", loaded.bos);
  token("eos_token", loaded.eos);
  token("unk_token", loaded.unk);
  token("pad_token", loaded.pad);
  variables.set(Value::of("tools"), Value::none());
  variables.set(Value::of("documents"), Value::none());
  variables.set(Value::of("add_generation_prompt"), Value::of(false));
  for (const auto& [key, value] : row.members())
    variables.set(Value::of(key), Value::from_json(value));
  const Value* messages = variables.find(Value::of("messages"));
  if (messages == nullptr) throw Error(fmt::format("{}: there are no messages", where));
  variables.set(Value::of("messages"), template_messages(*messages, where));
  return variables;
}

void run_template(const Options& options) {
  std::error_code ignored;
  const Loaded loaded = fs::is_directory(options.file, ignored) || is_gguf_file(options.file)
                            ? load_directory(options.file, options.name)
                            : load_file(options.file);
  const JinjaTemplate chat(loaded.text, loaded.source);
  std::string line;
  for (uint64_t number = 1; std::getline(std::cin, line); ++number) {
    const std::string where = fmt::format("stdin:{}", number);
    nlohmann::ordered_json result;
    try {
      const Json row = Json::parse(line, where);
      result["text"] = to_valid_utf8(chat.render(variables_of(row, loaded, where)).text);
    } catch (const Error& error) {
      result = {{"error", to_valid_utf8(error.what())}};
    }
    const std::string text =
        options.jsonl || result.contains("error")
            ? result.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"
            : result["text"].get<std::string>();
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size())
      throw Error("cannot write to standard output; is the disk full or the reader gone?");
  }
}

}  // namespace

void add_tokenizer_template(cli::App& tokenizer) {
  auto options = std::make_shared<Options>();
  cli::App* command = tokenizer.add_subcommand(
      "template", "Conversations as a model's own chat template writes them");
  command->footer(
      "Standard input has a conversation a line: {\"messages\": [...], \"tools\", "
      "\"add_generation_prompt\"};\nfurther keys are variables of the template.\n\n"
      "Example:\n"
      "  mixtral tokenizer template --template models/hermes --jsonl < conversations.jsonl\n");
  command
      ->add_option("--template,--model,-m", options->file,
                   "A model's directory, a GGUF file, or a file {\"template\", \"bos_token\", "
                   "\"eos_token\"}")
      ->required();
  command->add_option("--name", options->name,
                      "Which of several templates of a directory, such as tool_use");
  command->add_flag("--jsonl", options->jsonl,
                    "A row {\"text\"} or {\"error\"} for each; otherwise the texts themselves");
  command->callback([options] { run_template(*options); });
}

}  // namespace mixtral
