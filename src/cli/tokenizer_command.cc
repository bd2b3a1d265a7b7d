#include "cli/tokenizer_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/base64.h"
#include "base/error.h"
#include "base/file.h"
#include "base/messages.h"
#include "cli/tokenizer_template.h"
#include "io/json.h"
#include "text/byte_tokenizer.h"
#include "text/sentencepiece_tokenizer.h"
#include "text/sentencepiece_training.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

void put(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) {
    throw Error("cannot write to standard output; is the disk full or the reader gone?");
  }
}

std::string read_all_input() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

/// Calls row(text, "stdin:LINE") for each line of standard input.
void for_each_row(const std::function<void(const std::string&, const std::string&)>& row) {
  std::string line;
  for (uint64_t number = 1; std::getline(std::cin, line); ++number) {
    row(line, fmt::format("stdin:{}", number));
  }
}

// ---- train

struct TokenizerTrainOptions {
  std::vector<std::string> data;
  std::string kind = "bpe", out;
  SentencePieceTraining settings;
  bool no_split_digits = false, no_specials = false, quiet = false, json = false;
};

/// Where --out puts a tokenizer: a .model file, or the usual files in a directory.
void write_model(const std::string& model, const std::filesystem::path& out) {
  if (out.extension() == ".model") {
    write_file(out, model);
    return;
  }
  std::filesystem::create_directories(out);
  SentencePieceTokenizer(model, out.string()).save(out);
}

void run_train(const TokenizerTrainOptions& options) {
  if (options.kind == "bytes") {
    if (!options.data.empty()) {
      throw UsageError("--kind bytes learns nothing from text: drop --data");
    }
    const ByteTokenizer tokenizer(options.no_specials ? ByteTokenizer::Specials::none
                                                      : ByteTokenizer::Specials::bos_eos);
    std::filesystem::create_directories(options.out);
    tokenizer.save(options.out);
    if (!options.quiet) messages::print("{}: {}", options.out, tokenizer.description());
    if (options.json) {
      put(nlohmann::ordered_json{{"out", options.out}, {"vocab_size", tokenizer.vocab_size()}}
              .dump() +
          "\n");
    }
    return;
  }
  if (options.no_specials) throw UsageError("--no-specials is for --kind bytes only");
  if (options.data.empty()) {
    throw UsageError("--data is missing: give the JSONL or text files to learn from");
  }
  SentencePieceTraining settings = options.settings;
  settings.split_digits = !options.no_split_digits;
  const auto start = std::chrono::steady_clock::now();
  const auto trained = train_sentencepiece({options.data.begin(), options.data.end()}, settings);
  write_model(trained.model, options.out);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!options.quiet) {
    messages::print("{}: {} pieces from {:.1f} MB in {} lines{}, {:.1f} s", options.out,
                    settings.vocab_size, static_cast<double>(trained.sampled_bytes) / 1e6,
                    trained.sampled_lines,
                    trained.sampled_bytes < trained.text_bytes
                        ? fmt::format(" (sampled from {:.1f} MB)",
                                      static_cast<double>(trained.text_bytes) / 1e6)
                        : "",
                    seconds);
  }
  if (options.json) {
    put(nlohmann::ordered_json{{"out", options.out},
                               {"vocab_size", settings.vocab_size},
                               {"text_bytes", trained.text_bytes},
                               {"text_lines", trained.text_lines},
                               {"sampled_bytes", trained.sampled_bytes},
                               {"sampled_lines", trained.sampled_lines},
                               {"seconds", seconds}}
            .dump() +
        "\n");
  }
}

void add_train(cli::App& parent) {
  auto options = std::make_shared<TokenizerTrainOptions>();
  cli::App* command = parent.add_subcommand(
      "train", "Learn a tokenizer from text: a SentencePiece BPE model like Mixtral's");
  command->footer(
      "Examples:\n"
      "  mixtral tokenizer train --data data/pretrain_data/train.jsonl --vocab-size 4096 --out "
      "tok\n"
      "  mixtral tokenizer train --data book.txt --vocab-size 1000 --no-split-digits --out "
      "book.model\n"
      "  mixtral tokenizer train --kind bytes --out tok-bytes\n");
  command->add_option("--data,data", options->data,
                      "JSONL records, text files, or directories of them (their train.jsonl)");
  command->add_option("--out,-o", options->out, "Directory, or a file named *.model")->required();
  command->add_option("--kind", options->kind, "bpe, or bytes (a token a byte; needs no data)")
      ->check(cli::IsMember({"bpe", "bytes"}))
      ->capture_default_str();
  command->add_option("--vocab-size", options->settings.vocab_size, "Pieces, 259 special ones too")
      ->capture_default_str();
  command
      ->add_option("--character-coverage", options->settings.character_coverage,
                   "Share of the text's characters that get a piece; others become bytes")
      ->capture_default_str();
  command
      ->add_option("--sample-bytes", options->settings.sample_bytes,
                   "Learn from a sample of at most this much text")
      ->capture_default_str();
  command->add_option("--seed,-s", options->settings.seed, "Seed of the sample")
      ->capture_default_str();
  command->add_flag("--no-split-digits", options->no_split_digits,
                    "Let pieces hold several digits");
  command->add_flag("--no-specials", options->no_specials, "With --kind bytes: no BOS and EOS");
  command->add_flag("--quiet,-q", options->quiet, "No summary on stderr");
  command->add_flag("--json", options->json, "The summary as JSON on stdout");
  command->callback([options] { run_train(*options); });
}

// ---- encode

struct TokenizerEncodeOptions {
  std::string tokenizer;
  std::optional<std::string> text;
  bool jsonl = false, bos = false, special = false, parse_special = false;
};

void add_tokenizer_option(cli::App& command, std::string& tokenizer) {
  command
      .add_option("--tokenizer,--model,-m", tokenizer,
                  "A tokenizer.model, tokenizer.json or byte_tokenizer.json, a directory with one, "
                  "or bytes")
      ->required();
}

void run_encode(const TokenizerEncodeOptions& options) {
  if (options.jsonl && options.text) {
    throw UsageError("--jsonl reads rows from standard input: drop --text");
  }
  const auto tokenizer = load_tokenizer(options.tokenizer);
  if (options.bos && options.special) {
    throw UsageError("--special adds BOS where the tokenizer's files ask for it: drop --bos");
  }
  if (options.bos && tokenizer->bos_id() < 0) {
    throw UsageError(fmt::format("--bos: {} has no BOS token", options.tokenizer));
  }
  const auto encode = [&](std::string_view text) {
    std::vector<int32_t> ids = options.parse_special ? tokenizer->encode_prompt(text)
                                                     : tokenizer->encode_like_library(text);
    if (options.special) return tokenizer->with_special(std::move(ids));
    if (options.bos) ids.insert(ids.begin(), tokenizer->bos_id());
    return ids;
  };
  if (options.jsonl) {
    for_each_row([&](const std::string& line, const std::string& where) {
      const Json row = Json::parse(line, where);
      put(fmt::format("{{\"ids\":[{}]}}\n", fmt::join(encode(row.at("text").as_string()), ",")));
    });
  } else {
    put(fmt::format("{}\n",
                    fmt::join(encode(options.text ? *options.text : read_all_input()), ",")));
  }
}

void add_encode(cli::App& parent) {
  auto options = std::make_shared<TokenizerEncodeOptions>();
  cli::App* command =
      parent.add_subcommand("encode", "Text to token ids, on one line; no BOS unless asked for");
  command->footer(
      "Examples:\n"
      "  mixtral tokenizer encode --tokenizer tok --text \"Once upon a time\" --bos\n"
      "  mixtral tokenizer encode --tokenizer tok < story.txt\n"
      "  mixtral tokenizer encode --tokenizer tok --jsonl < texts.jsonl > ids.jsonl\n");
  add_tokenizer_option(*command, options->tokenizer);
  command->add_option("--text,-p,text", options->text,
                      "The text; standard input, all of it, otherwise");
  command->add_flag("--jsonl", options->jsonl,
                    R"(Standard input has {"text"} rows; write a row {"ids"} for each)");
  command->add_flag("--bos", options->bos, "Put BOS in front");
  command->add_flag("--special", options->special,
                    "Put around the text what Hugging Face's tokenizer does: BOS, often, or EOS");
  command->add_flag("--parse-special", options->parse_special,
                    "Take control tokens that are spelled out (<s>, [INST]) for these tokens; the "
                    "added tokens of Hugging Face's files always are");
  command->callback([options] { run_encode(*options); });
}

// ---- decode

struct DecodeOptions {
  std::string tokenizer;
  std::optional<std::string> ids;
  bool jsonl = false;
};

int32_t checked_id(int64_t id, const Tokenizer& tokenizer, const std::string& where) {
  if (id < 0 || id >= tokenizer.vocab_size()) {
    throw Error(fmt::format("{}: the token id {} is outside the tokenizer's 0 to {}", where, id,
                            tokenizer.vocab_size() - 1));
  }
  return static_cast<int32_t>(id);
}

/// Ids between commas, spaces or line ends.
std::vector<int32_t> parse_id_list(std::string_view text, const Tokenizer& tokenizer,
                                   const std::string& where) {
  constexpr std::string_view separators = ", \t\r\n";
  std::vector<int32_t> ids;
  while (true) {
    const size_t begin = text.find_first_not_of(separators);
    if (begin == std::string_view::npos) return ids;
    text.remove_prefix(begin);
    const std::string_view word = text.substr(0, text.find_first_of(separators));
    text.remove_prefix(word.size());
    int64_t id = -1;
    const auto [end, code] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (code != std::errc() || end != word.data() + word.size()) {
      throw Error(
          fmt::format("{}: '{}' is no token id; expected whole numbers between commas or "
                      "spaces",
                      where, printable(word)));
    }
    ids.push_back(checked_id(id, tokenizer, where));
  }
}

void decode_row(const std::string& line, const std::string& where, const Tokenizer& tokenizer) {
  const Json row = Json::parse(line, where);
  std::vector<int32_t> ids;
  for (const Json& id : row.at("ids").items()) {
    ids.push_back(checked_id(id.as_int(), tokenizer, id.where()));
  }
  const std::string bytes = tokenizer.decode(ids);
  nlohmann::ordered_json result{{"text", to_valid_utf8(bytes)}};
  // JSON text cannot hold other bytes than UTF-8, so they are given beside it.
  if (!is_valid_utf8(bytes)) {
    result["bytes"] = base64(bytes);
    messages::print(
        "{}: the bytes are not UTF-8: \"text\" has U+FFFD in their place, \"bytes\" has them "
        "in base64",
        where);
  }
  put(result.dump() + "\n");
}

void run_decode(const DecodeOptions& options) {
  if (options.jsonl && options.ids) {
    throw UsageError("--jsonl reads rows from standard input: drop --ids");
  }
  const auto tokenizer = load_tokenizer(options.tokenizer);
  if (options.jsonl) {
    for_each_row([&](const std::string& line, const std::string& where) {
      decode_row(line, where, *tokenizer);
    });
    return;
  }
  put(tokenizer->decode(parse_id_list(options.ids ? *options.ids : read_all_input(), *tokenizer,
                                      options.ids ? "--ids" : "stdin")));
  if (::isatty(STDOUT_FILENO) != 0) put("\n");  // elsewhere the output is exactly the text
}

void add_decode(cli::App& parent) {
  auto options = std::make_shared<DecodeOptions>();
  cli::App* command = parent.add_subcommand("decode", "Token ids to text, byte for byte");
  command->footer(
      "Examples:\n"
      "  mixtral tokenizer decode --tokenizer tok --ids 300,301,302\n"
      "  mixtral tokenizer decode --tokenizer tok < ids.txt\n"
      "  mixtral tokenizer decode --tokenizer tok --jsonl < ids.jsonl > texts.jsonl\n");
  add_tokenizer_option(*command, options->tokenizer);
  command->add_option("--ids", options->ids, "Ids such as 5,7,9; standard input otherwise");
  command->add_flag("--jsonl", options->jsonl,
                    R"(Standard input has {"ids"} rows; write a row {"text"} for each)");
  command->callback([options] { run_decode(*options); });
}

// ---- info

nlohmann::ordered_json sentencepiece_details(const SentencePieceModel& model) {
  constexpr std::array names = {"normal", "unknown", "control", "user_defined", "unused", "byte"};
  nlohmann::ordered_json types = nlohmann::ordered_json::object();
  for (size_t type = 0; type < names.size(); ++type) {
    const auto count = std::count_if(model.pieces.begin(), model.pieces.end(), [&](const auto& p) {
      return static_cast<size_t>(p.type) == type + 1;
    });
    if (count > 0) types[names[type]] = count;
  }
  return {{"pieces_by_type", types},
          {"normalizer", model.normalizer},
          {"byte_fallback", model.byte_fallback},
          {"add_dummy_prefix", model.add_dummy_prefix},
          {"remove_extra_whitespaces", model.remove_extra_whitespaces}};
}

nlohmann::ordered_json tokenizer_details(const Tokenizer& tokenizer) {
  nlohmann::ordered_json details{{"kind", tokenizer.kind()},
                                 {"description", tokenizer.description()},
                                 {"vocab_size", tokenizer.vocab_size()}};
  nlohmann::ordered_json special = nlohmann::ordered_json::object();
  const auto add_special = [&](const char* name, int32_t id) {
    if (id >= 0) special[name] = {{"id", id}, {"piece", tokenizer.label(id)}};
  };
  add_special("unk", tokenizer.unk_id());
  add_special("bos", tokenizer.bos_id());
  add_special("eos", tokenizer.eos_id());
  add_special("pad", tokenizer.pad_id());
  details["special"] = special;
  if (const auto* model = dynamic_cast<const SentencePieceTokenizer*>(&tokenizer)) {
    details.update(sentencepiece_details(model->model()));
  }
  // Eight pieces spread over the vocabulary, past the special and byte pieces where there are more.
  nlohmann::ordered_json examples = nlohmann::ordered_json::object();
  const int32_t size = tokenizer.vocab_size(), begin = size > 600 ? 259 : 0;
  for (int32_t i = 0; i < 8; ++i) {
    const auto id = static_cast<int32_t>(begin + int64_t{size - begin} * i / 8);
    examples[std::to_string(id)] = tokenizer.label(id);
  }
  details["examples"] = examples;
  return details;
}

std::string for_people(const nlohmann::ordered_json& value) {
  if (value.is_string()) return value.get_ref<const std::string&>();
  if (value.is_boolean()) return value == true ? "yes" : "no";
  if (!value.is_object()) return value.dump();
  std::string line;
  for (const auto& [key, item] : value.items()) {
    line += fmt::format(
        "{}{} {}", line.empty() ? "" : ", ", key,
        item.is_object() ? fmt::format("{} {}", for_people(item["id"]), for_people(item["piece"]))
                         : for_people(item));
  }
  return line.empty() ? "none" : line;
}

void add_info(cli::App& parent) {
  struct Options {
    std::string tokenizer;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  cli::App* command = parent.add_subcommand("info", "What a tokenizer is and holds");
  command->footer(
      "Examples:\n"
      "  mixtral tokenizer info --tokenizer tok\n"
      "  mixtral tokenizer info --tokenizer bytes --json\n");
  add_tokenizer_option(*command, options->tokenizer);
  command->add_flag("--json", options->json, "As JSON");
  command->callback([options] {
    const auto details = tokenizer_details(*load_tokenizer(options->tokenizer));
    if (options->json) {
      put(details.dump() + "\n");
      return;
    }
    for (const auto& [key, value] : details.items()) {
      std::string title = key;
      std::replace(title.begin(), title.end(), '_', ' ');
      put(fmt::format("{:<26}{}\n", title, for_people(value)));
    }
  });
}

}  // namespace

void add_tokenizer_command(cli::App& app) {
  cli::App* command =
      app.add_subcommand("tokenizer", "Train tokenizers, encode and decode text with them");
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  mixtral tokenizer train --data data/pretrain_data/train.jsonl --vocab-size 4096 --out "
      "tok\n"
      "  mixtral tokenizer encode --tokenizer tok --text \"Once upon a time\"\n"
      "  mixtral tokenizer info --tokenizer tok\n");
  add_train(*command);
  add_encode(*command);
  add_decode(*command);
  add_tokenizer_template(*command);
  add_info(*command);
}

}  // namespace mixtral
