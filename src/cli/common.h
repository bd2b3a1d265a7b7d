#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/mixtral.h"
#include "text/tokenizer.h"

namespace mixtral {

/// The flags that every command that computes has.
struct CommonOptions {
  std::string device = "auto";
  std::string dtype = "auto";
  std::string rope_frequencies = "fp32";
  int threads = 0;
  uint64_t seed = 1;
  bool quiet = false;
  bool json = false;
  // Of commands that open a model:
  bool random_weights = false;
  std::string quantize_base = "off";

  void add_to(CLI::App& command);
  void add_model_flags(CLI::App& command);                // the following two
  CLI::Option* add_quantize_base(CLI::App& command);      // --quantize-base
  CLI::Option* add_random_weights(CLI::App& command);     // --random-weights
  std::optional<ops::WeightFormat> quantization() const;  // of --quantize-base
  std::unique_ptr<Backend> open_device() const;
  Dtype rope_dtype() const;  // of --rope-frequencies
};

/// How numbers are held and multiplied.
struct Precision {
  Dtype weights = Dtype::f32;
  Dtype compute = Dtype::f32;
  ops::Operands operands = ops::Operands::exact;
};
enum class Purpose { inference, training };

/// What --dtype means on a device. fp32: everything in f32 (on `ref`, f32 storage). fp64: `ref`
/// only. bf16: on a GPU, weights and activations in bf16; on a CPU, weights in bf16 for inference
/// (the arithmetic stays f32), and products of bf16-rounded operands for training. auto: bf16 on a
/// GPU; on a CPU f32, except that a model stored in 16 bits stays so for inference. Throws
/// UsageError.
Precision choose_precision(std::string_view dtype, const Backend& backend, Purpose purpose,
                           Dtype stored);

/// What --model names: a model directory, or a run directory's best checkpoint (else its latest).
/// Throws Error, which says what was looked for, or that an adapter is there (settle_adapter).
std::filesystem::path resolve_model(const std::string& model);

/// Draws a model's weights from a seed, on its device, as training from scratch would.
void draw_weights(Backend& backend, Mixtral& model, uint64_t seed);

/// A model from a directory or a run; or, with --random-weights or for a built-in configuration's
/// name (of which a note then tells), one whose weights are drawn. Throws Error, before anything is
/// allocated, when the model and a key-value cache of `sequences` do not fit the device, or
/// --context the model.
std::unique_ptr<Mixtral> open_model(Backend& backend, const CommonOptions& common,
                                    const std::string& model, const Mixtral::Options& options,
                                    int64_t sequences = 1);

/// The same where the caller has planned the memory, and more than the model's, already.
std::unique_ptr<Mixtral> open_planned_model(Backend& backend, const CommonOptions& common,
                                            const std::string& model,
                                            const Mixtral::Options& options);

/// Throws UsageError when --context asks for more positions than a model has.
void require_positions(int64_t context, const ModelConfig& config);

/// Whether it names a built-in configuration, and no directory.
bool names_configuration(const std::string& model);

/// The configuration that open_model would use.
ModelConfig model_config(const std::string& model);

/// The tokenizer named by --tokenizer, or else the model's own; null when there is none.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& tokenizer, const std::string& model);

/// "5,7,9" as token ids. Throws UsageError naming the flag and the first bad item.
std::vector<int32_t> parse_ids(std::string_view flag, std::string_view text);

/// Throws UsageError for the first of `flags` that was given although `what` can make nothing of
/// it.
void refuse_unused(const CLI::App& command, std::string_view what,
                   const std::vector<std::string>& flags);

/// Prints one line to stderr, unless --quiet.
void say(const CommonOptions& common, std::string_view line);

/// Runs the command line; returns the exit code (docs: 0 done, 1 failed, 2 usage, 128+n signal).
int run_command_line(int argc, char** argv);

}  // namespace mixtral
