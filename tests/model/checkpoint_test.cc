// Weights that do not fit their config.json.
#include "model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "backends/planning.h"
#include "backends/registry.h"
#include "model/tensor_names.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

ModelConfig small() { return testing::uneven_config(); }

/// What stands in the weights' file.
struct Stored {
  Shape shape;
  Dtype dtype = Dtype::f32;
  float value = 0.5f;
};
using Weights = std::map<std::string, Stored>;

Weights weights_of(const ModelConfig& config) {
  Weights weights;
  for (const auto& [name, shape] : on_disk_tensors(config)) weights[name] = {shape};
  return weights;
}

void write(const fs::path& directory, const ModelConfig& config, const Weights& weights) {
  config.save(directory);
  std::vector<PlannedTensor> plan;
  for (const auto& [name, stored] : weights) plan.push_back({name, stored.shape, stored.dtype});
  std::vector<float> values;
  std::vector<uint8_t> bytes;
  write_safetensors(directory / "model.safetensors", plan, [&](const PlannedTensor& planned) {
    const Stored& stored = weights.at(planned.name);
    const auto count = static_cast<size_t>(stored.shape.numel());
    if (stored.dtype == Dtype::u8) {
      bytes.assign(count, 1);
      return Tensor(bytes.data(), stored.shape, Dtype::u8);
    }
    values.assign(count, 0.5f);
    values.back() = stored.value;
    return Tensor(values.data(), stored.shape, Dtype::f32);
  });
}

const std::string kLayer = "model.layers.1.";
const std::string kExpert = kLayer + "block_sparse_moe.experts.2.";

TEST(LoadModel, RefusesWeightsThatDoNotFitTheConfigurationBeforeItTakesMemory) {
  struct Case {
    std::function<void(ModelConfig&, Weights&)> spoil;
    std::string tensor, words;
  };
  const Case cases[] = {
      {[](auto&, auto& w) { w.erase("model.embed_tokens.weight"); }, "model.embed_tokens.weight",
       "is missing"},
      {[](auto&, auto& w) { w.erase(kExpert + "w3.weight"); }, kExpert + "w3.weight", "is missing"},
      {[](auto&, auto& w) { w.erase("lm_head.weight"); }, "lm_head.weight", "is missing"},
      {[](auto&, auto& w) { w["model.layers.2.input_layernorm.weight"] = {{8}}; },
       "model.layers.2.input_layernorm.weight", "has no place"},
      {[](auto&, auto& w) { w[kLayer + "self_attn.q_proj.bias"] = {{8}}; },
       kLayer + "self_attn.q_proj.bias", "has no place"},
      {[](auto&, auto& w) { w["model.norm.weight"] = {{9}}; }, "model.norm.weight",
       "has shape [9], but the configuration asks for [8]"},
      {[](auto&, auto& w) { w["model.norm.weight"] = {{1, 8}}; }, "model.norm.weight",
       "has shape [1, 8]"},
      {[](auto&, auto& w) { w[kExpert + "w2.weight"] = {{6, 8}}; }, kExpert + "w2.weight",
       "has shape [6, 8], but the configuration asks for [8, 6]"},
      {[](auto&, auto& w) { w[kExpert + "w1.weight"].dtype = Dtype::u8; }, kExpert + "w1.weight",
       "has the dtype U8"},
      // The configuration is wrong instead.
      {[](auto& c, auto&) { c.num_layers = 3; }, "model.layers.2.", "is missing"},
      {[](auto& c, auto&) { c.num_layers = 1; }, "model.layers.1.", "has no place"},
      {[](auto& c, auto&) { c.num_experts = 2; }, "gate.weight", "has shape [3, 8]"},
      {[](auto& c, auto&) { c.num_kv_heads = 2; }, "k_proj.weight", "has shape [4, 8]"},
      {[](auto& c, auto&) { c.head_dim = 8; }, "q_proj.weight", "asks for [16, 8]"},
      {[](auto& c, auto&) { c.vocab_size = 1000000; }, "model.embed_tokens.weight", "[1000000, 8]"},
      // Terabytes by its own account.
      {[](auto& c, auto&) { c = builtin_config("8x7b"); }, "model.embed_tokens.weight",
       "asks for [32000, 4096]"},
  };
  for (const Case& c : cases) {
    const TemporaryDirectory directory;
    ModelConfig config = small();
    Weights weights = weights_of(config);
    c.spoil(config, weights);
    write(directory.path(), config, weights);
    PlanningBackend backend;
    const std::string message = message_of([&] { load_model(backend, directory.path(), {}); });
    EXPECT_THAT(message, AllOf(HasSubstr(directory.path().string()), HasSubstr(c.tensor),
                               HasSubstr(c.words)));
    EXPECT_EQ(backend.peak(), 0) << message;
  }
}

TEST(LoadModel, TakesPackedExpertsAndChecksThemToo) {
  auto pack = [](Weights& weights) {
    for (auto it = weights.begin(); it != weights.end();)
      it = it->first.find("experts.") != std::string::npos ? weights.erase(it) : std::next(it);
    for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
      weights[std::string(layer) + "mlp.experts.gate_up_proj"] = {{3, 12, 8}};
      weights[std::string(layer) + "mlp.experts.down_proj"] = {{3, 8, 6}};
    }
  };
  const TemporaryDirectory directory;
  Weights weights = weights_of(small());
  pack(weights);
  write(directory.path(), small(), weights);
  const auto backend = make_backend("ref");
  EXPECT_NO_THROW(load_model(*backend, directory.path(), {}));

  weights[kLayer + "mlp.experts.down_proj"] = {{3, 6, 8}};
  write(directory.path(), small(), weights);
  EXPECT_THAT(message_of([&] { load_model(*backend, directory.path(), {}); }),
              HasSubstr("down_proj has shape [3, 6, 8], but the configuration asks for [3, 8, 6]"));

  // Both forms at once: one of them is too many.
  weights = weights_of(small());
  weights[kLayer + "mlp.experts.down_proj"] = {{3, 8, 6}};
  write(directory.path(), small(), weights);
  EXPECT_THAT(message_of([&] { load_model(*backend, directory.path(), {}); }),
              AllOf(HasSubstr("w2.weight"), HasSubstr("has no place")));
}

// mlx-lm: [E, F, D] or [E, D, F] for each of gate, up and down.
TEST(LoadModel, ReadsExpertsAsMlxPacksThem) {
  const ModelConfig config = small();
  const auto backend = make_backend("ref");
  const TemporaryDirectory plain, packed;
  Mixtral drawn(*backend, config, {});
  nn::initialise(*backend, drawn.parameters(), {.seed = 3});
  save_model(*backend, drawn, plain.path(), Dtype::f32);
  const ModelTensors tensors(plain.path());
  std::map<std::string, Tensor> out;
  std::map<std::string, std::vector<float>> experts;
  for (const std::string& name : tensors.names()) {
    const auto id = parse_tensor_name(name);
    ASSERT_TRUE(id.has_value()) << name;
    if (id->expert < 0) {
      out[name] = tensors.view(name);
      continue;
    }
    const Shape shape = tensor_shape(config, id->kind);
    const std::string mlx = tensor_name(naming_schemes()[1], *id);
    auto& values = experts[mlx];
    values.resize(static_cast<size_t>(config.num_experts * shape.numel()));
    out[mlx] = Tensor(values.data(), {config.num_experts, shape[0], shape[1]}, Dtype::f32);
    tensors.read_into(name, out[mlx][id->expert]);
  }
  ASSERT_TRUE(out.contains("model.layers.1.block_sparse_moe.switch_mlp.gate_proj.weight"));
  config.save(packed.path());
  write_safetensors(packed.path() / "model.safetensors", out);
  const auto read = load_model(*backend, packed.path(), {});
  const TemporaryDirectory again;
  save_model(*backend, *read, again.path(), Dtype::f32);
  EXPECT_EQ(read_file(again.path() / "model.safetensors"),
            read_file(plain.path() / "model.safetensors"));
}

TEST(LoadModel, ReportsWeightsThatAreNotFinite) {
  const TemporaryDirectory directory;
  const auto backend = make_backend("ref");
  for (const float value : {std::nanf(""), -std::numeric_limits<float>::infinity()}) {
    Weights weights = weights_of(small());
    weights[kExpert + "w1.weight"].value = value;
    write(directory.path(), small(), weights);
    EXPECT_THAT(message_of([&] { load_model(*backend, directory.path(), {}); }),
                AllOf(HasSubstr("model.safetensors"), HasSubstr(kExpert + "w1.weight"),
                      HasSubstr("element 47")));
  }
}

TEST(LoadModel, LeavesAloneWhatOldFilesCarryAndNoModelNeeds) {
  const TemporaryDirectory directory;
  const auto backend = make_backend("ref");
  ModelConfig config = small();
  Weights weights = weights_of(config);
  weights[kLayer + "self_attn.rotary_emb.inv_freq"] = {{2}};
  write(directory.path(), config, weights);
  EXPECT_NO_THROW(load_model(*backend, directory.path(), {}));
  config.tie_embeddings = true;  // lm_head.weight is then the embeddings once more
  write(directory.path(), config, weights);
  EXPECT_TRUE(load_model(*backend, directory.path(), {})->config().tie_embeddings);
}

TEST(LoadModel, AHeadOfItsOwnCountsBesideTiedEmbeddings) {
  const TemporaryDirectory directory;
  ModelConfig config = small();
  Weights weights = weights_of(config);
  weights["lm_head.weight"].value = 0.25f;
  config.tie_embeddings = true;
  write(directory.path(), config, weights);
  EXPECT_FALSE(load_model(*make_backend("ref"), directory.path(), {})->config().tie_embeddings);
  std::string note;
  settle_config(config, ModelTensors(directory.path()),
                [&](const std::string& text) { note = text; });
  EXPECT_THAT(note, HasSubstr("lm_head.weight differs from the embedding"));
}

TEST(LoadModel, TakesTheDtypeThatConfigJsonLeavesOpenFromTheWeights) {
  const TemporaryDirectory directory;
  Weights weights = weights_of(small());
  for (auto& [name, stored] : weights) stored.dtype = Dtype::bf16;
  write(directory.path(), small(), weights);
  std::string text = read_file(directory.path() / "config.json");
  const std::string named = "\"torch_dtype\": \"float32\"";
  for (const char* open : {"\"torch_dtype\": \"auto\"", "\"torch_dtype\": null"}) {
    std::string changed = text;
    changed.replace(changed.find(named), named.size(), open);
    write_file(directory.path() / "config.json", changed);
    EXPECT_EQ(load_model(*make_backend("ref"), directory.path(), {})->config().dtype, Dtype::bf16);
  }
}

}  // namespace
}  // namespace mixtral
