#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/messages.h"
#include "base/threads.h"
#include "cli/commands.h"
#include "cli/data_command.h"
#include "cli/run_config.h"
#include "data/check.h"
#include "data/import_records.h"
#include "text/tokenizer.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

std::string duration(double seconds) {
  if (seconds < 120) return fmt::format("{:.0f} s", seconds);
  if (seconds < 7200) return fmt::format("{:.0f} min", seconds / 60);
  return fmt::format("{:.1f} h", seconds / 3600);
}

struct CheckCommandOptions {
  std::string data, tokenizer, fix, pack = "on", chat_template = "mistral-v1";
  CheckOptions check;
  int64_t vocab_size = 0, iters = 0, grad_accumulation = 1, shown_problems = 50;
  double tokens_per_second = 0;
  int threads = 0;
  bool no_bos = false, no_eos = false, quiet = false, json = false;
};

/// How long a run takes: steps, tokens a step, epochs.
struct RunEstimate {
  double tokens_per_step = 0, epochs = 0, seconds = 0;
};

RunEstimate estimate(const SplitReport& train, const CheckCommandOptions& options) {
  RunEstimate run;
  if (train.rows == 0) return run;
  const auto rows = static_cast<double>(options.check.batches.rows * options.grad_accumulation);
  const auto epoch_rows = static_cast<double>(train.rows);
  run.tokens_per_step = rows * static_cast<double>(train.arranged_tokens) / epoch_rows;
  run.epochs = options.iters > 0 ? static_cast<double>(options.iters) * rows / epoch_rows : 1;
  if (options.tokens_per_second > 0) {
    run.seconds =
        run.epochs * static_cast<double>(train.arranged_tokens) / options.tokens_per_second;
  }
  return run;
}

ordered_json to_json(const SplitReport& report) {
  ordered_json kinds = ordered_json::object();
  for (int k = 0; k < kRecordKinds; ++k) {
    const int64_t n = report.counts.kinds[static_cast<size_t>(k)];
    if (n > 0) kinds[std::string(record_kind_name(static_cast<RecordKind>(k)))] = n;
  }
  ordered_json problems = ordered_json::array();
  for (const Problem& problem : report.problems) {
    problems.push_back({{"line", problem.line}, {"message", problem.message}});
  }
  ordered_json sample{{"ids", ordered_json::array()},
                      {"learnt", ordered_json::array()},
                      {"bos", report.sample_bos}};
  for (const SampleToken& token : report.sample) {
    sample["ids"].push_back(token.id);
    sample["learnt"].push_back(token.learnt ? 1 : 0);
  }
  return {{"split", split_name(report.split)},
          {"file", report.path.string()},
          {"bytes", report.counts.bytes},
          {"records", report.counts.records},
          {"kinds", kinds},
          {"tokens", report.counts.tokens},
          {"label_tokens", report.counts.label_tokens},
          {"longest", report.counts.longest},
          {"context", report.context},
          {"rows", report.rows},
          {"arranged_tokens", report.arranged_tokens},
          {"long_records", report.long_records},
          {"dropped_tokens", report.dropped_tokens},
          {"unlabelled_records", report.unlabelled_records},
          {"spelled_controls", report.spelled_controls},
          {"duplicates", report.counts.duplicates},
          {"also_in_train", report.also_in_train},
          {"problem_count", report.problem_count},
          {"problems", problems},
          {"sample", sample}};
}

void print_sample(const SplitReport& report) {
  constexpr size_t kShown = 400;
  std::string line;
  bool learnt = false;
  for (size_t i = 0; i < report.sample.size() && i < kShown; ++i) {
    const SampleToken& token = report.sample[i];
    if (i == 0 || token.learnt != learnt) {
      if (i > 0) line += '\n';
      line += token.learnt ? "  learnt  " : "  masked  ";
      learnt = token.learnt;
    }
    line += token.label.empty() ? fmt::format(" {}", token.id)
                                : fmt::format(" {}({})", token.label, token.id);
  }
  put(fmt::format("\nsample of {}: {} tokens, {} BOS{}\n{}\n", split_name(report.split),
                  report.sample.size(), report.sample_bos,
                  report.sample_bos > 1 ? " (one is right; the text itself may hold another)" : "",
                  line));
  if (report.sample.size() > kShown) {
    put(fmt::format("  … and {} more tokens\n", report.sample.size() - kShown));
  }
}

void print_report(const CheckReport& report, const CheckCommandOptions& options) {
  for (const SplitReport& split : report.splits) {
    const CorpusCounts& counts = split.counts;
    std::string kinds;
    for (int k = 0; k < kRecordKinds; ++k) {
      const int64_t n = counts.kinds[static_cast<size_t>(k)];
      if (n > 0) {
        kinds += fmt::format("{}{} of {{{}}}", kinds.empty() ? "" : ", ", n,
                             record_kind_name(static_cast<RecordKind>(k)));
      }
    }
    put(fmt::format("{:<6}{}{}\n", split_name(split.split), split.path.string(),
                    split.part.empty() ? "" : fmt::format(" ({})", split.part)));
    put(fmt::format("  records       {}{}\n", counts.records,
                    kinds.empty() ? "" : " (" + kinds + ")"));
    put(fmt::format("  tokens        {} ({} learnt, {:.2f} bytes a token), longest record {}\n",
                    counts.tokens, counts.label_tokens,
                    counts.tokens == 0
                        ? 0.0
                        : static_cast<double>(counts.bytes) / static_cast<double>(counts.tokens),
                    counts.longest));
    bool pairs = false;
    for (int k = 0; k < kRecordKinds; ++k)
      pairs |=
          is_preference(static_cast<RecordKind>(k)) && counts.kinds[static_cast<size_t>(k)] > 0;
    const int64_t room = split.rows * split.context * (pairs ? 2 : 1);
    put(fmt::format(
        "  rows          {} of up to {} tokens ({}), {:.1f}% filled\n", split.rows, split.context,
        pairs ? "a pair each, both answers with the prompt" : "--pack " + options.pack,
        room == 0 ? 0.0
                  : 100 * static_cast<double>(split.arranged_tokens) / static_cast<double>(room)));
    put(fmt::format(
        "  truncations   {} records are longer than a row: {}\n", split.long_records,
        split.dropped_tokens > 0
            ? fmt::format("{} tokens are cut off (--context{})", split.dropped_tokens,
                          pairs ? " mends it" : ", or --pack on")
            : std::string(split.long_records == 0 ? "nothing is lost"
                                                  : "cut into windows, nothing is lost")));
    if (split.unlabelled_records > 0)
      put(fmt::format("  left out      {} {} have no label within a row: their prompt fills it\n",
                      split.unlabelled_records, pairs ? "pairs" : "records"));
    if (!split.spelled_controls.empty())
      put(fmt::format(
          "  control text  {} in the text: learnt as ordinary pieces, not as the control "
          "tokens; BOS\n                and EOS are added by themselves, so leave them "
          "out of the text\n",
          fmt::join(split.spelled_controls, ", ")));
    if (counts.duplicates > 0) {
      put(fmt::format("  duplicates    {} records occur more than once\n", counts.duplicates));
    }
    if (split.also_in_train > 0) {
      put(fmt::format("  leaks         {} records are in train, too: scores will flatter\n",
                      split.also_in_train));
    }
    if (split.problem_count > 0) {
      put(fmt::format("  problems      {}\n", split.problem_count));
      int64_t shown = 0;
      for (const Problem& problem : split.problems) {
        if (shown++ == options.shown_problems) break;
        put(fmt::format("    {}\n", problem.message));
      }
      if (split.problem_count > shown) {
        put(fmt::format("    and {} more (--problems N shows more of them)\n",
                        split.problem_count - shown));
      }
    }
  }
  const SplitReport& train = report.splits.front();
  if (train.rows > 0) {
    const RunEstimate run = estimate(train, options);
    put(fmt::format(
        "\nbatches of {} rows{}: {:.0f} tokens a step, {:.1f} steps an epoch\n",
        options.check.batches.rows,
        options.grad_accumulation > 1 ? fmt::format(" × {} accumulated", options.grad_accumulation)
                                      : std::string(),
        run.tokens_per_step, static_cast<double>(train.arranged_tokens) / run.tokens_per_step));
    if (options.iters > 0) {
      put(fmt::format("{} steps: {:.3g} tokens, {:.2f} epochs\n", options.iters,
                      run.epochs * static_cast<double>(train.arranged_tokens), run.epochs));
    }
    if (options.tokens_per_second > 0) {
      put(fmt::format("{} at {:.0f} tokens a second: {}\n",
                      options.iters > 0 ? "the run" : "one epoch", options.tokens_per_second,
                      duration(run.seconds)));
    }
    print_sample(train);
  }
}

void fix(const DataFiles& files, const CheckCommandOptions& options) {
  const std::filesystem::path out(options.fix);
  if (!files.single) std::filesystem::create_directories(out);
  for (Split split : kSplits) {
    const std::filesystem::path& path = files[split];
    if (path.empty()) continue;
    const auto target = files.single ? out : out / path.filename();
    const FixSummary summary =
        fix_data(RecordFile(path), target, options.check.corpus.encode.rules);
    messages::print("{}: {} lines kept, {} mended, {} dropped", target.string(), summary.kept,
                    summary.mended, summary.dropped);
  }
}

void run_check(CheckCommandOptions options) {
  EncodeOptions& encode = options.check.corpus.encode;
  encode.rules.chat_template = parse_chat_template(options.chat_template);
  encode.bos = !options.no_bos;
  encode.eos = !options.no_eos;
  options.check.batches.packing = parse_packing(options.pack);
  std::unique_ptr<Tokenizer> tokenizer;
  if (options.tokenizer.empty()) {
    if (!options.quiet) {
      messages::print("no --tokenizer: text is counted in bytes (the tokenizer \"bytes\")");
    }
    tokenizer = load_tokenizer("bytes");
  } else {
    tokenizer = load_tokenizer(options.tokenizer);
  }
  if (options.vocab_size > 0) {
    encode.rules.vocab_size = options.vocab_size;
  } else if (!options.tokenizer.empty()) {
    encode.rules.vocab_size = tokenizer->vocab_size();
  }
  const DataFiles files = DataFiles::find(options.data);
  ThreadPool pool(options.threads);
  CheckReport report;
  {
    ProgressLine line(options.quiet);
    options.check.corpus.progress = [&](int64_t done, int64_t all) {
      line.show("reading", static_cast<double>(done) / static_cast<double>(all));
    };
    options.check.corpus.problem_limit = std::max<int64_t>(options.shown_problems, 1000);
    report = check_data(files, tokenizer.get(), options.check, pool);
  }
  // Ids of an unknown vocabulary are shown as numbers.
  for (SplitReport& split : report.splits) {
    if (!options.tokenizer.empty()) break;
    if (split.counts.kinds[static_cast<size_t>(RecordKind::text)] > 0) continue;
    const int64_t ids = split.counts.kinds[static_cast<size_t>(RecordKind::ids)] +
                        split.counts.kinds[static_cast<size_t>(RecordKind::preference_ids)];
    if (ids == 0) continue;
    for (SampleToken& token : split.sample) token.label.clear();
    split.sample_bos = 0;
  }
  if (options.json) {
    ordered_json json{{"data", options.data}, {"problem_count", report.problem_count()}};
    json["splits"] = ordered_json::array();
    for (const SplitReport& split : report.splits) json["splits"].push_back(to_json(split));
    const RunEstimate run = estimate(report.splits.front(), options);
    json["tokens_per_step"] = run.tokens_per_step;
    json["epochs"] = run.epochs;
    if (options.tokens_per_second > 0) json["seconds"] = run.seconds;
    put(json.dump() + "\n");
  } else {
    print_report(report, options);
  }
  if (!options.fix.empty()) {
    fix(files, options);
  } else if (report.problem_count() > 0) {
    std::fflush(stdout);
    std::string advice;
    for (const SplitReport& split : report.splits)
      if (split.problem_count > 0 && advice.empty()) advice = import_advice(split.path);
    messages::print("mixtral: {} problems; {}", report.problem_count(),
                    advice.empty() ? "--fix OUT writes a corrected copy" : advice);
    throw ExitStatus{1};
  }
}

}  // namespace

void add_data_check(cli::App& parent) {
  auto options = std::make_shared<CheckCommandOptions>();
  cli::App* command = parent.add_subcommand(
      "check", "Count records and tokens, find every bad line, and show what training will see");
  command->footer(
      "Examples:\n"
      "  mixtral data check --data data/pretrain_data --tokenizer tok --batch-size 16 --iters "
      "1000\n"
      "  mixtral data check --data data/finetune_data --tokenizer tok --mask-prompt --sample 3\n"
      "  mixtral data check --data bad.jsonl --fix good.jsonl\n");
  command
      ->add_option("--data,data", options->data,
                   "A directory with train, val and test, or one file")
      ->required();
  command->add_option("--tokenizer", options->tokenizer, "Tokenizer file or model directory");
  command->add_option("--fix", options->fix,
                      "Write a corrected copy: a file, or a directory for one");
  command
      ->add_option("--context,-c", options->check.batches.context,
                   "Tokens of a row; unless it is given, pairs and --pack off have rows as long as "
                   "the longest record")
      ->check(count_between(1, kMostContext))
      ->default_str("256");
  command->add_option("--batch-size", options->check.batches.rows, "Rows of a batch")
      ->check(count_between(1, kMostRows))
      ->default_str("8");
  command->add_option("--grad-accumulation", options->grad_accumulation, "Batches of a step")
      ->check(count_between(1, kMostRows))
      ->default_str("1");
  command->add_option("--pack", options->pack, "off, on, or fill (rows of exactly --context)")
      ->default_str("on");
  command->add_option("--iters", options->iters, "Steps, to see how many epochs they are")
      ->check(at_least(1));
  command
      ->add_option("--tokens-per-second", options->tokens_per_second,
                   "Speed of training, to estimate its time")
      ->check(between(0.001, 1e12));
  command->add_flag("--mask-prompt", options->check.corpus.encode.mask_prompt,
                    "Texts: learn only what follows the response marker");
  command
      ->add_option("--response-marker", options->check.corpus.encode.response_marker,
                   "What the answer follows in a text")
      ->default_str("###Assistant:");
  command->add_option("--chat-template", options->chat_template, "Of messages")
      ->default_str("mistral-v1");
  command->add_flag("--no-bos", options->no_bos, "No BOS in front of a record");
  command->add_flag("--no-eos", options->no_eos, "No EOS after a record");
  command
      ->add_option("--vocab-size", options->vocab_size,
                   "Ids must be below (otherwise the tokenizer's)")
      ->check(at_least(1));
  command
      ->add_option("--validation-fraction", options->check.validation_fraction,
                   "Share of one file, or of a folder of texts, that validates")
      ->check(between(0, 0.99))
      ->default_str("0.1");
  command->add_option("--sample", options->check.sample, "Number of the record to show, from 0")
      ->check(at_least(0))
      ->default_str("0");
  command->add_option("--problems", options->shown_problems, "Show at most so many of a file")
      ->check(at_least(0))
      ->default_str("50");
  command->add_option("--threads,-t", options->threads, "Threads; 0: one a core")->default_str("0");
  command->add_flag("--quiet,-q", options->quiet, "No notes on standard error");
  command->add_flag("--json", options->json, "As JSON");
  command->callback([options, command] {
    options->check.whole_records = command->count("--context") == 0;
    run_check(*options);
  });
}

}  // namespace mixtral
