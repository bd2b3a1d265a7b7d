// Adapters from anywhere: damaged, hostile, or made for another model.
#include "model/adapter_file.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <functional>
#include <map>

#include "base/file.h"
#include "base/random.h"
#include "io/safetensors_writer.h"
#include "model/pattern_map.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

ModelConfig small() { return testing::uneven_config(); }

struct Stored {
  Shape shape;
  float value = 0.5f;  // of the last element
  float others = 0.5f;
};
using Tensors = std::map<std::string, Stored>;
using Keys = std::map<std::string, std::string>;  // of a JSON object, with the values' text

const std::string kQuery = "base_model.model.model.layers.1.self_attn.q_proj.lora_";
const std::string kExpert = "base_model.model.model.layers.0.block_sparse_moe.experts.2.w1.lora_";

Tensors peft_tensors() {
  return {{kQuery + "A.weight", {{2, 8}}},
          {kQuery + "B.weight", {{8, 2}}},
          {kExpert + "A.weight", {{2, 8}}},
          {kExpert + "B.weight", {{6, 2}}}};
}
Keys peft_keys() {
  return {{"peft_type", "\"LORA\""}, {"r", "2"}, {"lora_alpha", "4"}, {"lora_dropout", "0.1"}};
}

void write_tensors(const fs::path& path, const Tensors& tensors) {
  std::vector<PlannedTensor> plan;
  for (const auto& [name, stored] : tensors) plan.push_back({name, stored.shape, Dtype::f32});
  std::vector<float> values;
  write_safetensors(path, plan, [&](const PlannedTensor& planned) {
    const Stored& stored = tensors.at(planned.name);
    values.assign(static_cast<size_t>(stored.shape.numel()), stored.others);
    if (!values.empty()) values.back() = stored.value;
    return Tensor(values.data(), stored.shape, Dtype::f32);
  });
}

std::string json_of(const Keys& keys) {
  std::string text;
  for (const auto& [key, value] : keys)
    text += fmt::format("{}\"{}\": {}", text.empty() ? "{" : ", ", key, value);
  return text + "}";
}

std::string error_of(const Keys& keys, const Tensors& tensors,
                     const char* file = "adapter_model.safetensors") {
  const TemporaryDirectory directory;
  write_file(directory.path() / "adapter_config.json", json_of(keys));
  write_tensors(directory.path() / file, tensors);
  const std::string message = message_of([&] { AdapterFile::load(directory.path(), small()); });
  if (message != "no error") {
    EXPECT_THAT(message, HasSubstr(directory.path().string()));
  }
  return message;
}

TEST(AdapterFile, ReadsWhatPeftWrites) {
  EXPECT_EQ(error_of(peft_keys(), peft_tensors()), "no error");
  Keys keys = peft_keys();  // patterns as PEFT writes them, and as people do
  keys["rank_pattern"] = R"({"layers.0.block_sparse_moe.experts.[0-9]+.w1": 1})";
  keys["alpha_pattern"] = R"({"^model.layers.(0|1).*q_proj": 3})";
  Tensors tensors = peft_tensors();
  tensors[kExpert + "A.weight"] = {{1, 8}};
  tensors[kExpert + "B.weight"] = {{6, 1}};
  EXPECT_EQ(error_of(keys, tensors), "no error");
}

TEST(AdapterFile, RefusesConfigurationsItCannotHonour) {
  const std::string long_pattern = "{\"" + std::string(300, '(') + "\": 1}";
  const std::tuple<const char*, std::string, const char*> cases[] = {
      {"peft_type", "\"IA3\"", "only LORA"},
      {"peft_type", "3", "peft_type"},
      {"use_dora", "true", "use_dora"},
      {"modules_to_save", R"(["lm_head"])", "modules_to_save"},
      {"fan_in_fan_out", "true", "fan_in_fan_out"},
      {"bias", "\"all\"", "biases"},
      {"r", "4", "has rank 2, but adapter_config.json says 4"},
      {"r", "\"2\"", "r: expected an integer"},
      {"r", "-2", "expected a rank from 1 to 65536, found -2"},
      {"r", "2.9", "r: expected an integer"},
      {"r", "1000000000", "expected a rank from 1 to 65536"},
      {"r", "1e308", "r: expected an integer"},
      {"rank_pattern", R"({"q_proj": 2.9})", "rank_pattern.q_proj: expected an integer"},
      {"rank_pattern", R"({"q_proj": 1000000000})", "expected a rank from 0 to 65536"},
      {"lora_alpha", "\"4\"", "lora_alpha: expected a number"},
      {"lora_alpha", "1e300", "lora_alpha: expected a number from"},
      {"lora_alpha", "NaN", "not valid JSON"},
      {"lora_dropout", "1", "lora_dropout: expected a share from 0 to below 1, found 1"},
      {"lora_dropout", "-0.5", "lora_dropout"},
      {"use_rslora", "1", "use_rslora: expected true or false"},
      {"rank_pattern", R"({"q_proj": 3})", "has rank 2, but adapter_config.json says 3"},
      {"rank_pattern", R"({"q_proj": "x"})", "rank_pattern.q_proj: expected an integer"},
      {"alpha_pattern", R"({"q_(proj": 3})", "not a regular expression"},
      {"alpha_pattern", R"({"(q)\\1": 3})", "not a regular expression"},
      {"alpha_pattern", R"({"(a{9999}){9999}": 3})", "not a regular expression"},
      {"alpha_pattern", R"({"(?:(?=.)){10000}": 3})", "not a regular expression"},
      {"alpha_pattern", R"({"q{,3}_proj": 3})", "not a regular expression"},
      {"init_lora_weights", R"("pissa")", "init_lora_weights is 'pissa'"},
      {"init_lora_weights", R"("pissa_niter_16")", "path_initial_model_for_weight_conversion"},
      {"init_lora_weights", R"("OLoRA")", "changed the base's weights"},
      {"init_lora_weights", R"("corda")", "changed the base's weights"},
      {"init_lora_weights", R"("loftq")", "changed the base's weights"},
      {"init_lora_weights", R"("lora_ga")", "changed the base's weights"},
      {"init_lora_weights", R"("tomorrow's")", "not known here"},
      {"kasa_config", R"({"beta": 1})", "kasa_config is set"},
      {"use_tomorrows", "true", "use_tomorrows is set"},
      {"alpha_pattern", long_pattern, "at most 256"},
      {"alpha_pattern", "3", "alpha_pattern"},
      {"target_parameters", "[3]", "target_parameters[0]: expected a string"},
  };
  for (const auto& [key, value, words] : cases) {
    Keys keys = peft_keys();
    keys[key] = value;
    EXPECT_THAT(error_of(keys, peft_tensors()), HasSubstr(words)) << key << " = " << value;
  }
  for (const char* key : {"r", "lora_alpha", "peft_type"}) {
    Keys keys = peft_keys();
    keys.erase(key);
    EXPECT_THAT(error_of(keys, peft_tensors()), HasSubstr(key));
  }
}

TEST(AdapterFile, NullAndTrainingSettingsChangeNothing) {
  for (const auto& [key, value] : Keys{{"bias", "null"},
                                       {"use_dora", "null"},
                                       {"use_rslora", "null"},
                                       {"lora_dropout", "null"},
                                       {"rank_pattern", "null"},
                                       {"modules_to_save", "null"},
                                       {"init_lora_weights", "null"},
                                       {"init_lora_weights", "\"eva\""},
                                       {"eva_config", R"({"rho": 2.0})"},
                                       {"loftq_config", "{}"},
                                       {"use_bdlora", "null"},
                                       {"qalora_group_size", "16"},
                                       {"target_modules", "\"all-linear\""}}) {
    Keys keys = peft_keys();
    keys[key] = value;
    EXPECT_EQ(error_of(keys, peft_tensors()), "no error") << key << " = " << value;
  }
}

/// An adapter as loaded, of these tensors.
AdapterFile loaded(const Keys& keys, const Tensors& tensors) {
  const TemporaryDirectory directory;
  write_file(directory.path() / "adapter_config.json", json_of(keys));
  write_tensors(directory.path() / "adapter_model.safetensors", tensors);
  return AdapterFile::load(directory.path(), small());
}

// As PEFT 0.21 looks them up (tests/interop/peft asks it): with transformers 5 the router's weight
// and the packed experts are parameters, with transformers 4 routers and experts are modules.
TEST(AdapterFile, PatternsAreLookedUpUnderTheNamesThatPeftHas) {
  const std::string layer = "base_model.model.model.layers.0.";
  const Tensors five = {{layer + "mlp.gate.lora_A.weight", {{2, 8}}},
                        {layer + "mlp.gate.lora_B.weight", {{3, 2}}},
                        {layer + "mlp.experts.lora_A.weight", {{6, 6}}},
                        {layer + "mlp.experts.lora_B.weight", {{8, 6}}},
                        {layer + "mlp.experts.base_layer.lora_A.weight", {{6, 8}}},
                        {layer + "mlp.experts.base_layer.lora_B.weight", {{12, 6}}}};
  const Tensors four = {{layer + "block_sparse_moe.gate.lora_A.weight", {{2, 8}}},
                        {layer + "block_sparse_moe.gate.lora_B.weight", {{3, 2}}},
                        {layer + "block_sparse_moe.experts.1.w2.lora_A.weight", {{2, 6}}},
                        {layer + "block_sparse_moe.experts.1.w2.lora_B.weight", {{8, 2}}}};
  struct Case {
    const Tensors& tensors;
    std::string pattern;
    std::map<std::string, double> scales;
  };
  const Case cases[] = {
      {five, "gate.weight", {{"gate", 3}, {"gate_up_proj", 2}, {"down_proj", 2}}},
      {five, "gate", {{"gate", 2}, {"gate_up_proj", 2}, {"down_proj", 2}}},
      {five, "experts", {{"gate", 2}, {"gate_up_proj", 2}, {"down_proj", 2}}},
      {five, "gate_up_proj", {{"gate", 2}, {"gate_up_proj", 3}, {"down_proj", 2}}},
      {five, "mlp.experts.down_proj", {{"gate", 2}, {"gate_up_proj", 2}, {"down_proj", 3}}},
      {five, ".*_proj", {{"gate", 2}, {"gate_up_proj", 3}, {"down_proj", 3}}},
      {four, "gate", {{"gate", 3}, {"w2", 2}}},
      {four, "gate.weight", {{"gate", 2}, {"w2", 2}}},
      {four, "w2", {{"gate", 2}, {"w2", 3}}},
      {four, "experts.[0-9]+.w2", {{"gate", 2}, {"w2", 3}}},
      {four, "(w2|gate)", {{"gate", 3}, {"w2", 3}}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.pattern);
    Keys keys = peft_keys();
    keys["target_parameters"] = R"(["gate.weight", "gate_up_proj", "mlp.experts.down_proj"])";
    keys["alpha_pattern"] = fmt::format("{{\"{}\": 6, \".*\": 4}}", c.pattern);
    std::map<std::string, double> found;
    for (const AdapterModule& module : loaded(keys, c.tensors).modules)
      found[module.target] = module.scale;
    EXPECT_EQ(found, c.scales);
  }
}

TEST(AdapterFile, PackedW1AndW3HaveTwiceRankAndAlpha) {
  const std::string layer = "base_model.model.model.layers.0.mlp.experts.";
  const Tensors tensors = {{layer + "base_layer.lora_A.weight", {{12, 8}}},
                           {layer + "base_layer.lora_B.weight", {{12, 12}}},
                           {layer + "lora_A.weight", {{6, 6}}},
                           {layer + "lora_B.weight", {{8, 6}}}};
  Keys keys = peft_keys();
  keys["target_modules"] = R"(["w1", "w2", "w3"])";
  for (const AdapterModule& module : loaded(keys, tensors).modules) {
    EXPECT_EQ(module.scale, 2) << module.target;
    EXPECT_EQ(module.rank, module.target == "gate_up_proj" ? 4 : 2);
  }
}

TEST(AdapterFile, PackedExpertsOfOlderPeftsAreTransposed) {
  const std::string layer = "base_model.model.model.layers.0.mlp.experts.lora_";
  Keys keys = peft_keys();
  keys["target_parameters"] = R"(["down_proj"])";
  const auto now =
      loaded(keys, {{layer + "A.weight", {{6, 6}, 2}}, {layer + "B.weight", {{8, 6}, 3}}});
  const auto old =
      loaded(keys, {{layer + "A.weight", {{6, 8}, 3}}, {layer + "B.weight", {{6, 6}, 2}}});
  ASSERT_EQ(old.modules.size(), 1u);
  EXPECT_EQ(old.modules[0].a.size(), now.modules[0].a.size());
  EXPECT_EQ(old.modules[0].a.back(), 2);
  EXPECT_EQ(old.modules[0].b.back(), 3);
  EXPECT_EQ(old.modules[0].rank, 2);
}

TEST(AdapterFile, ExpertsWithoutAnUpdateAreNotTuned) {
  Tensors tensors = peft_tensors();
  for (const char* expert : {"0", "1"}) {
    std::string name = kExpert;
    name.replace(name.find("experts.2"), 9, std::string("experts.") + expert);
    const float value = *expert == '0' ? 0.0f : 0.5f;
    tensors[name + "A.weight"] = {{2, 8}, value, value};
    tensors[name + "B.weight"] = {{6, 2}, 0, 0};
  }
  const AdapterFile file = loaded(peft_keys(), tensors);
  EXPECT_EQ(file.modules.at(0).experts, (std::vector<int64_t>{1, 2})) << "B alone starts at zero";
}

TEST(AdapterFile, CopiesOfTheBasesTensorsMustBeEqual) {
  const TemporaryDirectory base, adapter;
  small().save(base.path());
  write_tensors(base.path() / "model.safetensors",
                {{"model.embed_tokens.weight", {{12, 8}}}, {"lm_head.weight", {{12, 8}, 2}}});
  const auto message = [&](const std::string& name, const Stored& stored, const fs::path& model) {
    Tensors tensors = peft_tensors();
    tensors["base_model.model." + name] = stored;
    Keys keys = peft_keys();
    keys["modules_to_save"] = R"(["lm_head"])";
    write_file(adapter.path() / "adapter_config.json", json_of(keys));
    write_tensors(adapter.path() / "adapter_model.safetensors", tensors);
    return message_of([&] { AdapterFile::load(adapter.path(), small(), model); });
  };
  const fs::path& model = base.path();
  EXPECT_EQ(message("lm_head.base_layer.weight", {{12, 8}, 2}, model), "no error");
  EXPECT_EQ(message("lm_head.weight", {{12, 8}, 2}, model), "no error");
  EXPECT_EQ(message("lm_head.modules_to_save.weight", {{12, 8}, 2}, model), "no error");
  EXPECT_EQ(message("model.embed_tokens.weight", {{12, 8}}, model), "no error");
  EXPECT_THAT(
      message("lm_head.weight", {{12, 8}, 3}, model),
      AllOf(HasSubstr("tensor base_model.model.lm_head.weight"), HasSubstr("other values")));
  EXPECT_THAT(message("model.embed_tokens.weight", {{14, 8}}, model),
              AllOf(HasSubstr("[14, 8]"), HasSubstr("vocabulary")));
  EXPECT_THAT(message("model.norm.weight", {{8}}, model), HasSubstr("does not have"));
  EXPECT_THAT(message("lm_head.weight", {{12, 8}, 2}, {}), HasSubstr("no base"));
}

TEST(AdapterFile, APickleIsRefusedWithAWayOut) {
  const TemporaryDirectory directory;
  write_file(directory.path() / "adapter_config.json", json_of(peft_keys()));
  write_file(directory.path() / "adapter_model.bin", "PK");
  EXPECT_THAT(message_of([&] { AdapterFile::load(directory.path(), small()); }),
              AllOf(HasSubstr("adapter_model.bin"), HasSubstr("save_pretrained")));
}

TEST(AdapterFile, RefusesTensorsThatDoNotFitTheModel) {
  const std::string layer = "base_model.model.model.layers.";
  struct Case {
    std::function<void(Tensors&)> spoil;
    std::string words;
  };
  const Case cases[] = {
      {[](auto& t) { t.clear(); }, "holds no LoRA tensors"},
      {[](auto& t) { t.erase(kQuery + "A.weight"); }, "layer 1 q_proj has lora_B but no lora_A"},
      {[](auto& t) { t.erase(kExpert + "B.weight"); },
       "layer 0 w1 of expert 2 has lora_A but no lora_B"},
      {[](auto& t) { t[kQuery + "A.weight"] = {{2, 9}}; }, "has shape [2, 9]"},
      {[](auto& t) { t[kQuery + "A.weight"] = {{2, 2, 4}}; }, "has shape [2, 2, 4]"},
      {[](auto& t) { t[kQuery + "B.weight"] = {{4, 2}}; }, "has shape [4, 2]"},
      {[](auto& t) { t[kQuery + "A.weight"] = {{0, 8}}; }, "has shape [0, 8]"},
      {[](auto& t) { t[kExpert + "B.weight"] = {{6, 3}}; }, "rank 3"},
      {[](auto& t) { t[kQuery + "A.weight"].value = std::nanf(""); }, "not finite"},
      {[](auto& t) { t[kExpert + "B.weight"].value = INFINITY; }, "not finite"},
      {[&](auto& t) { t[layer + "2.self_attn.q_proj.lora_A.weight"] = {{2, 8}}; },
       "a larger model than this one of 2 layers"},
      {[&](auto& t) { t[layer + "999999999999.self_attn.q_proj.lora_A.weight"] = {{2, 8}}; },
       "matches nothing"},
      {[&](auto& t) { t[layer + "0.block_sparse_moe.experts.3.w1.lora_A.weight"] = {{2, 8}}; },
       "3 experts"},
      {[&](auto& t) { t[layer + "0.self_attn.q_proj.lora_C.weight"] = {{2, 8}}; },
       "matches nothing"},
      {[&](auto& t) { t[layer + "0.self_attn.z_proj.lora_A.weight"] = {{2, 8}}; },
       "matches nothing"},
      {[&](auto& t) { t[layer + "0.mlp.experts.lora_A.weight"] = {{6, 8}}; }, "target_parameters"},
      {[](auto& t) { t["model.layers.1.self_attn.q_proj.lora_A.weight"] = {{2, 8}}; }, "twice"},
      {[](auto& t) {
         t["base_model.model.model.layers.01.self_attn.q_proj.lora_B.weight"] = {{8, 2}};
       },
       "twice"},
  };
  for (const Case& c : cases) {
    Tensors tensors = peft_tensors();
    c.spoil(tensors);
    EXPECT_THAT(error_of(peft_keys(), tensors), HasSubstr(c.words));
  }
}

TEST(AdapterFile, RefusesMlxFilesThatDoNotFit) {
  const std::string name = "model.layers.1.self_attn.q_proj.lora_";
  const std::string experts = "model.layers.0.block_sparse_moe.switch_mlp.up_proj.lora_";
  const Tensors good = {{name + "a", {{8, 2}}},
                        {name + "b", {{2, 8}}},
                        {experts + "a", {{3, 2, 8}}},
                        {experts + "b", {{3, 6, 2}}}};
  const Keys keys = {{"fine_tune_type", "\"lora\""},
                     {"lora_parameters", R"({"rank": 2, "scale": 20.0, "dropout": 0.0})"}};
  const auto load = [](const Keys& k, const Tensors& t) {
    return error_of(k, t, "adapters.safetensors");
  };
  EXPECT_EQ(load(keys, good), "no error");
  const std::tuple<const char*, const char*, const char*> wrong_keys[] = {
      {"fine_tune_type", "\"dora\"", "only lora"},
      {"lora_parameters", "{}", "\"scale\" is missing"},
      {"lora_parameters", R"({"scale": 1e9})", "scale: expected a number from"},
      {"lora_parameters", R"({"scale": 1, "dropout": 2})", "dropout"},
  };
  for (const auto& [key, value, words] : wrong_keys) {
    Keys spoilt = keys;
    spoilt[key] = value;
    EXPECT_THAT(load(spoilt, good), HasSubstr(words)) << value;
  }
  const std::tuple<std::string, Shape, const char*> wrong_tensors[] = {
      {name + "a", {2, 8}, "has shape [2, 8]"},
      {name + "b", {2, 9}, "has shape [2, 9]"},
      {experts + "a", {2, 2, 8}, "has shape [2, 2, 8]"},
      {experts + "b", {3, 6, 0}, "has shape [3, 6, 0]"},
      {"model.layers.7.self_attn.q_proj.lora_a", {8, 2}, "larger model"},
      {"model.layers.1.self_attn.z_proj.lora_a", {8, 2}, "matches nothing"},
  };
  for (const auto& [tensor, shape, words] : wrong_tensors) {
    Tensors spoilt = good;
    spoilt[tensor] = {shape};
    EXPECT_THAT(load(keys, spoilt), HasSubstr(words)) << tensor;
  }
}

TEST(AdapterFile, APatternThatWouldTakeForEverDoesNot) {
  for (const char* pattern : {"(x*)*y", "(.*)*(.*)*(.*)*(.*)*(.*)*y", "(([a-z_.0-9])+)+!",
                              "((((((((((.*)*)*)*)*)*)*)*)*)*)*y"}) {
    Keys keys = peft_keys();
    keys["alpha_pattern"] = fmt::format("{{\"{}\": 3}}", pattern);
    const auto start = std::chrono::steady_clock::now();
    error_of(keys, peft_tensors());
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    EXPECT_LT(seconds.count(), 10) << pattern;  // milliseconds; the other way takes for ever
  }
}

TEST(AdapterFile, ManyPatternsTakeNoTime) {
  std::string patterns;
  for (size_t i = 0; i < PatternMap::kMostPatterns; ++i)
    patterns += fmt::format("{}\"model.layers.{}.self_attn.k_proj\": 3", i ? ", " : "{", i + 2);
  Keys keys = peft_keys();
  keys["alpha_pattern"] = patterns + "}";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(error_of(keys, peft_tensors()), "no error");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 10);  // a fifth of a second
  keys["alpha_pattern"] = patterns + ", \"one more\": 3}";
  EXPECT_THAT(error_of(keys, peft_tensors()), HasSubstr("at most 8192"));
}

TEST(AdapterFile, NoDamageToItsFilesCrashes) {
  constexpr uint64_t kSeed = 41;
  SCOPED_TRACE(kSeed);
  RandomStream random(kSeed);
  const TemporaryDirectory directory;
  const fs::path config = directory.path() / "adapter_config.json";
  const fs::path weights = directory.path() / "adapter_model.safetensors";
  write_file(config, json_of(peft_keys()));
  write_tensors(weights, peft_tensors());
  const std::string good[] = {read_file(config), read_file(weights)};
  for (int round = 0; round < 800; ++round) {
    std::string bad = good[round % 2];
    for (uint64_t edits = 1 + random.below(3); edits > 0; --edits)
      bad[random.below(bad.size())] = static_cast<char>(random.below(256));
    // Without a wait for the disk, as write_file() would have.
    std::ofstream(round % 2 ? weights : config, std::ios::binary) << bad;
    std::ofstream(round % 2 ? config : weights, std::ios::binary) << good[1 - round % 2];
    message_of([&] { AdapterFile::load(directory.path(), small()); });
  }
}

}  // namespace
}  // namespace mixtral
