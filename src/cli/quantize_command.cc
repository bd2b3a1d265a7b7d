#include "cli/quantize_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "backends/registry.h"
#include "base/numbers.h"
#include "cli/common.h"
#include "cli/conversion_output.h"
#include "convert/calibrate.h"
#include "convert/quality.h"
#include "model/memory_plan.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

struct QuantizeOptions : TargetOptions {
  std::string model, type, calibration, data, most_increase;
  uint64_t target_size = 0;  // bytes; 0: no such budget
  int64_t tokens = 8192, context = 512;
};

double bits_per_weight(const Receipt& receipt, const ModelConfig& config) {
  return 8 * static_cast<double>(receipt.weight_bytes) /
         static_cast<double>(count_parameters(config).total);
}

struct Result {
  const Receipt& receipt;
  double bits = 0;
  const std::optional<Calibration>& calibration;
  std::optional<Quality> quality;
};

void print_json(const QuantizeOptions& o, const Result& r) {
  ordered_json json{{"out", o.out},
                    {"receipt", receipt_path(o.out).string()},
                    {"type", r.receipt.type},
                    {"bits_per_weight", r.bits},
                    {"weight_bytes", r.receipt.weight_bytes}};
  if (r.calibration) {
    json["calibration_tokens"] = r.calibration->tokens;
    json["rare_experts"] = r.calibration->rare_experts;
  }
  if (r.quality)
    json["quality"] = {{"tokens", r.quality->tokens},
                       {"perplexity_before", r.quality->before},
                       {"perplexity_after", r.quality->after},
                       {"kl_divergence", r.quality->divergence},
                       {"top1_agreement", r.quality->top_agreement}};
  if (r.receipt.logits.compared) json["logits_difference"] = r.receipt.logits.difference;
  fmt::print("{}\n", json.dump());
}

void print_text(const QuantizeOptions& o, const Result& r) {
  print_receipt(r.receipt, o.out);
  fmt::print("{:.2f} bits a weight\n", r.bits);
  if (r.calibration)
    fmt::print("calibrated on {} tokens{}\n", r.calibration->tokens,
               r.calibration->rare_experts == 0
                   ? std::string()
                   : fmt::format("; {} experts were chosen by fewer than 64 of them, and lean on "
                                 "their layer's mean",
                                 r.calibration->rare_experts));
  if (!r.quality) return;
  fmt::print(
      "perplexity {:.4f} before, {:.4f} after ({:+.2f}%); KL divergence {:.5f} nats; the same most "
      "likely token at {:.1f}% of {} places\n",
      r.quality->before, r.quality->after, 100 * r.quality->increase(), r.quality->divergence,
      100 * r.quality->top_agreement, r.quality->tokens);
}

/// "1%" or "0.01" as a share.
double parse_share(const std::string& text) {
  const bool percent = text.ends_with('%');
  const auto value = parse_number(percent ? text.substr(0, text.size() - 1) : text);
  if (!value || !(*value > 0))
    throw UsageError(
        fmt::format("--max-perplexity-increase {}: expected a share above 0, such as 1%", text));
  return percent ? *value / 100 : *value;
}

/// What is tried for a budget, the smallest first.
std::vector<std::string> candidates(ModelFormat to) {
  if (to == ModelFormat::mlx) return {"int4", "int8"};
  return {"q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "q8_0"};
}

class Quantizer {
 public:
  explicit Quantizer(const QuantizeOptions& o)
      : o_(o),
        source_(open_source(o.common, {.model = o.model})),
        backend_(make_backend("cpu", o.common.threads)) {
    source_.refuse_adapter();
    const bool is_file = std::filesystem::path(o.out).extension() == ".gguf";
    options_ = {.to = is_file ? ModelFormat::gguf : ModelFormat::mlx,
                .out = o.out,
                .overwrite = o.overwrite,
                .vocabulary = !o.no_tokenizer,
                .compare = !o.no_check,
                .threads = o.common.threads};
    check_target(source_, options_);
    if (o.overwrite) refuse_foreign(o.out);
  }

  void run() {
    const std::vector<TypeChoice> types = choices();
    const SampleOptions sample{
        .tokens = o_.tokens, .context = o_.context, .threads = o_.common.threads};
    if (!o_.calibration.empty()) {
      calibration_ = calibrate(*backend_, source_, sample_text(source_, o_.calibration, sample));
      options_.importance = &calibration_->importance;
    }
    std::optional<HostBatch> text;
    if (const std::string& file = o_.data.empty() ? o_.calibration : o_.data; !file.empty())
      text = sample_text(source_, file, sample);
    const double most = o_.most_increase.empty() ? 0 : parse_share(o_.most_increase);
    for (const TypeChoice& type : types) {
      options_.type = type;
      const Receipt receipt = convert_model(source_, options_, conversion_progress(o_.common));
      std::optional<Quality> quality;
      if (text) quality = measure(*text);
      const bool enough = most == 0 || quality->increase() <= most;
      if (!enough && &type != &types.back()) {
        say(o_.common,
            fmt::format("{}: perplexity {:+.2f}%, too much; the next larger type is tried",
                        type.name(), 100 * quality->increase()));
        options_.overwrite = true;  // what was written just now
        continue;
      }
      print({.receipt = receipt,
             .bits = bits_per_weight(receipt, source_.config()),
             .calibration = calibration_,
             .quality = quality});
      if (!enough)
        throw Error(
            fmt::format("{}: perplexity rises by {:.2f}%, more than {} allows, with every "
                        "type that was tried; {} is the last of them",
                        o_.out, 100 * quality->increase(), o_.most_increase, type.name()));
      return;
    }
  }

 private:
  /// The types to try in turn: the one that was named, or those within the budget.
  std::vector<TypeChoice> choices() const {
    const bool budget = o_.target_size > 0 || !o_.most_increase.empty();
    if (budget == !o_.type.empty())
      throw UsageError("give --type, or a budget: --target-size or --max-perplexity-increase");
    if (!o_.most_increase.empty() && o_.data.empty() && o_.calibration.empty())
      throw UsageError("--max-perplexity-increase needs a text: --data or --calibrate");
    const auto choice = [&](const std::string& type) {
      return TypeChoice(type, options_.to, o_.group_size);
    };
    if (!budget) return {choice(o_.type)};
    std::vector<TypeChoice> fitting;
    uint64_t least = ~uint64_t{0};
    for (const std::string& type : candidates(options_.to)) {
      ConvertOptions options = options_;
      options.type = choice(type);
      const uint64_t bytes = planned_bytes(source_, options);
      least = std::min(least, bytes);
      if (o_.target_size == 0 || bytes <= o_.target_size) fitting.push_back(options.type);
    }
    if (fitting.empty())
      throw Error(fmt::format("--target-size {}: the smallest type needs {}",
                              format_bytes(static_cast<int64_t>(o_.target_size)),
                              format_bytes(static_cast<int64_t>(least))));
    // By size alone, the largest that fits is the best.
    if (o_.most_increase.empty()) return {fitting.back()};
    return fitting;
  }

  Quality measure(const HostBatch& text) {
    const ModelSource written = ModelSource::resolve({.model = o_.out});
    return measure_quality(*backend_, {source_.tensors(), source_.config()},
                           {written.tensors(), written.config()}, text);
  }

  void print(const Result& result) const {
    if (o_.common.json)
      print_json(o_, result);
    else
      print_text(o_, result);
  }

  const QuantizeOptions& o_;
  ModelSource source_;
  std::unique_ptr<Backend> backend_;
  ConvertOptions options_;
  std::optional<Calibration> calibration_;
};

}  // namespace

void add_quantize_command(cli::App& app) {
  auto o = std::make_shared<QuantizeOptions>();
  cli::App* command = app.add_subcommand(
      "quantize", "Write a model in few bits: a GGUF file, or a directory in MLX's groups");
  command->footer(
      "Attention, experts, embedding and head are rounded; router and norms stay as they are.\n"
      "With --calibrate, errors count by how much the text uses each column (q4_0 and q8_0 aside,\n"
      "which round to the nearest, as ggml does).\n"
      "Example: mixtral quantize --model DIR --type q4_k_m --calibrate text.jsonl --out m.gguf\n"
      "         mixtral quantize --model DIR --type int4 --out models/four-bits\n"
      "         mixtral quantize --model DIR --target-size 24GiB --out m.gguf\n");
  command->add_option("-m,--model", o->model, "The model: a directory, a .gguf file or a run")
      ->required();
  command->add_option(
      "--type", o->type,
      "q8_0, q6_k, q5_k_m, q4_k_m, q5_1, q5_0, q4_1, q4_0 (GGUF); int8, int4 (MLX)");
  command->add_option("-o,--out", o->out, "What to write: FILE.gguf, or a directory")->required();
  command->add_option("--calibrate", o->calibration,
                      "Text that says what matters: a .jsonl file of records, or a .txt file");
  command->add_option("--data", o->data,
                      "Text to measure perplexity on, before and after; otherwise --calibrate's");
  command
      ->add_option("--target-size", o->target_size,
                   "Instead of --type: the best type whose weights take no more, such as 24GiB")
      ->transform(cli::AsSizeValue(true));
  command->add_option("--max-perplexity-increase", o->most_increase,
                      "Instead of --type: the smallest type that keeps to it, such as 1%");
  command->add_option("--tokens", o->tokens, "Tokens of these texts that are looked at, at most")
      ->capture_default_str()
      ->check(cli::Range(1, 1 << 24));
  command->add_option("-c,--context", o->context, "Tokens of a sequence of them")
      ->capture_default_str()
      ->check(cli::Range(2, 1 << 20));
  o->add_to(*command);
  command->callback([o] { Quantizer(*o).run(); });
}

}  // namespace mixtral
