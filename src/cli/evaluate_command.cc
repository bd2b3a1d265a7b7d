#include "cli/evaluate_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/messages.h"
#include "cli/evaluate_stories.h"
#include "cli/run_config.h"
#include "cli/scoring.h"
#include "eval/evaluate.h"
#include "eval/exact_match.h"
#include "eval/expert_report.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kAnswerTokens = 32;

struct EvaluateOptions : ScoringOptions {
  bool exact_match = false;
  std::string response_marker = "###Assistant:";
  int64_t limit = 0, show = 0, stories = 0;
  std::optional<int64_t> max_tokens;
  std::optional<double> temperature;
};

constexpr int64_t kParallel = 32;  // questions of --exact-match that are answered at once

/// How often one is right without reading, by the rule.
using Baselines = std::vector<std::pair<std::string, double>>;

/// The baselines that `mixtral data stories` leaves beside its questions, where there are any.
struct KnownBaselines {
  Baselines all;
  std::map<std::string, double> guess_by_kind;
};
KnownBaselines known_baselines(const std::filesystem::path& file) {
  const std::filesystem::path note = file.parent_path() / "chance.json";
  KnownBaselines known;
  std::error_code error;
  if (!std::filesystem::exists(note, error)) return known;
  const Json json = Json::load(note, {.bytes = 1 << 16, .depth = 4});
  for (const auto& [name, value] : json.members()) {
    if (!value.is_object()) {
      known.all.emplace_back(name, value.as_double());
      continue;
    }
    for (const auto& [kind, baselines] : value.members())
      known.guess_by_kind[kind] = baselines.at("guess").as_double();
  }
  return known;
}

/// What a baseline does, in words.
std::string baseline_text(const std::string& name) {
  if (name == "one_answer") return "always give the most common answer of these";
  if (name == "guess") return "pick any candidate that the story offers";
  if (name == "most_common") return "always give the most common answer to such a question";
  if (name == "last_mentioned") return "pick the last-mentioned candidate";
  return name;
}

/// Right answers of one kind of question.
struct KindScore {
  int64_t right = 0, count = 0;
  double share() const { return static_cast<double>(right) / static_cast<double>(count); }
};
std::map<std::string, KindScore> scores_by_kind(const std::vector<ExactQuestion>& questions,
                                                const ExactMatch& result) {
  std::map<std::string, KindScore> scores;
  for (size_t i = 0; i < questions.size(); ++i) {
    if (questions[i].kind.empty()) continue;
    KindScore& score = scores[questions[i].kind];
    ++score.count;
    score.right += result.answers[i].right;
  }
  return scores;
}

void run_exact_match(const EvaluateOptions& o) {
  const ModelSource source = open_source(o.common, {o.model, o.adapter, o.tokenizer});
  const auto tokenizer = source.require_tokenizer();
  const ModelConfig& config = source.config();
  require_positions(o.context, config);
  QuestionRules rules;
  rules.response_marker = o.response_marker;
  rules.records.vocab_size = config.vocab_size;
  if (!o.chat_template.empty())
    rules.records.chat_template = parse_chat_template(o.chat_template);
  else if (const auto noted = source.chat_template())
    rules.records.chat_template = *noted;
  const std::filesystem::path file = scored_file(o);
  const auto questions = read_questions(file, *tokenizer, rules, o.limit);
  int64_t longest = 0;
  for (const ExactQuestion& question : questions)
    longest = std::max(longest, static_cast<int64_t>(question.prompt.size()));
  const int64_t answer_tokens = o.max_tokens.value_or(kAnswerTokens);
  const int64_t limit = o.context > 0 ? o.context : config.max_positions;
  const int64_t parallel = std::min(kParallel, static_cast<int64_t>(questions.size()));
  OpenOptions options = o.common.open_options(std::min(longest + answer_tokens, limit), parallel);
  options.chunk = kPatientStepTokens;
  const OpenedModel open = open_model(o.common, source, options);
  Engine::Options engine_options = open.engine_options();
  engine_options.sequences = parallel;
  Engine engine(*open.backend, *open.model, engine_options);
  const bool terminal = !o.common.quiet && ::isatty(STDERR_FILENO) != 0;
  const auto start = std::chrono::steady_clock::now();
  const ExactMatch result =
      exact_match(engine, *tokenizer, questions,
                  {.max_tokens = answer_tokens, .stop_ids = config.eos_ids}, [&](int64_t done) {
                    if (terminal)
                      messages::redraw(fmt::format("{} of {} questions", done, questions.size()));
                  });
  if (terminal) messages::clear();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  KnownBaselines baselines = known_baselines(file);
  baselines.all.emplace_back("one_answer", most_common_share(questions));
  const auto by_kind = scores_by_kind(questions, result);
  if (o.common.json) {
    ordered_json json{{"exact_match", result.share()},
                      {"right", result.right},
                      {"questions", questions.size()},
                      {"chance", ordered_json::object()},
                      {"seconds", seconds}};
    for (const auto& [name, value] : baselines.all) json["chance"][name] = value;
    for (const auto& [kind, score] : by_kind) {
      json["kinds"][kind] = {{"right", score.right}, {"questions", score.count}};
      if (const auto guess = baselines.guess_by_kind.find(kind);
          guess != baselines.guess_by_kind.end())
        json["kinds"][kind]["chance"] = guess->second;
    }
    json["answers"] = ordered_json::array();
    for (size_t i = 0; i < questions.size(); ++i)
      json["answers"].push_back({{"expected", questions[i].answer},
                                 {"given", result.answers[i].given},
                                 {"right", result.answers[i].right}});
    fmt::print("{}\n", json.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
    return;
  }
  for (size_t i = 0; i < questions.size() && static_cast<int64_t>(i) < o.show; ++i)
    fmt::print("{}\n  expected  {}\n  given     {}{}\n", questions[i].text, questions[i].answer,
               result.answers[i].given, result.answers[i].right ? "" : "   (wrong)");
  fmt::print("exact match    {:.1f}% ({} of {} questions)\n", 100 * result.share(), result.right,
             questions.size());
  size_t width = 0;
  for (const auto& [kind, score] : by_kind) width = std::max(width, kind.size());
  for (const auto& [kind, score] : by_kind) {
    const auto guess = baselines.guess_by_kind.find(kind);
    fmt::print("  {:<{}} {:.1f}% ({} of {}){}\n", kind, width, 100 * score.share(), score.right,
               score.count,
               guess == baselines.guess_by_kind.end()
                   ? ""
                   : fmt::format(", a guess {:.1f}%: {:.1f} times chance", 100 * guess->second,
                                 score.share() / guess->second));
  }
  for (const auto& [name, value] : baselines.all) {
    fmt::print("baseline {:>5.1f}%: {}", 100 * value, baseline_text(name));
    if (name == "guess" && value > 0)
      fmt::print("; the model is right {:.1f} times as often", result.share() / value);
    fmt::print("\n");
  }
  fmt::print("{:.1f} questions a second\n", static_cast<double>(questions.size()) / seconds);
}

void run_evaluate(const ScoringOptions& o) {
  Scoring s = open_scoring(o, {.pass = Pass::losses});
  Batches batches(s.corpus, s.batches);
  const Evaluation e =
      evaluate(*s.open.ctx, *s.open.model, batches, o.objective(s.open.model->config()));
  std::vector<double> load_entropy;
  std::vector<std::vector<int64_t>> dead;
  for (const auto& load : e.load) {
    load_entropy.push_back(entropy_of(load));
    dead.push_back(dead_experts(load));
  }
  if (o.common.json) {
    const ordered_json json{{"cross_entropy", e.cross_entropy},
                            {"perplexity", e.perplexity},
                            {"aux_loss", e.aux},
                            {"z_loss", e.z},
                            {"loss", e.loss},
                            {"tokens", e.tokens},
                            {"positions", e.positions},
                            {"records", s.corpus.documents()},
                            {"load", e.load},
                            {"entropy", e.entropy},
                            {"load_entropy", load_entropy},
                            {"dead", dead}};
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("cross-entropy  {:.4f} nats a token\nperplexity     {:.3f}\n", e.cross_entropy,
             e.perplexity);
  fmt::print("balance loss   {:.4f} (with coefficient: objective {:.4f})\n", e.aux, e.loss);
  fmt::print("scored         {} tokens of {} records\n", e.tokens, s.corpus.documents());
  const auto experts = static_cast<double>(s.open.model->config().num_experts);
  fmt::print(
      "experts' load  (share of the assignments; even is {:.1f}%. Entropies, of the load and of a "
      "token's choice,\n               are shares of an even router's {:.3f} nats)\n",
      100 / experts, std::log(experts));
  for (size_t layer = 0; layer < e.load.size(); ++layer) {
    fmt::print("  layer {:<3}", layer);
    for (const double share : e.load[layer])
      fmt::print(" {:5.1f}%",
                 100 * share / static_cast<double>(s.open.model->config().experts_per_token));
    const double most = experts > 1 ? std::log(experts) : 1;
    fmt::print(
        "   load entropy {:.1f}%, choice {:.1f}%; {}\n", 100 * load_entropy[layer] / most,
        100 * e.entropy[layer] / most,
        dead[layer].empty() ? "none dead" : fmt::format("dead: {}", fmt::join(dead[layer], ", ")));
  }
}

}  // namespace

void add_evaluate_command(cli::App& app) {
  auto o = std::make_shared<EvaluateOptions>();
  cli::App* command = app.add_subcommand("evaluate", "Loss and perplexity of a model on data");
  command->footer(
      "Examples:\n"
      "  mixtral evaluate --model runs/first --data data/pretrain_data --split test\n"
      "  mixtral evaluate --model runs/qa --data data/finetune_data --split test --exact-match\n"
      "  mixtral evaluate --model runs/first --stories 20\n");
  o->add_to(*command, "on");
  cli::Option* context = command->get_option("--context");
  context->description(context->get_description() +
                       " (--exact-match: tokens of a question and its answer; 0: the model's "
                       "positions)");
  const char* group = "Exact match";
  command
      ->add_flag("--exact-match", o->exact_match,
                 "Answer the data's questions with the most probable tokens, and count the answers "
                 "that are right to the letter")
      ->group(group);
  command
      ->add_option("--response-marker", o->response_marker,
                   "What precedes the answer in {\"text\"}")
      ->capture_default_str()
      ->group(group);
  command->add_option(
      "--chat-template", o->chat_template,
      "Of {\"messages\"}: mistral-v1, mistral-hf-old or seed (default: the model's)");
  command->add_option("--limit", o->limit, "Ask the first so many questions only; 0: all")
      ->check(at_least(0))
      ->group(group);
  command
      ->add_option("-n,--max-tokens", o->max_tokens,
                   "Tokens of an answer (default: 32), or of a story (default: 200), at most")
      ->check(cli::Range(int64_t{1}, int64_t{1} << 30))
      ->group(group);
  command->add_option("--show", o->show, "Print the first so many questions, or stories")
      ->check(at_least(0))
      ->group(group);
  const char* story_group = "Stories";
  command
      ->add_option("--stories", o->stories,
                   "Tell so many stories, without --data, and count the names in them that the "
                   "story had introduced")
      ->check(cli::Range(int64_t{1}, int64_t{100'000}))
      ->group(story_group);
  command->add_option("--temp", o->temperature, "Temperature of the stories (default: 0.6)")
      ->check(between(0, 100))
      ->group(story_group);
  cli::Option* data = command->get_option("--data")->required(false);
  command->callback([o, command, data] {
    if (o->stories > 0) {
      refuse_unused(
          *command, "--stories",
          {"--data", "--split", "--exact-match", "--limit", "--response-marker", "--batch-size",
           "--pack", "--shuffle", "--aux-loss", "--aux-coef", "--z-coef", "--chat-template"});
      StoryScoringOptions how{.stories = o->stories, .show = o->show};
      how.max_tokens = o->max_tokens.value_or(how.max_tokens);
      how.temperature = o->temperature.value_or(how.temperature);
      return run_story_scoring(*o, how);
    }
    refuse_unused(*command, "evaluate without --stories", {"--temp"});
    if (data->count() == 0)
      throw UsageError("--data is missing: a file, or a directory with splits (see --split)");
    if (o->exact_match) {
      refuse_unused(
          *command, "--exact-match",
          {"--batch-size", "--pack", "--shuffle", "--aux-loss", "--aux-coef", "--z-coef"});
      return run_exact_match(*o);
    }
    for (const char* flag : {"--response-marker", "--limit", "--max-tokens", "--show"})
      if (command->count(flag) > 0)
        throw UsageError(fmt::format(
            "{} is about the questions of --exact-match; give that too, or leave it out", flag));
    run_evaluate(*o);
  });
}

}  // namespace mixtral
