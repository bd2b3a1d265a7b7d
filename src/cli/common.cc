#include "cli/common.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdio>

#include "backends/registry.h"
#include "base/messages.h"
#include "cli/run_config.h"

namespace mixtral {
void CommonOptions::add_to(cli::App& command) {
  command
      .add_option(
          "--device", device,
          "Where to compute: auto, cpu, cuda:0, or ref (slow, exact). cpu:avx2 or cpu:avx512 "
          "uses no newer instructions than these")
      ->capture_default_str();
  command
      .add_option("--dtype", dtype,
                  "auto, fp32, bf16 or fp64: how numbers are held and multiplied; fp8: on a GPU, "
                  "beside --quantize-base fp8, products round activations to 8 bits, too, and take "
                  "half the time where many tokens are computed at once")
      ->capture_default_str()
      ->check(cli::IsMember({"auto", "fp32", "bf16", "fp8", "fp64"}));
  command
      .add_option(
          "--rope-frequencies", rope_frequencies,
          "fp32, as transformers has them after loading; bf16 or fp16 reproduce a model that "
          "was cast as a whole (model.half())")
      ->capture_default_str()
      ->check(cli::IsMember({"fp32", "bf16", "fp16"}));
  command.add_option("-t,--threads", threads, "CPU threads; 0: one a core")
      ->capture_default_str()
      ->check(cli::Range(0, 1024));
  command.add_option("-s,--seed", seed, "Seed of everything random")->capture_default_str();
  command.add_flag("-q,--quiet", quiet, "Say nothing on stderr but errors");
  command.add_flag("--json", json, "Print results as one JSON object");
}

void CommonOptions::add_model_flags(cli::App& command) {
  add_quantize_base(command);
  add_batch_invariant(command);
  add_random_weights(command);
}

cli::Option* CommonOptions::add_quantize_base(cli::App& command) {
  return command
      .add_option(
          "--quantize-base", quantize_base,
          "Keep the weights of attention and experts in few bits: fp8 and int8_g64_bf16 in 8 (half "
          "the memory of 16-bit weights), nf4 and int4_g64_bf16 in 4 (a quarter); off: as they "
          "are. "
          "Costs accuracy. Where many tokens are computed at once, it costs time, too: weights are "
          "dequantized on each pass. q8_0 and q4_0 are GGUF's, by which a CPU generates text "
          "faster")
      ->capture_default_str()
      ->check(
          cli::IsMember({"off", "fp8", "nf4", "int8_g64_bf16", "int4_g64_bf16", "q8_0", "q4_0"}));
}

cli::Option* CommonOptions::add_random_weights(cli::App& command) {
  return command.add_flag(
      "--random-weights", random_weights,
      "Draw the weights on the device, from --seed, instead of reading any: --model gives the "
      "shape, and may be a built-in configuration. For measuring without a model's files");
}

void CommonOptions::add_expert_memory(cli::App& command) {
  command
      .add_option(
          "--expert-memory", expert_memory,
          "Keep no more of the experts' weights in the device's memory than this (12GB). The "
          "others are read from the model's files as they are needed (CPU), or copied from "
          "the host's memory, which holds all of them (GPU). Default: all of them, or, "
          "where the model does not fit, as many as fit")
      ->transform(cli::AsSizeValue(false))
      ->check(count_between(1, int64_t{1} << 50));
}

void CommonOptions::add_cache_dtype(cli::App& command) {
  command
      .add_option("--cache-dtype", cache_dtype,
                  "How the keys and values of earlier tokens are kept: auto (as --dtype computes), "
                  "fp32, bf16, fp16, or 8 bits with a scale a head and token, int8 or fp8. Fewer "
                  "bits make room for more tokens, and long texts faster; int8 is nearer to the "
                  "numbers than fp8")
      ->capture_default_str()
      ->check(cli::IsMember({"auto", "fp32", "bf16", "fp16", "int8", "fp8"}));
}

std::optional<ops::CacheType> CommonOptions::cache_type() const {
  using ops::CacheType;
  if (cache_dtype == "int8") return CacheType::int8;
  if (cache_dtype == "fp8") return CacheType::fp8;
  if (cache_dtype == "bf16") return CacheType::bf16;
  if (cache_dtype == "fp16") return CacheType::f16;
  return cache_dtype == "fp32" ? std::optional(CacheType::f32) : std::nullopt;
}

cli::Option* CommonOptions::add_batch_invariant(cli::App& command) {
  return command.add_flag(
      "--batch-invariant", batch_invariant,
      "Compute each token by kernels that do not depend on how many are computed at once: the same "
      "logits in a prompt and decoded, alone and among others. On a CPU it is always so; on a GPU "
      "it costs time");
}

std::optional<ops::WeightFormat> CommonOptions::quantization() const {
  return quantize_base == "off" ? std::nullopt : ops::find_weight_format(quantize_base);
}

std::unique_ptr<Backend> CommonOptions::open_device() const {
  std::unique_ptr<Backend> backend = make_backend(device, threads);
  backend->set_batch_invariant(batch_invariant);
  return backend;
}

Dtype CommonOptions::rope_dtype() const {
  if (rope_frequencies == "bf16") return Dtype::bf16;
  return rope_frequencies == "fp16" ? Dtype::f16 : Dtype::f32;
}

OpenOptions CommonOptions::open_options(int64_t context, int64_t sequences) const {
  return {.device = device,
          .threads = threads,
          .dtype = dtype,
          .rope_frequencies = rope_dtype(),
          .quantization = quantization(),
          .cache = cache_type(),
          .batch_invariant = batch_invariant,
          .random_weights = random_weights,
          .seed = seed,
          .context = context,
          .sequences = sequences,
          .expert_memory = expert_memory};
}

ModelSource open_source(const CommonOptions& common, const ModelSource::Names& names) {
  return ModelSource::resolve(names, [&](const std::string& note) { say(common, note); });
}

OpenedModel open_model(const CommonOptions& common, const ModelSource& source,
                       const OpenOptions& options) {
  return open_model(source, options, [&](const std::string& note) { say(common, note); });
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

void refuse_unused(const cli::App& command, std::string_view what,
                   const std::vector<std::string>& flags) {
  for (const std::string& flag : flags)
    if (command.count(flag) > 0)
      throw UsageError(fmt::format("{} has no use for {}; leave it out", what, flag));
}

void say(const CommonOptions& common, std::string_view line) {
  if (common.quiet) return;
  messages::line(line);
}

}  // namespace mixtral
