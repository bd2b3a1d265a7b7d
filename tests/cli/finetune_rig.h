#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "backends/registry.h"
#include "base/file.h"
#include "model/checkpoint.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace mixtral {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

inline Outcome run(const Arguments& arguments) { return run_command(arguments); }

/// A very small model with random weights, rows of ids and preference pairs.
class Finetune : public ::testing::Test {
 protected:
  void SetUp() override {
    const ModelConfig config = testing::minimal_config();
    save(config, Dtype::f32, "base");
    save(config, Dtype::bf16, "narrow");
    std::string rows, pairs;
    for (int i = 0; i < 12; ++i) {
      rows += fmt::format("{{\"input_ids\": [{0}, {0}, {1}, {2}, {1}]}}\n", i, i + 1, i + 2);
      pairs += fmt::format(
          "{{\"prompt_ids\": [{0}, {0}], \"chosen_ids\": [{1}, {2}], \"rejected_ids\": [3]}}\n", i,
          i + 5, i + 6);
    }
    write_file(path("rows.jsonl"), rows);
    write_file(path("pairs.jsonl"), pairs);
  }

  void save(ModelConfig config, Dtype dtype, const std::string& name) {
    const auto backend = make_backend("cpu", 1);
    config.dtype = dtype;
    Mixtral model(*backend, config, {});
    nn::initialise(*backend, model.parameters(), {.seed = 4, .deviation = 0.1});
    fs::create_directories(path(name));
    save_model(*backend, model, path(name), dtype);
  }

  std::string path(const std::string& name) const { return (scratch_.path() / name).string(); }

  Arguments flags(const std::string& out, const Arguments& more) const {
    Arguments all{
        "finetune", "--model",      path("base"), "--data", path("rows.jsonl"), "--out", path(out),
        "--device", "cpu",          "--threads",  "1",      "--pack",           "off",   "--lr",
        "1e-2",     "--batch-size", "2"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  fs::path checkpoint(const std::string& out, int step) const {
    return scratch_.path() / out / "checkpoints" / fmt::format("step-{:08}", step);
  }
  static ModelConfig config_of(const std::string& model) { return ModelConfig::load(model); }

  TemporaryDirectory scratch_;
};

}  // namespace mixtral
