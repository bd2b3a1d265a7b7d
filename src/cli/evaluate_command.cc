#include "cli/evaluate_command.h"

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/scoring.h"
#include "eval/evaluate.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

void run_evaluate(const ScoringOptions& o) {
  Scoring s = open_scoring(o, false);
  Batches batches(s.corpus, s.batches);
  const Evaluation e = evaluate(*s.ctx, *s.model, batches, o.objective(s.model->config()));
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
                            {"entropy", e.entropy}};
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("cross-entropy  {:.4f} nats a token\nperplexity     {:.3f}\n", e.cross_entropy,
             e.perplexity);
  fmt::print("balance loss   {:.4f} (with coefficient: objective {:.4f})\n", e.aux, e.loss);
  fmt::print("scored         {} tokens of {} records\n", e.tokens, s.corpus.documents());
  fmt::print("experts' load  (share of the assignments; even is {:.1f}%)\n",
             100.0 / static_cast<double>(s.model->config().num_experts));
  for (size_t layer = 0; layer < e.load.size(); ++layer) {
    fmt::print("  layer {:<3}", layer);
    for (const double share : e.load[layer])
      fmt::print(" {:5.1f}%",
                 100 * share / static_cast<double>(s.model->config().experts_per_token));
    fmt::print("   entropy {:.3f}\n", e.entropy[layer]);
  }
}

}  // namespace

void add_evaluate_command(CLI::App& app) {
  auto o = std::make_shared<ScoringOptions>();
  CLI::App* command = app.add_subcommand("evaluate", "Loss and perplexity of a model on data");
  command->footer(
      "Example: mixtral evaluate --model runs/first --data data/pretrain_data --split test\n");
  o->add_to(*command, "on");
  command->callback([o] { run_evaluate(*o); });
}

}  // namespace mixtral
