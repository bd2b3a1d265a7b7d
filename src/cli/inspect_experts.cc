#include "cli/inspect_experts.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/messages.h"
#include "cli/run_config.h"
#include "cli/scoring.h"
#include "eval/expert_page.h"
#include "eval/expert_report.h"
#include "infer/methods.h"
#include "model/checkpoint.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

constexpr size_t kTypicalTokens = 6;
constexpr int64_t kFewTokens = 20;  // of a kind: too few to say anything

std::string dump(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

/// Both entropies of a layer, as shares of what an even router has, and its dead experts.
std::string layer_line(const ExpertReport& report, int64_t layer) {
  const double most = std::log(static_cast<double>(report.experts()));
  const auto dead = report.dead(layer);
  auto share = [&](double entropy) {
    return most > 0 ? fmt::format("{:.3f} nats ({:.0f}%)", entropy, 100 * entropy / most)
                    : fmt::format("{:.3f} nats", entropy);
  };
  return fmt::format("layer {}: entropy of the load {}, of a token's choice {}; dead: {}", layer,
                     share(report.load_entropy(layer)), share(report.token_entropy(layer)),
                     dead.empty() ? "none" : fmt::format("{}", fmt::join(dead, ", ")));
}

struct ExpertsOptions : ScoringOptions {
  std::string html;
  int64_t tokens = 100000, sample_tokens = 1500;
};

/// What an expert has more of than the text, most first: "digit 3.1x, name 1.4x".
std::string preferences(const ExpertReport& report, int64_t layer, int64_t expert) {
  std::vector<std::pair<double, std::string>> liked;
  for (size_t i = 0; i < kTokenKinds; ++i) {
    const auto kind = static_cast<TokenKind>(i);
    const double lift = report.kind_lift(layer, expert, kind);
    if (report.count(kind) >= kFewTokens && lift >= 1.15)
      liked.emplace_back(lift, fmt::format("{} {:.1f}x", kind_name(kind), lift));
  }
  std::ranges::sort(liked, std::greater());
  std::vector<std::string> texts;
  texts.reserve(liked.size());
  for (const auto& [lift, text] : liked) texts.push_back(text);
  return fmt::format("{}", fmt::join(texts, ", "));
}

/// A token in quotes, on one line.
std::string quoted(const Tokenizer* tokenizer, int32_t id) {
  std::string text = "'";
  for (const char c : token_text(tokenizer, id)) {
    if (c == '\n') {
      text += "\\n";
    } else if (static_cast<unsigned char>(c) < 0x20) {
      text += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      text += c;
    }
  }
  return text + "'";
}

void print_report(const ExpertReport& report, const Tokenizer* tokenizer) {
  fmt::print("{} tokens; {} layers of {} experts, {} for each token; an even load is {:.1f}%\n",
             report.tokens(), report.layers(), report.experts(), report.experts_per_token(),
             100.0 / static_cast<double>(report.experts()));
  if (report.has_kinds()) {
    std::vector<std::string> shares;
    for (size_t i = 0; i < kTokenKinds; ++i) {
      const auto kind = static_cast<TokenKind>(i);
      if (report.count(kind) > 0)
        shares.push_back(fmt::format(
            "{} {:.1f}%", kind_name(kind),
            100 * static_cast<double>(report.count(kind)) / static_cast<double>(report.tokens())));
    }
    fmt::print("of the tokens: {}\n", fmt::join(shares, ", "));
  }
  for (int64_t l = 0; l < report.layers(); ++l) {
    fmt::print("\n{}\n", layer_line(report, l));
    fmt::print("{:>6}  {:>6}  {:>6}  {:<14}  {:<52}  {}\n", "expert", "load", "first", "often with",
               "has more of (times its share of the text)", "typical tokens");
    const auto load = report.load(l), first = report.first_choice(l);
    for (int64_t e = 0; e < report.experts(); ++e) {
      const auto i = static_cast<size_t>(e);
      int64_t partner = -1;
      for (int64_t other = 0; other < report.experts(); ++other)
        if (other != e && load[i] > 0 &&
            (partner < 0 || report.together(l, e, other) > report.together(l, e, partner)))
          partner = other;
      std::vector<std::string> typical;
      for (const auto& token : report.typical_tokens(l, e, kTypicalTokens))
        typical.push_back(quoted(tokenizer, token.id));
      fmt::print("{:>6}  {:>5.1f}%  {:>5.1f}%  {:<14}  {:<52}  {}\n", e, 100 * load[i],
                 100 * first[i],
                 partner < 0 || report.experts_per_token() < 2
                     ? "-"
                     : fmt::format("{} ({:.0f}%)", partner, 100 * report.together(l, e, partner)),
                 preferences(report, l, e), fmt::join(typical, " "));
    }
  }
}

/// A number for each expert; null where there is none.
template <class Value>
ordered_json per_expert(const ExpertReport& report, const Value& value) {
  ordered_json list = ordered_json::array();
  for (int64_t e = 0; e < report.experts(); ++e) list.push_back(value(e));
  return list;
}

ordered_json layer_json(const ExpertReport& report, int64_t l, const Tokenizer* tokenizer) {
  ordered_json json{{"load", report.load(l)},
                    {"first_choice", report.first_choice(l)},
                    {"load_entropy", report.load_entropy(l)},
                    {"token_entropy", report.token_entropy(l)},
                    {"dead", report.dead(l)}};
  json["together"] = per_expert(report, [&](int64_t a) {
    return per_expert(report, [&](int64_t b) { return report.together(l, a, b); });
  });
  auto& kinds = json["kind_lift"] = ordered_json::object();
  for (size_t i = 0; i < kTokenKinds; ++i) {
    const auto kind = static_cast<TokenKind>(i);
    if (report.count(kind) == 0) continue;
    kinds[std::string(kind_name(kind))] =
        per_expert(report, [&](int64_t e) { return report.kind_lift(l, e, kind); });
  }
  auto& positions = json["position_lift"] = ordered_json::object();
  for (size_t i = 0; i < kPositionRanges; ++i)
    if (report.count_at(i) > 0)
      positions[position_range_name(i)] =
          per_expert(report, [&](int64_t e) { return report.position_lift(l, e, i); });
  json["typical_tokens"] = per_expert(report, [&](int64_t e) {
    ordered_json tokens = ordered_json::array();
    for (const auto& token : report.typical_tokens(l, e, kTypicalTokens))
      tokens.push_back({{"id", token.id},
                        {"token", token_text(tokenizer, token.id)},
                        {"count", token.count},
                        {"lift", token.lift}});
    return tokens;
  });
  return json;
}

ordered_json report_json(const ExpertReport& report, const Tokenizer* tokenizer) {
  ordered_json json{{"tokens", report.tokens()},
                    {"experts", report.experts()},
                    {"experts_per_token", report.experts_per_token()}};
  auto& kinds = json["kinds"] = ordered_json::object();
  for (size_t i = 0; i < kTokenKinds; ++i)
    if (const auto kind = static_cast<TokenKind>(i); report.count(kind) > 0)
      kinds[std::string(kind_name(kind))] = report.count(kind);
  auto& layers = json["layers"] = ordered_json::array();
  for (int64_t l = 0; l < report.layers(); ++l) layers.push_back(layer_json(report, l, tokenizer));
  return json;
}

void run_experts(const ExpertsOptions& o) {
  Scoring s = open_scoring(o, {.pass = Pass::routes});
  if (s.corpus.is_paired())
    throw Error(fmt::format(
        "{}: holds preference pairs; expected text, messages or token ids to send through the "
        "model",
        o.data));
  Batches batches(s.corpus, s.batches);
  const bool terminal = !o.common.quiet && ::isatty(STDERR_FILENO) != 0;
  const ExpertReport report =
      report_experts(*s.open.ctx, *s.open.model, batches, s.tokenizer.get(),
                     {.tokens = o.tokens, .sample_tokens = o.html.empty() ? 0 : o.sample_tokens},
                     [&](int64_t tokens) {
                       if (terminal) messages::redraw(fmt::format("{} tokens", tokens));
                     });
  if (terminal) messages::clear();
  if (!o.html.empty()) {
    const ExpertPageText text{.model = o.adapter.empty() ? o.model : o.model + " + " + o.adapter,
                              .data = scored_file(o).filename().string(),
                              .tokenizer = s.tokenizer.get()};
    write_file(o.html, expert_page(report, text));
  }
  if (o.common.json)
    fmt::print("{}\n", dump(report_json(report, s.tokenizer.get())));
  else
    print_report(report, s.tokenizer.get());
  if (!o.html.empty()) say(o.common, fmt::format("wrote {}", o.html));
}

struct RouteOptions {
  CommonOptions common;
  std::string model, adapter, tokenizer, prompt, ids;
};

void run_route(const RouteOptions& o) {
  const ModelSource source = open_source(o.common, {o.model, o.adapter, o.tokenizer});
  const auto tokenizer = source.tokenizer();
  HostBatch host;
  if (!o.ids.empty()) {
    host.append(parse_ids("--ids", o.ids));
  } else {
    if (!tokenizer) throw UsageError("the model has no tokenizer; give --tokenizer or --ids");
    host.append(prompt_tokens(*tokenizer, o.prompt));
  }
  if (host.size() == 0) throw UsageError("there is no token to route; give --prompt or --ids");
  const ModelConfig& config = source.config();
  if (host.size() > config.max_positions)
    throw UsageError(fmt::format("the text has {} tokens, but the model no more than {} positions",
                                 host.size(), config.max_positions));
  OpenOptions options = o.common.open_options(host.size());
  options.pass = {.context = host.size(), .pass = Pass::routes};
  const OpenedModel open = open_model(o.common, source, options);
  ExpertReport report(config.num_layers, config.num_experts, config.experts_per_token, host.size());
  std::vector<TokenKind> kinds;
  if (tokenizer) kinds = classify_tokens(*tokenizer, host.tokens);
  add_routes(*open.ctx, *open.model, host, kinds, report);

  const ExpertReport::Sample& routes = report.sample();
  const auto k = static_cast<size_t>(config.experts_per_token);
  auto label = [&](int32_t id) {
    return tokenizer && id < tokenizer->vocab_size() ? tokenizer->label(id) : std::to_string(id);
  };
  if (o.common.json) {
    ordered_json json = ordered_json::array();
    for (size_t n = 0; n < routes.ids.size(); ++n) {
      ordered_json layers = ordered_json::array();
      for (size_t l = 0; l < routes.expert.size(); ++l) {
        ordered_json chosen = ordered_json::array();
        for (size_t j = n * k; j < n * k + k; ++j)
          chosen.push_back({{"expert", routes.expert[l][j]}, {"weight", routes.weight[l][j]}});
        layers.push_back(chosen);
      }
      json.push_back({{"id", routes.ids[n]}, {"token", label(routes.ids[n])}, {"layers", layers}});
      if (tokenizer) json.back()["kind"] = kind_name(kinds[n]);
    }
    fmt::print("{}\n", dump(json));
    return;
  }
  fmt::print("{:>6}  {:<16}  {:<17}  experts of each layer, the heavier first\n", "id", "token",
             tokenizer ? "kind" : "");
  for (size_t n = 0; n < routes.ids.size(); ++n) {
    fmt::print("{:>6}  {:<16}  {:<17}", routes.ids[n], label(routes.ids[n]),
               tokenizer ? kind_name(kinds[n]) : "");
    for (const auto& layer : routes.expert) {
      const auto begin = layer.begin() + static_cast<std::ptrdiff_t>(n * k);
      fmt::print("  {}", fmt::join(begin, begin + static_cast<std::ptrdiff_t>(k), "+"));
    }
    fmt::print("\n");
  }
  for (int64_t l = 0; l < report.layers(); ++l) fmt::print("{}\n", layer_line(report, l));
}

}  // namespace

void add_inspect_experts(cli::App& inspect) {
  auto o = std::make_shared<ExpertsOptions>();
  cli::App* command = inspect.add_subcommand(
      "experts", "What each expert takes of some data: load, kinds of token, partners");
  command->footer(
      "Examples:\n"
      "  mixtral inspect experts --model runs/first --data data/pretrain_data --split test\n"
      "  mixtral inspect experts --model runs/first --data some.txt --html experts.html\n");
  o->add_to(*command, "on");
  for (const char* loss_flag : {"--aux-loss", "--aux-coef", "--z-coef"})
    command->remove_option(command->get_option(loss_flag));
  command->add_option("--html", o->html, "Write a report with heat maps to this file");
  command->add_option("--tokens", o->tokens, "Look at about so many tokens at most; 0: all")
      ->capture_default_str()
      ->check(at_least(0));
  command
      ->add_option("--sample-tokens", o->sample_tokens,
                   "Of the first tokens, how many --html shows in their experts' colours")
      ->capture_default_str()
      ->check(cli::Range(0, 100000));
  command->callback([o] { run_experts(*o); });
}

void add_inspect_route(cli::App& inspect) {
  auto o = std::make_shared<RouteOptions>();
  cli::App* command = inspect.add_subcommand("route", "Which experts each token of a text goes to");
  command->footer(
      "Examples:\n"
      "  mixtral inspect route --model runs/first --prompt \"Mia has the red kite.\"\n"
      "  mixtral inspect route --model runs/first --ids 5,7,9 --json\n");
  command->add_option("-m,--model", o->model, "A model directory or a run")->required();
  command->add_option("--adapter,--lora", o->adapter, "A LoRA adapter directory (PEFT or mlx-lm)");
  command->add_option("--tokenizer", o->tokenizer, "Another tokenizer than the model's own");
  command->add_option("-p,--prompt", o->prompt, "The text");
  command->add_option("--ids", o->ids, "The text as token ids: 5,7,9");
  o->common.add_model_flags(*command);
  o->common.add_to(*command);
  command->callback([o] { run_route(*o); });
}

}  // namespace mixtral
