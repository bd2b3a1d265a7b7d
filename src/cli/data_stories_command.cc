#include <fmt/format.h>

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
#include "stories/files.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

}  // namespace

void add_data_stories(cli::App& parent) {
  struct Options {
    stories::StoryFilesOptions files;
    uint64_t bytes = 20'000'000;
    std::string out, form = "text", world = "full";
    int threads = 0;
    bool quiet = false, json = false;
  };
  auto options = std::make_shared<Options>();
  cli::App* command = parent.add_subcommand("stories",
                                            "Generate the built-in corpus: stories from a "
                                            "simulated world to pretrain on, questions about "
                                            "such stories to fine-tune on, and preference pairs");
  command->footer(
      "Examples:\n"
      "  mixtral data stories --out data --size 20MB\n"
      "  mixtral data stories --out data --questions 5000 --turns 4 --preferences 0\n"
      "  mixtral data stories --out more --seed 2 --form completion\n");
  command
      ->add_option("--out,-o", options->out,
                   "Directory; gets pretrain_data, finetune_data and preference_data")
      ->required();
  command->add_option("--size", options->bytes, "Story text over all splits, such as 20MB")
      ->transform(cli::AsSizeValue(true))
      ->default_str("20MB");
  command
      ->add_option(
          "--world", options->world,
          "full: 24 plots, nine kinds of questions; small: one plain kind of story, which a "
          "small model learns to tell in minutes, and three kinds of questions")
      ->check(cli::IsMember({"full", "small"}))
      ->default_str("full");
  command->add_option("--seed,-s", options->files.seed, "The same seed gives the same bytes")
      ->default_str("1");
  command
      ->add_option(
          "--questions", options->files.questions,
          "Questions for training (with --turns, conversations of several); a twentieth of "
          "it each for val and test; 0: none")
      ->check(at_least(0))
      ->default_str("20000");
  command
      ->add_option(
          "--preferences", options->files.preferences,
          "Preference pairs for training; a twentieth of it each for val and test; 0: none")
      ->check(at_least(0))
      ->default_str("10000");
  command
      ->add_option("--turns", options->files.turns,
                   "Questions about each story to train on, at most; from 2, a conversation: "
                   "{\"messages\"}, to be read with --chat-template seed")
      ->check(cli::Range(1, 20))
      ->default_str("1");
  command
      ->add_option("--form", options->form,
                   "Questions as text ({\"text\"}) or completion ({\"prompt\", \"completion\"})")
      ->check(cli::IsMember({"text", "completion"}))
      ->default_str("text");
  command->add_option("--threads,-t", options->threads, "Threads; 0: one a core")->default_str("0");
  command->add_flag("--quiet,-q", options->quiet, "No summary");
  command->add_flag("--json", options->json, "The summary as JSON on standard output");
  command->callback([options] {
    if (options->bytes < 1000 || options->bytes > uint64_t{1} << 40) {
      throw UsageError("--size must be between 1KB and 1TB");
    }
    if (options->files.turns > 1 && options->form != "text") {
      throw UsageError(fmt::format(
          "--form {}: with --turns {}, training questions are conversations ({{\"messages\"}}); "
          "leave one of the two out",
          options->form, options->files.turns));
    }
    stories::StoryFilesOptions files = options->files;
    files.out = options->out;
    files.world = options->world == "small" ? stories::WorldSize::small : stories::WorldSize::full;
    files.bytes = static_cast<int64_t>(options->bytes);
    files.form =
        options->form == "text" ? stories::QuestionForm::text : stories::QuestionForm::completion;
    const auto start = std::chrono::steady_clock::now();
    ThreadPool pool(options->threads);
    stories::StoryFilesSummary summary;
    {
      ProgressLine line(options->quiet);
      files.progress = [&](double share) { line.show("stories", share); };
      summary = write_story_files(files, pool);
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (files.questions > 0) {  // for mixtral evaluate --exact-match
      const auto baselines = [](const stories::ChanceLevel& chance) {
        return ordered_json{{"guess", chance.guess()},
                            {"most_common", chance.most_common()},
                            {"last_mentioned", chance.last_mentioned()}};
      };
      ordered_json chance = baselines(summary.chance);
      for (int k = 0; k < stories::kQuestionKinds; ++k) {
        const stories::ChanceLevel& of_kind = summary.chance_of_kind[static_cast<size_t>(k)];
        if (of_kind.count() > 0)
          chance["kinds"][question_kind_name(static_cast<stories::QuestionKind>(k))] =
              baselines(of_kind);
      }
      write_file(std::filesystem::path(options->out) / "finetune_data" / "chance.json",
                 chance.dump() + "\n");
    }
    if (options->json) {
      ordered_json json{{"out", options->out}, {"seed", files.seed}};
      for (Split split : kSplits) {
        const auto s = static_cast<size_t>(split);
        json[split_name(split)] = {{"stories", summary.stories[s]},
                                   {"bytes", summary.bytes[s]},
                                   {"words", summary.words[s]},
                                   {"questions", summary.questions[s]},
                                   {"conversations", summary.conversations[s]},
                                   {"preferences", summary.preferences[s]}};
      }
      json["chance"] = {{"guess", summary.chance.guess()},
                        {"most_common", summary.chance.most_common()},
                        {"last_mentioned", summary.chance.last_mentioned()}};
      put(json.dump() + "\n");
    }
    if (options->quiet) return;
    messages::print("{}  (seed {}, {:.1f} s)", options->out, files.seed, seconds);
    messages::print("{:<18}{:>10}{:>10}{:>10}", "", "train", "val", "test");
    auto row = [&](const char* name, const int64_t(&values)[3]) {
      messages::print("{:<18}{:>10}{:>10}{:>10}", name, values[0], values[1], values[2]);
    };
    row("stories", summary.stories);
    row("  words", summary.words);
    row("  bytes", summary.bytes);
    if (files.questions > 0 && files.turns > 1) row("conversations", summary.conversations);
    if (files.questions > 0) row("questions", summary.questions);
    if (files.preferences > 0) row("preference pairs", summary.preferences);
    messages::lines(
        "\nNo combination of hero, plot, thing and place, and no text, is in two splits.\n"
        "  pretrain_data    stories of 60 to 250 words: {\"text\"}\n");
    if (files.questions > 0) {
      messages::lines(fmt::format(
          "  finetune_data    \"###user: story, question ###Assistant: answer\"{}; answers are\n"
          "                   scored by exact match. Without reading, a guess among the "
          "answers that\n"
          "                   the story offers is right {:.1f}% of the time, always the most "
          "common answer\n"
          "                   {:.1f}%, the last one mentioned {:.1f}% (test questions)\n",
          options->form == "text" ? "" : " in two parts", 100 * summary.chance.guess(),
          100 * summary.chance.most_common(), 100 * summary.chance.last_mentioned()));
      if (files.turns > 1) {
        messages::print(
            "                   train: conversations of up to {} questions about a story: "
            "{{\"messages\"}}",
            files.turns);
      }
    }
    if (files.preferences > 0) {
      messages::print("  preference_data  {{\"prompt\", \"chosen\", \"rejected\"}}");
    }
  });
}

}  // namespace mixtral
