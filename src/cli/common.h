#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/command_line.h"
#include "open/model_source.h"
#include "open/open_model.h"

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
  bool batch_invariant = false;
  std::string quantize_base = "off";
  std::optional<int64_t> expert_memory;
  std::string cache_dtype = "auto";

  void add_to(cli::App& command);
  void add_model_flags(cli::App& command);                // the following three
  cli::Option* add_batch_invariant(cli::App& command);    // --batch-invariant
  cli::Option* add_quantize_base(cli::App& command);      // --quantize-base
  cli::Option* add_random_weights(cli::App& command);     // --random-weights
  void add_expert_memory(cli::App& command);              // --expert-memory
  void add_cache_dtype(cli::App& command);                // --cache-dtype
  std::optional<ops::CacheType> cache_type() const;       // of --cache-dtype
  std::optional<ops::WeightFormat> quantization() const;  // of --quantize-base
  OpenOptions open_options(int64_t context, int64_t sequences = 1) const;
  std::unique_ptr<Backend> open_device() const;
  Dtype rope_dtype() const;  // of --rope-frequencies
};

/// Finds what --model, --adapter and --tokenizer name (open/model_source.h), saying what the user
/// may not expect.
ModelSource open_source(const CommonOptions& common, const ModelSource::Names& names);

/// Opens the model with these flags (open/open_model.h).
OpenedModel open_model(const CommonOptions& common, const ModelSource& source,
                       const OpenOptions& options);

/// "5,7,9" as token ids. Throws UsageError naming the flag and the first bad item.
std::vector<int32_t> parse_ids(std::string_view flag, std::string_view text);

/// Throws UsageError for the first of `flags` that was given although `what` can make nothing of
/// it.
void refuse_unused(const cli::App& command, std::string_view what,
                   const std::vector<std::string>& flags);

/// Prints one line to stderr, unless --quiet.
void say(const CommonOptions& common, std::string_view line);

/// Runs the command line; returns the exit code (docs: 0 done, 1 failed, 2 usage, 128+n signal).
int run_command_line(int argc, char** argv);

}  // namespace mixtral
