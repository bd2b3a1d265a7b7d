#include "cli/merge_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "backends/registry.h"
#include "base/detailed_error.h"
#include "base/file.h"
#include "base/pending_directory.h"
#include "cli/common.h"
#include "cli/conversion_output.h"
#include "convert/compare_logits.h"
#include "infer/inference_plan.h"
#include "model/adapter.h"
#include "model/checkpoint.h"
#include "model/merge_check.h"
#include "open/companions.h"
#include "text/chat_template.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

struct MergeOptions {
  CommonOptions common;
  std::string model, out;
  std::vector<std::string> adapters;
  bool no_check = false, overwrite = false;
};

/// "DIR" or "DIR:0.5". A folder whose name ends in a number after a colon is taken as such.
std::pair<std::string, double> parse_weighted(const std::string& text) {
  std::error_code error;
  const size_t colon = text.rfind(':');
  if (fs::exists(text, error) || colon == std::string::npos || colon == 0) return {text, 1};
  const std::string number = text.substr(colon + 1);
  char* end = nullptr;
  const double weight = std::strtod(number.c_str(), &end);
  if (number.empty() || end != number.c_str() + number.size() || !std::isfinite(weight))
    throw UsageError(
        fmt::format("--adapter {}: expected DIR or DIR:WEIGHT with a number as weight, found '{}'",
                    text, number));
  return {text.substr(0, colon), weight};
}

void refuse_existing(const MergeOptions& o, const fs::path& base) {
  std::error_code error;
  if (!fs::exists(o.out, error)) return;
  if (fs::equivalent(o.out, base, error))
    throw UsageError(fmt::format("--out {} is the model itself; choose another directory", o.out));
  const bool empty = fs::is_directory(o.out, error) && fs::is_empty(o.out, error);
  if (empty) return;
  if (!o.overwrite)
    throw Error(fmt::format(
        "--out {} exists; choose another directory, or replace it with --overwrite", o.out));
  if (!fs::exists(fs::path(o.out) / "config.json", error))
    throw Error(
        fmt::format("--out {} is no model directory, so --overwrite does not replace it; remove it "
                    "or choose another",
                    o.out));
  refuse_foreign(o.out);
}

std::vector<double> logits_of(Backend& backend, const Mixtral& model) {
  Arena arena(backend);
  Context ctx(backend, arena, model.options().compute);
  HostBatch host;
  host.append(probe_tokens(model.config()));
  const Batch batch = upload(ctx, host, model.config().vocab_size, model.context());
  const Tensor hidden = model.forward(ctx, batch, nullptr, nullptr, nullptr);
  const Tensor logits = ctx.allocate({host.size(), model.config().vocab_size}, Dtype::f32);
  model.logits(ctx, hidden, logits);
  std::vector<float> values(static_cast<size_t>(logits.numel()));
  backend.download(logits, Tensor(values.data(), logits.shape(), Dtype::f32));
  return {values.begin(), values.end()};
}

struct Agreement {
  double difference = 0;  // max |wrapped − merged| / max |wrapped|
  double tolerance = 0;
};

Mixtral::Options compared_as(const MergeOptions& o, const ModelConfig& config) {
  return {.context = static_cast<int64_t>(probe_tokens(config).size()),
          .rope_frequencies = o.common.rope_dtype()};
}

/// Throws Error when the device has not the memory that compare() takes.
void require_comparison_memory(const MergeOptions& o, const Backend& backend,
                               const ModelConfig& config,
                               const std::vector<WeightedAdapter>& adapters) {
  const Mixtral::Options options = compared_as(o, config);
  MemoryPlan plan =
      plan_inference(*make_planning_backend(&backend),
                     {.config = config, .options = options, .context = options.context});
  int64_t updates = 0;
  for (const WeightedAdapter& adapter : adapters)
    for (const AdapterModule& module : adapter.file.modules)
      updates += static_cast<int64_t>((module.a.size() + module.b.size()) * sizeof(float));
  plan.items.push_back({"adapters", updates});
  const int64_t limit = memory_limit(backend.memory());
  if (plan.total() <= limit) return;
  throw DetailedError(
      fmt::format("comparing the merged model with the one that has its adapters, in fp32 on {}, "
                  "needs more memory than is free: {} of {}; merge without the comparison by "
                  "--no-check{}",
                  backend.name(), format_bytes(plan.total()), format_bytes(limit),
                  backend.kind() == DeviceKind::gpu
                      ? ", or compare in the computer's own memory by --device cpu"
                      : ""),
      plan.table());
}

/// Compares the base with its adapters on and the merged model, both computed in f32.
Agreement compare(const MergeOptions& o, Backend& backend, const ModelSource& base,
                  const fs::path& merged, const std::vector<WeightedAdapter>& adapters) {
  const ModelConfig& config = base.config();
  const Mixtral::Options options = compared_as(o, config);
  std::vector<double> wrapped;
  {
    const auto model = open_weights(backend, base, options, {}, {});
    std::vector<std::unique_ptr<Adapter>> on;
    for (const WeightedAdapter& adapter : adapters) {
      AdapterFile file = adapter.file;
      for (AdapterModule& module : file.modules) module.scale *= adapter.weight;
      on.push_back(std::make_unique<Adapter>(backend, *model, std::move(file), Adapter::Options{}));
    }
    wrapped = logits_of(backend, *model);
    while (!on.empty()) on.pop_back();  // the outermost first
  }
  const auto model = load_model(backend, merged, options);
  const std::vector<double> plain = logits_of(backend, *model);
  double difference = 0, size = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double d = std::abs(plain[i] - wrapped[i]);
    difference = d >= difference || std::isnan(d) ? d : difference;
    size = std::max(size, std::abs(wrapped[i]));
  }
  // Weights of 16 bits were rounded once more, and a router may then choose otherwise.
  const bool narrow = config.dtype == Dtype::bf16 || config.dtype == Dtype::f16;
  return {size > 0 ? difference / size : difference, narrow ? 0.05 : 1e-3};
}

[[noreturn]] void refuse_base(const ModelSource& source, const std::string& is) {
  throw Error(fmt::format(
      "{} is {}, into which no adapter can be merged; convert it first (mixtral convert --model {} "
      "--to hf --out DIR), and merge into the result",
      source.name(), is, source.name()));
}

/// A merged model is written as Hugging Face's files, tensor by tensor of the base.
void refuse_other_forms(const ModelSource& source) {
  if (source.form() != ModelForm::hugging_face)
    refuse_base(source, fmt::format("in the form of {}", to_string(source.form())));
}

void refuse_quantized(const ModelSource& source) {
  for (const std::string& name : source.tensors().names())
    if (source.tensors().find(name)->coded) refuse_base(source, "quantized");
}

void run_merge(const MergeOptions& o) {
  const ModelSource source = open_source(o.common, {.model = o.model});
  source.refuse_adapter();
  const fs::path& base = source.directory();
  const ModelConfig& config = source.config();
  refuse_other_forms(source);
  refuse_existing(o, base);
  std::vector<WeightedAdapter> adapters;
  std::vector<MergedFrom> from;
  // What was learnt last says how to converse: of several adapters, the last that has a note.
  auto chat = find_chat_template_name(base);
  for (const std::string& text : o.adapters) {
    const auto [name, weight] = parse_weighted(text);
    const fs::path directory = resolve_adapter(name);
    adapters.push_back({AdapterFile::load(directory, config, base), weight});
    from.push_back({directory, weight});
    if (const auto noted = find_chat_template_name(directory)) chat = noted;
  }
  std::unique_ptr<Backend> backend;
  if (!o.no_check) {
    backend = o.common.open_device();
    require_comparison_memory(o, *backend, config, adapters);
  }
  refuse_quantized(source);
  PendingDirectory pending(o.out);
  ordered_json changes = ordered_json::array();
  double greatest = 0;
  const int64_t changed =
      merge_adapters(base, adapters, pending.path(), [&](const MergedTensor& tensor) {
        changes.push_back({{"tensor", tensor.name}, {"change", tensor.change}});
        greatest = std::max(greatest, tensor.change);
      });
  const std::vector<std::string> companions = copy_companions(base, pending.path());
  const bool tokenizer = std::ranges::any_of(companions, is_tokenizer_file);
  if (chat) save_chat_template_name(pending.path(), *chat);
  std::optional<Agreement> agreement;
  std::optional<MergeCheck> rows;
  if (backend) {
    rows = check_merged(base, from, pending.path());
    if (!(rows->difference <= kMergeRounding))
      throw Error(fmt::format(
          "tensor {} of the merged model differs by {:.3g} units in the last place from what the "
          "adapter's files say, where rounding explains {}: nothing was written; report this, or "
          "skip the comparison with --no-check",
          rows->tensor, rows->difference, kMergeRounding));
    agreement = compare(o, *backend, source, pending.path(), adapters);
    const std::string found = fmt::format(
        "the logits of the merged model differ from those of the model with its adapters by {:.1e} "
        "of the largest",
        agreement->difference);
    if (!(agreement->difference <= agreement->tolerance)) {
      if (agreement->tolerance < 0.01)
        throw Error(fmt::format(
            "{}, more than {:.0e}: nothing was written; report this, or skip the comparison with "
            "--no-check",
            found, agreement->tolerance));
      say(o.common, fmt::format("warning: {}: rounding to 16 bits shows; for all of the adapter's "
                                "precision merge into a model in fp32",
                                found));
    }
  }
  pending.commit();
  if (o.common.json) {
    ordered_json json{{"out", o.out},
                      {"tensors", on_disk_tensors(config).size()},
                      {"changed", changed},
                      {"changes", changes},
                      {"tokenizer", tokenizer}};
    if (agreement) json["logits_difference"] = agreement->difference;
    if (rows) {
      json["rows_checked"] = rows->rows;
      json["rows_difference"] = rows->difference;
    }
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("{}: {} of {} tensors changed, by {:.2e} of their norm at most\n", o.out, changed,
             on_disk_tensors(config).size(), greatest);
  if (rows)
    fmt::print(
        "{} rows of {} tensors are as recomputed from the files, to {:.2f} units in the last "
        "place\n",
        rows->rows, rows->tensors, rows->difference);
  if (agreement)
    fmt::print("logits of wrapped and merged differ by {:.1e} of the largest\n",
               agreement->difference);
  if (!tokenizer) say(o.common, "the model has no tokenizer, so the merged one has none either");
}

}  // namespace

void add_merge_command(cli::App& app) {
  auto o = std::make_shared<MergeOptions>();
  cli::App* command =
      app.add_subcommand("merge", "Add an adapter's updates to its base: one plain model");
  command->footer(
      "Sums are in double precision; the result has the base's dtype.\n"
      "Example: mixtral merge --model runs/first --adapter runs/tuned --out models/tuned\n"
      "         mixtral merge --model DIR --adapter A:0.7 --adapter B:0.3 --out models/both\n");
  command->add_option("-m,--model", o->model, "The base: a model directory or a run")->required();
  command
      ->add_option("--adapter,--lora", o->adapters,
                   "A LoRA adapter directory or run, or DIR:WEIGHT; may be repeated")
      ->required();
  command->add_option("-o,--out", o->out, "The merged model's directory")->required();
  command->add_flag("--overwrite", o->overwrite, "Replace the model that --out holds");
  command->add_flag("--no-check", o->no_check,
                    "Do not compare the logits of the model with its adapters and the merged one");
  o->common.add_to(*command);
  // Sums are in f64, the comparison in f32, the result in the base's type, and nothing is random.
  for (const char* meaningless : {"--dtype", "--seed"})
    command->remove_option(command->get_option(meaningless));
  command->callback([o] { run_merge(*o); });
}

}  // namespace mixtral
