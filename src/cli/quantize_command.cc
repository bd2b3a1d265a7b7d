#include "cli/quantize_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "backends/registry.h"
#include "base/numbers.h"
#include "cli/common.h"
#include "cli/conversion_output.h"
#include "cli/quantize_output.h"
#include "convert/quantize.h"
#include "convert/sample_text.h"
#include "model/memory_plan.h"

namespace mixtral {
namespace {

struct QuantizeOptions : TargetOptions {
  std::string model, type, calibration, data, most_increase;
  uint64_t target_size = 0;  // bytes; 0: no such budget
  int64_t tokens = 8192, context = 512;
  bool sensitivity = false;
};

/// "1%" or "0.01" as a share.
double parse_share(const std::string& text) {
  const bool percent = text.ends_with('%');
  const auto value = parse_number(percent ? text.substr(0, text.size() - 1) : text);
  if (!value || !(*value > 0))
    throw UsageError(
        fmt::format("--max-perplexity-increase {}: expected a share above 0, such as 1%", text));
  return percent ? *value / 100 : *value;
}

/// The mixes that a size alone chooses from, the smallest first.
std::vector<std::string> mixes(ModelFormat to) {
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
    check_options();
    const SampleOptions sample{
        .tokens = o_.tokens, .context = o_.context, .threads = o_.common.threads};
    std::unique_ptr<Calibration> calibration;
    if (!o_.calibration.empty()) {
      calibration = std::make_unique<Calibration>(*backend_, source_.tensors(), source_.config(),
                                                  sample_text(source_, o_.calibration, sample));
      options_.calibration = calibration.get();
    }
    std::optional<HostBatch> text;
    if (const std::string& file = o_.data.empty() ? o_.calibration : o_.data; !file.empty())
      text = sample_text(source_, file, sample);

    QuantizeResult result{
        .out = o_.out, .config = source_.config(), .calibration = calibration.get()};
    const bool mixed = text && o_.type.empty();
    if (mixed || o_.sensitivity) {
      ThreadPool threads(o_.common.threads);
      result.sensitivity = survey(*backend_, threads, source_.tensors(), source_.config(), *text);
      result.print_sensitivity = o_.sensitivity;
    }
    bool within = true;
    if (mixed) {
      options_.type = choice(mixes(options_.to).front());
      Quantized made = quantize_within(*backend_, source_, options_, budget_, *result.sensitivity,
                                       *text, conversion_progress(o_.common),
                                       [&](const std::string& note) { say(o_.common, note); });
      result.receipt = std::move(made.receipt);
      result.quality = made.quality;
      within = made.within;
    } else {
      options_.type = o_.type.empty() ? largest_mix() : choice(o_.type);
      result.receipt = convert_model(source_, options_, conversion_progress(o_.common));
      if (text) result.quality = measure_written(*backend_, source_, o_.out, *text);
    }
    print_quantized(result, o_.common.json);
    if (!within)
      throw Error(fmt::format(
          "{}: perplexity rises by {:.2f}%, more than {} allows, with as many bits as there are "
          "within the size",
          o_.out, 100 * result.quality->increase(), o_.most_increase));
  }

 private:
  void check_options() {
    const bool text = !o_.data.empty() || !o_.calibration.empty();
    const bool budget = o_.target_size > 0 || !o_.most_increase.empty();
    if (budget == !o_.type.empty())
      throw UsageError("give --type, or a budget: --target-size or --max-perplexity-increase");
    for (const auto& [given, flag] :
         {std::pair(!o_.most_increase.empty(), "--max-perplexity-increase"),
          std::pair(o_.sensitivity, "--sensitivity")})
      if (given && !text)
        throw UsageError(fmt::format("{} needs a text: --data or --calibrate", flag));
    if (o_.target_size > 0) budget_.bytes = o_.target_size;
    if (!o_.most_increase.empty()) budget_.most_increase = parse_share(o_.most_increase);
  }

  TypeChoice choice(const std::string& type) const {
    return TypeChoice(type, options_.to, o_.group_size);
  }

  /// Without a text, the larger is the better.
  TypeChoice largest_mix() const {
    std::optional<TypeChoice> largest;
    uint64_t least = ~uint64_t{0};
    for (const std::string& type : mixes(options_.to)) {
      ConvertOptions options = options_;
      options.type = choice(type);
      const uint64_t bytes = planned_bytes(source_, options);
      least = std::min(least, bytes);
      if (bytes <= o_.target_size) largest = options.type;
    }
    if (!largest)
      throw Error(fmt::format("--target-size {}: the smallest type needs {}",
                              format_bytes(static_cast<int64_t>(o_.target_size)),
                              format_bytes(static_cast<int64_t>(least))));
    return *largest;
  }

  const QuantizeOptions& o_;
  ModelSource source_;
  std::unique_ptr<Backend> backend_;
  ConvertOptions options_;
  Budget budget_;
};

}  // namespace

void add_quantize_command(cli::App& app) {
  auto o = std::make_shared<QuantizeOptions>();
  cli::App* command = app.add_subcommand(
      "quantize", "Write a model in few bits: a GGUF file, or a directory in MLX's groups");
  command->footer(
      "Attention, experts, embedding and head are rounded; router and norms stay as they are.\n"
      "With --calibrate, numbers are rounded so that products with what the text gives each\n"
      "matrix change least (GPTQ); q4_1 and q5_1 always round to the nearest, as ggml does.\n"
      "With a budget and a text, each tensor gets its own type (mixed precision).\n"
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
                   "Instead of --type: the best within this size of weights, such as 24GiB")
      ->transform(cli::AsSizeValue(true));
  command->add_option("--max-perplexity-increase", o->most_increase,
                      "Instead of --type: the smallest that keeps to it, such as 1%");
  command->add_flag("--sensitivity", o->sensitivity,
                    "Show what 4 bits would lose in each layer and expert, on the text");
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
