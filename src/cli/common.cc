#include "cli/common.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdio>

#include "backends/registry.h"
#include "base/nearest.h"
#include "model/checkpoint.h"
#include "train/checkpoint_store.h"
#include "train/defaults.h"
#include "train/memory_plan.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

/// Throws Error where a directory holds an adapter, of which alone no model is made.
void refuse_adapter(const fs::path& directory) {
  std::error_code error;
  if (fs::exists(directory / "config.json", error)) return;
  if (!fs::exists(directory / "adapter_config.json", error)) return;
  throw Error(
      fmt::format("{0} holds an adapter, and here a whole model is needed; make one with `mixtral "
                  "merge --model BASE --adapter {0} --out DIR`",
                  directory.string()));
}

bool is_gguf(const fs::path& file) {
  std::string ending = file.extension().string();
  std::ranges::transform(ending, ending.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return ending == ".gguf";
}

/// Throws Error, before anything is allocated, when the device has not the memory that the model
/// and, of one that is trained, its gradients take.
void require_model_memory(const Backend& backend, const ModelConfig& config,
                          const Mixtral::Options& options, int64_t sequences) {
  const auto planner = make_planning_backend(&backend);
  const int64_t context = options.context > 0 ? options.context : config.max_positions;
  require_memory(*planner,
                 {.config = config, .options = options, .sequences = sequences, .context = context},
                 backend.memory());
}

}  // namespace

void CommonOptions::add_to(CLI::App& command) {
  command
      .add_option("--device", device, "Where to compute: auto, cpu, cuda:0, or ref (slow, exact)")
      ->capture_default_str();
  command
      .add_option("--dtype", dtype, "auto, fp32, bf16 or fp64: how numbers are held and multiplied")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "fp64"}));
  command
      .add_option(
          "--rope-frequencies", rope_frequencies,
          "fp32, as transformers has them after loading; bf16 or fp16 reproduce a model that "
          "was cast as a whole (model.half())")
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  command.add_option("-t,--threads", threads, "CPU threads; 0: one a core")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  command.add_option("-s,--seed", seed, "Seed of everything random")->capture_default_str();
  command.add_flag("-q,--quiet", quiet, "Say nothing on stderr but errors");
  command.add_flag("--json", json, "Print results as one JSON object");
}

void CommonOptions::add_model_flags(CLI::App& command) {
  add_quantize_base(command);
  add_random_weights(command);
}

CLI::Option* CommonOptions::add_quantize_base(CLI::App& command) {
  return command
      .add_option("--quantize-base", quantize_base,
                  "Keep the weights of attention and experts in few bits: fp8 in 8 (a half of "
                  "16-bit weights' memory), nf4 in 4 (a quarter); off: as they are. Costs time and "
                  "accuracy: every pass turns them back into their type, rounded")
      ->capture_default_str()
      ->check(CLI::IsMember({"off", "fp8", "nf4"}));
}

CLI::Option* CommonOptions::add_random_weights(CLI::App& command) {
  return command.add_flag(
      "--random-weights", random_weights,
      "Draw the weights on the device, from --seed, instead of reading any: --model gives the "
      "shape, and may be a built-in configuration. For measuring without a model's files");
}

std::optional<ops::WeightFormat> CommonOptions::quantization() const {
  return quantize_base == "off" ? std::nullopt : ops::find_weight_format(quantize_base);
}

std::unique_ptr<Backend> CommonOptions::open_device() const {
  return make_backend(device, threads);
}

Dtype CommonOptions::rope_dtype() const {
  if (rope_frequencies == "bf16") return Dtype::bf16;
  return rope_frequencies == "fp16" ? Dtype::f16 : Dtype::f32;
}

Precision choose_precision(std::string_view dtype, const Backend& backend, Purpose purpose,
                           Dtype stored) {
  const bool gpu = backend.kind() == DeviceKind::gpu;
  Precision p;
  if (dtype == "fp64") {
    if (backend.kind() != DeviceKind::reference)
      throw UsageError(
          fmt::format("--dtype fp64 computes on --device ref only, not on {}", backend.name()));
    p.weights = p.compute = Dtype::f64;
  } else if (dtype == "bf16" || (dtype == "auto" && gpu)) {
    if (gpu) {
      p.weights = p.compute = Dtype::bf16;
      p.operands = ops::Operands::bf16;
    } else if (purpose == Purpose::inference) {
      p.weights = Dtype::bf16;
    } else {
      p.operands = ops::Operands::bf16;
    }
  } else if (dtype == "auto" && purpose == Purpose::inference &&
             (stored == Dtype::bf16 || stored == Dtype::f16)) {
    p.weights = stored;
  } else if (dtype != "auto" && dtype != "fp32") {
    throw UsageError(fmt::format("--dtype is '{}', expected auto, fp32, bf16 or fp64", dtype));
  }
  return p;
}

fs::path resolve_model(const std::string& model) {
  const fs::path path(model);
  std::error_code error;
  if (fs::exists(path / "config.json", error)) return path;
  if (const auto checkpoint = find_checkpoint(path)) {
    refuse_adapter(*checkpoint);
    return *checkpoint;
  }
  refuse_adapter(path);
  if (!fs::exists(path, error)) {
    if (is_builtin_config(model))
      throw Error(
          fmt::format("--model {0}: a built-in configuration has no weights; train it with "
                      "`mixtral pretrain --model {0}`, or name a model's directory",
                      model));
    const std::string close = nearest(model, builtin_config_names());
    throw Error(fmt::format(
        "--model {}: there is no such directory, and the built-in configurations are {}{}", model,
        fmt::join(builtin_config_names(), ", "),
        close.empty() ? "" : fmt::format("; did you mean {}?", close)));
  }
  if (!fs::is_directory(path, error))
    throw Error(
        fmt::format("--model {}: {}; what is read is a directory with config.json, the weights in "
                    ".safetensors files and tokenizer.model, or a run",
                    model, is_gguf(path) ? "GGUF files are not read yet" : "is a file"));
  throw Error(fmt::format(
      "--model {}: found neither config.json (a model) nor checkpoints (a run) in it", model));
}

bool names_configuration(const std::string& model) {
  std::error_code error;
  return is_builtin_config(model) && !fs::exists(model, error);
}

ModelConfig model_config(const std::string& model) {
  if (names_configuration(model)) return builtin_config(model);
  return ModelConfig::load(resolve_model(model));
}

void draw_weights(Backend& backend, Mixtral& model, uint64_t seed) {
  nn::initialise(backend, model.parameters(), defaults::initialisation(model.config(), seed));
}

std::unique_ptr<Mixtral> open_model(Backend& backend, const CommonOptions& common,
                                    const std::string& model, const Mixtral::Options& options,
                                    int64_t sequences) {
  const ModelConfig config = model_config(model);
  require_positions(options.context, config);
  require_model_memory(backend, config, options, sequences);
  return open_planned_model(backend, common, model, options);
}

void require_positions(int64_t context, const ModelConfig& config) {
  if (context > config.max_positions)
    throw UsageError(fmt::format("--context {} is more than the model's {} positions", context,
                                 config.max_positions));
}

std::unique_ptr<Mixtral> open_planned_model(Backend& backend, const CommonOptions& common,
                                            const std::string& model,
                                            const Mixtral::Options& options) {
  if (!common.random_weights && !names_configuration(model))
    return load_model(backend, resolve_model(model), options);
  if (!common.random_weights)
    say(common, fmt::format("note: --model {} is a built-in configuration without weights: they "
                            "are drawn from --seed {}, as with --random-weights",
                            model, common.seed));
  auto result = std::make_unique<Mixtral>(backend, model_config(model), options);
  draw_weights(backend, *result, common.seed);
  return result;
}

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& tokenizer, const std::string& model) {
  if (!tokenizer.empty()) return load_tokenizer(tokenizer);
  if (names_configuration(model)) return nullptr;
  return find_tokenizer(resolve_model(model));
}

std::vector<int32_t> parse_ids(std::string_view flag, std::string_view text) {
  std::vector<int32_t> ids;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    std::string_view item = text.substr(begin, end - begin);
    while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
    while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
    int32_t id = 0;
    const auto [stop, failure] = std::from_chars(item.data(), item.data() + item.size(), id);
    if (failure != std::errc() || stop != item.data() + item.size() || id < 0)
      throw UsageError(
          fmt::format("{}: '{}' is not a token id; give numbers like 5,7,9", flag, item));
    ids.push_back(id);
    begin = end + 1;
  }
  return ids;
}

void refuse_unused(const CLI::App& command, std::string_view what,
                   const std::vector<std::string>& flags) {
  for (const std::string& flag : flags)
    if (command.count(flag) > 0)
      throw UsageError(fmt::format("{} has no use for {}; leave it out", what, flag));
}

void say(const CommonOptions& common, std::string_view line) {
  if (common.quiet) return;
  fmt::print(stderr, "{}\n", line);
  std::fflush(stderr);
}

}  // namespace mixtral
