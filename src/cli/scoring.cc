#include "cli/scoring.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/data_splits.h"
#include "cli/run_config.h"

namespace mixtral {
namespace {

Split split_of(const ScoringOptions& o) {
  return o.split == "train" ? Split::train : o.split == "test" ? Split::test : Split::val;
}

DataSplits data_of(const ScoringOptions& o, const EncodeOptions& encode,
                   const Tokenizer* tokenizer) {
  return {{.data = o.data, .encode = encode, .threads = o.common.threads}, tokenizer};
}

/// Sequences and tokens of the largest batch that the pass looks at.
struct BatchSize {
  int64_t sequences = 1, tokens = 1;  // tokens of each sequence
};
BatchSize largest_batch(const Corpus& corpus, const BatchOptions& options, Pass pass) {
  if (pass == Pass::gradients) {
    const auto first = Batches(corpus, options).next();
    if (!first) return {};
    return {first->sequences(), (first->size() + first->sequences() - 1) / first->sequences()};
  }
  const bool whole = corpus.is_paired() || options.packing == Packing::off;
  const int64_t tokens = std::max<int64_t>(
      1, whole ? std::min(options.context, corpus.counts().longest) : options.context);
  const int64_t most = corpus.is_paired() ? 2 * options.rows : options.rows;
  return {std::clamp<int64_t>((corpus.tokens() + tokens - 1) / tokens, 1, most), tokens};
}

}  // namespace

void ScoringOptions::add_to(cli::App& command, const std::string& default_pack) {
  pack = default_pack;
  command.add_option("-m,--model", model, "A model directory, a run, or a built-in name")
      ->required();
  command.add_option("--adapter,--lora", adapter, "A LoRA adapter directory (PEFT or mlx-lm)");
  command.add_option("--tokenizer", tokenizer, "Another tokenizer than the model's own");
  command
      .add_option("--data", data, "A .jsonl or .txt file, or a directory with splits (see --split)")
      ->required();
  command.add_option("--split", split, "Of a directory: train, val or test")
      ->capture_default_str()
      ->check(cli::IsMember({"train", "val", "test"}));
  command.add_option("--batch-size", batch_size, "Rows that go through the model at once")
      ->capture_default_str()
      ->check(cli::Range(1, 1 << 20));
  command
      .add_option("-c,--context", context,
                  "Tokens of a row at most; 0: as many as the longest record has, but no more than "
                  "4096 and "
                  "the model's positions")
      ->check(count_between(0, kMostContext));
  command
      .add_option("--pack", pack, "off: a record a row; on: several share one, unseen by another")
      ->capture_default_str()
      ->check(cli::IsMember({"on", "off", "fill"}));
  command.add_option("--shuffle", shuffle, "off: in file order")
      ->capture_default_str()
      ->check(cli::IsMember({"on", "off"}));
  command
      .add_option("--aux-loss", aux_loss,
                  "Balancing loss: per-layer, hf (transformers' pooled formula) or off")
      ->capture_default_str()
      ->check(cli::IsMember({"per-layer", "hf", "off"}));
  command.add_option("--aux-coef", aux_coefficient, "Its coefficient; otherwise config.json's")
      ->check(between(0, 1000));
  command.add_option("--z-coef", z_coefficient, "Coefficient of the router z-loss")
      ->capture_default_str()
      ->check(between(0, 1000));
  common.add_model_flags(command);
  common.add_to(command);
}

Objective ScoringOptions::objective(const ModelConfig& config) const {
  Objective result;
  result.balance = aux_loss == "hf"    ? Objective::Balance::hf
                   : aux_loss == "off" ? Objective::Balance::off
                                       : Objective::Balance::per_layer;
  result.aux_coefficient = aux_coefficient >= 0 ? aux_coefficient : config.router_aux_loss_coef;
  result.z_coefficient = z_coefficient;
  return result;
}

std::filesystem::path scored_file(const ScoringOptions& o) {
  return data_of(o, {}, nullptr).file(split_of(o));
}

Scoring open_scoring(const ScoringOptions& o, const ScoringPass& pass) {
  return open_scoring(o, open_source(o.common, {o.model, o.adapter, o.tokenizer}), pass);
}

Scoring open_scoring(const ScoringOptions& o, const ModelSource& source, const ScoringPass& pass) {
  if (pass.pass == Pass::gradients) {
    refuse_training_noise(source.config(), source.name());
    if (source.adapter().empty() && o.common.quantization())
      throw UsageError(fmt::format(
          "--quantize-base {}: the gradients of the model's own weights need them as they are; "
          "leave it out, or name an --adapter, whose gradients are then meant",
          o.common.quantize_base));
  }
  Scoring s;
  const ModelConfig& config = source.config();
  s.tokenizer = source.tokenizer();
  EncodeOptions encode;
  encode.rules.vocab_size = config.vocab_size;
  if (!o.chat_template.empty())
    encode.rules.chat_template = parse_chat_template(o.chat_template);
  else if (const auto noted = source.chat_template())
    encode.rules.chat_template = *noted;
  s.corpus = data_of(o, encode, s.tokenizer.get()).load_whole_or(split_of(o));

  s.batches.packing = parse_packing(o.pack);
  s.batches.shuffle = o.shuffle == "on";
  s.batches.endless = false;
  s.batches.seed = o.common.seed;
  s.batches.labelled_only = pass.pass != Pass::routes;  // experts are chosen for prompts, too
  s.batches.data = fmt::format("--data {}", o.data);
  s.batches.rows = o.batch_size;
  require_positions(o.context, config);
  s.batches.context = o.context > 0 ? o.context : config.max_positions;
  if (o.context == 0) {  // no longer than the data: the model prepares for that many positions
    int64_t longest = 1;
    for (int64_t d = 0; d < s.corpus.documents(); ++d)
      longest = std::max(longest, s.corpus.length(d));
    s.batches.context = std::min({s.batches.context, longest, int64_t{4096}});
  }
  const BatchSize size = largest_batch(s.corpus, s.batches, pass.pass);
  OpenOptions options = o.common.open_options(s.batches.context);
  options.pass = {
      .objective = o.objective(config),
      .rows = pass.preference ? std::max<int64_t>(1, size.sequences / 2) : size.sequences,
      .context = size.tokens,
      .recompute = pass.recompute,
      .preference = pass.preference,
      .reference_model = pass.reference_model,
      .pass = pass.pass};
  s.open = open_model(o.common, source, options);
  return s;
}

}  // namespace mixtral
