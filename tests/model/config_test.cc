#include "model/config.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "tests/support/files.h"
#include "tests/support/source_directory.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::StartsWith;

ModelConfig parse(std::string_view text) {
  return ModelConfig::parse(Json::parse(text, "m/config.json"));
}

// A config.json of the released kind in which `key` has the text `value`, or is absent when `value`
// is empty.
std::string with(const std::string& key, const std::string& value) {
  std::vector<std::pair<std::string, std::string>> members = {
      {"architectures", R"(["MixtralForCausalLM"])"},
      {"model_type", "\"mixtral\""},
      {"vocab_size", "96"},
      {"hidden_size", "32"},
      {"intermediate_size", "48"},
      {"num_hidden_layers", "2"},
      {"num_attention_heads", "4"},
      {"num_key_value_heads", "2"},
      {"num_local_experts", "4"},
      {"num_experts_per_tok", "2"},
      {"hidden_act", "\"silu\""},
  };
  bool found = false;
  for (auto& [name, text] : members)
    if (name == key) {
      text = value;
      found = true;
    }
  if (!found) members.emplace_back(key, value);
  std::string text;
  for (const auto& [name, member] : members)
    if (!member.empty()) text += fmt::format(R"({}"{}":{})", text.empty() ? "" : ",", name, member);
  return "{" + text + "}";
}

TEST(Config, AbsentKeysHaveTheDefaultsOfTransformers) {
  const ModelConfig config = parse(R"({"model_type":"mixtral"})");
  ModelConfig expected;
  expected.dtype_is_open = true;  // the weights say
  EXPECT_EQ(config, expected);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.max_positions, 131072);
  EXPECT_EQ(config.router_aux_loss_coef, 0.001);
  EXPECT_EQ(config.sliding_window, 0);
}

TEST(Config, ReadsTheReleasedFile) {
  const ModelConfig config = parse(R"({"architectures": ["MixtralForCausalLM"],
      "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
      "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
      "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
      "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8,
      "num_local_experts": 8, "output_router_logits": false, "rms_norm_eps": 1e-05,
      "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": null,
      "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.36.0",
      "use_cache": true, "vocab_size": 32000})");
  EXPECT_EQ(config, builtin_config("8x7b"));
}

TEST(Config, ReadsBothSpellings) {
  const ModelConfig old = parse(R"({"model_type":"mixtral","rope_theta":10000,
      "torch_dtype":"float16","rope_scaling":null})");
  const ModelConfig latest = parse(R"({"model_type":"mixtral","dtype":"float16","head_dim":null,
      "rope_parameters":{"rope_theta":1e4,"rope_type":"default"}})");
  EXPECT_EQ(old, latest);
  EXPECT_EQ(old.rope_theta, 1e4);
  EXPECT_EQ(old.dtype, Dtype::f16);
}

TEST(Config, ReadsWhatIsRarer) {
  EXPECT_EQ(parse(with("eos_token_id", "[2, 7]")).eos_ids, (std::vector<int64_t>{2, 7}));
  EXPECT_TRUE(parse(with("eos_token_id", "null")).eos_ids.empty());
  EXPECT_EQ(parse(with("bos_token_id", "null")).bos_id, -1);
  EXPECT_EQ(parse(with("pad_token_id", "-1")).pad_id, -1);
  EXPECT_EQ(parse(with("head_dim", "16")).head_dim, 16);
  EXPECT_EQ(parse(with("num_key_value_heads", "null")).num_kv_heads, 4);
  EXPECT_EQ(parse(with("sliding_window", "7")).sliding_window, 7);
  EXPECT_EQ(parse(with("vocab_size", "1e3")).vocab_size, 1000);
  EXPECT_EQ(parse(R"({"model_type":"mixtral","num_experts":3})").num_experts, 3);
  EXPECT_NO_THROW(parse(with("hidden_act", "\"swish\"")));
  EXPECT_TRUE(parse(with("torch_dtype", "\"auto\"")).dtype_is_open);
  EXPECT_FALSE(parse(with("dtype", "\"bfloat16\"")).dtype_is_open);
}

TEST(Config, NullIsAsGoodAsAbsent) {
  for (const char* key : {"architectures",
                          "attention_dropout",
                          "dtype",
                          "head_dim",
                          "hidden_act",
                          "initializer_range",
                          "max_position_embeddings",
                          "output_router_logits",
                          "pad_token_id",
                          "quantization_config",
                          "rms_norm_eps",
                          "rope_parameters",
                          "rope_scaling",
                          "rope_theta",
                          "router_aux_loss_coef",
                          "router_jitter_noise",
                          "sliding_window",
                          "tie_word_embeddings",
                          "torch_dtype",
                          "use_cache"})
    EXPECT_EQ(parse(with(key, "null")), parse(with("hidden_act", "\"silu\""))) << key;
}

TEST(Config, NoiseOfTrainingMattersToTrainingAlone) {
  EXPECT_NO_THROW(refuse_training_noise(parse(with("router_jitter_noise", "0.0")), "m"));
  for (const char* key : {"router_jitter_noise", "attention_dropout"}) {
    const ModelConfig config = parse(with(key, "0.1"));
    EXPECT_THAT(message_of([&] { refuse_training_noise(config, "m"); }),
                HasSubstr(std::string("m: config.json sets ") + key + " to 0.1"));
    const TemporaryDirectory directory;
    config.save(directory.path());  // with its dtype, and so settled
    ModelConfig settled = config;
    settled.dtype_is_open = false;
    EXPECT_EQ(ModelConfig::load(directory.path()), settled);
  }
}

TEST(Config, RefusesHostileValues) {
  struct Case {
    const char *key, *value, *words;
  };
  const Case cases[] = {
      {"num_attention_heads", "0", "num_attention_heads"},
      {"num_attention_heads", "-4", "num_attention_heads"},
      {"num_attention_heads", "3", "not a multiple"},
      {"num_attention_heads", "1.5", "expected an integer"},
      {"num_attention_heads", "\"4\"", "expected an integer, found a string"},
      {"num_key_value_heads", "0", "num_key_value_heads: expected 1 to 4, found 0"},
      {"num_key_value_heads", "3", "not a multiple of num_key_value_heads"},
      {"num_key_value_heads", "8", "num_key_value_heads: expected 1 to 4"},
      {"num_experts_per_tok", "5", "num_experts_per_tok: expected 1 to 4, found 5"},
      {"num_experts_per_tok", "0", "num_experts_per_tok"},
      {"num_local_experts", "0", "num_local_experts"},
      {"num_hidden_layers", "1000000000", "num_hidden_layers: expected 1 to 1024"},
      {"num_hidden_layers", "0", "num_hidden_layers"},
      {"num_hidden_layers", "1e30", "num_hidden_layers: expected an integer"},
      {"num_hidden_layers", "18446744073709551617", "num_hidden_layers: expected an integer"},
      {"num_hidden_layers", "9223372036854775807", "num_hidden_layers"},
      {"hidden_size", "-9223372036854775808", "hidden_size"},
      {"hidden_size", "0", "hidden_size"},
      {"hidden_size", "12", "odd"},  // four heads of 3
      {"head_dim", "7", "odd"},
      {"head_dim", "0", "head_dim"},
      {"head_dim", "1000000", "head_dim"},
      {"intermediate_size", "0", "intermediate_size"},
      {"vocab_size", "0", "vocab_size"},
      {"vocab_size", "99999999999", "vocab_size"},
      {"rms_norm_eps", "0", "rms_norm_eps"},
      {"rms_norm_eps", "-1e-5", "rms_norm_eps"},
      {"rms_norm_eps", "\"NaN\"", "rms_norm_eps: expected a number, found a string"},
      {"rope_theta", "0", "rope_theta"},
      {"rope_theta", "-1e6", "rope_theta"},
      {"rope_theta", "NaN", "not valid JSON"},
      {"rope_theta", "1e300", "rope_theta"},
      {"rope_theta", "1e999", "not valid JSON"},
      {"rope_scaling", R"({"type":"yarn","factor":4})", "rope_scaling.type: expected \"default\""},
      {"rope_parameters", R"({"rope_type":"linear"})", "rope_parameters.rope_type"},
      {"rope_parameters", R"({"partial_rotary_factor":0.5})", "partial_rotary_factor"},
      {"rope_parameters", "3", "rope_parameters: expected an object"},
      {"hidden_act", "\"gelu\"", "hidden_act: expected \"silu\", found \"gelu\""},
      {"model_type", "\"llama\"", "model_type: expected \"mixtral\""},
      {"architectures", R"(["LlamaForCausalLM"])", "architectures"},
      {"architectures", "[3]", "architectures[0]: expected a string"},
      {"sliding_window", "0", "sliding_window"},
      {"sliding_window", "-1", "sliding_window"},
      {"max_position_embeddings", "0", "max_position_embeddings"},
      {"initializer_range", "-1", "initializer_range"},
      {"router_aux_loss_coef", "-0.1", "router_aux_loss_coef"},
      {"router_jitter_noise", "-0.1", "router_jitter_noise: expected 0 to 1, found -0.1"},
      {"attention_dropout", "2", "attention_dropout"},
      {"quantization_config", "{}", "quantized"},
      {"torch_dtype", "\"int8\"", "torch_dtype"},
      {"tie_word_embeddings", "1", "tie_word_embeddings: expected true or false"},
      {"bos_token_id", "96", "bos_token_id: expected -1 to 95, found 96"},
      {"eos_token_id", "[2, 96]", "eos_token_id: expected 0 to 95, found 96"},
      {"eos_token_id", "-1", "eos_token_id"},
      {"eos_token_id", "\"</s>\"", "eos_token_id: expected an integer"},
  };
  for (const Case& row : cases) {
    const std::string message = message_of([&] { parse(with(row.key, row.value)); });
    EXPECT_THAT(message, HasSubstr(row.words)) << row.key << " = " << row.value;
    EXPECT_THAT(message, StartsWith("m/config.json: ")) << row.key << " = " << row.value;
  }
  EXPECT_THAT(message_of([] { parse("{}"); }), HasSubstr("model_type"));
  EXPECT_THAT(message_of([] { parse("[]"); }), HasSubstr("expected an object"));
  EXPECT_THAT(message_of([] { parse(with("x", "1") + "x"); }), HasSubstr("more text"));
}

TEST(Config, RefusesFieldsThatAreTooLargeTogether) {
  ModelConfig config;
  config.hidden_size = 1 << 17;
  config.intermediate_size = 1 << 20;
  config.num_layers = 1024;
  config.num_experts = 128;
  EXPECT_THAT(message_of([&] { config.validate("c"); }), HasSubstr("parameters"));
  config.num_experts = 4096;
  EXPECT_THAT(message_of([&] { config.validate("c"); }), HasSubstr("found 4194304"));
}

TEST(Config, SavesWhatItReads) {
  const TemporaryDirectory temporary;
  const fs::path& directory = temporary.path();
  for (const auto& name : builtin_config_names()) {
    ModelConfig config = builtin_config(name);
    config.save(directory);
    EXPECT_EQ(ModelConfig::load(directory), config) << name;
    config.eos_ids = {2, 5};
    config.bos_id = -1;
    config.pad_id = 3;
    config.sliding_window = 9;
    config.tie_embeddings = true;
    config.head_dim = 18;
    config.dtype = Dtype::f16;
    config.rms_norm_eps = 1.0 / 3e5;
    config.save(directory);
    EXPECT_EQ(ModelConfig::load(directory), config) << name;
  }
  const std::string text = read_file(directory / "config.json");
  EXPECT_THAT(text, HasSubstr("\"rope_theta\": 1000000.0"));
  EXPECT_THAT(text, HasSubstr("\"torch_dtype\": \"float16\""));
  EXPECT_THAT(text, testing::Not(HasSubstr("rope_parameters")));
  const Json json = Json::parse(text, "saved");
  EXPECT_EQ(json.at("architectures").items().at(0).as_string(), "MixtralForCausalLM");
}

TEST(Config, GenerationSettingsOverrideTokenIds) {
  const TemporaryDirectory temporary;
  const fs::path& directory = temporary.path();
  write_file(directory / "config.json", with("eos_token_id", "2"));
  EXPECT_EQ(ModelConfig::load(directory).eos_ids, std::vector<int64_t>{2});
  write_file(directory / "generation_config.json", R"({"eos_token_id":[5,6],"bos_token_id":4})");
  EXPECT_EQ(ModelConfig::load(directory).eos_ids, (std::vector<int64_t>{5, 6}));
  EXPECT_EQ(ModelConfig::load(directory).bos_id, 4);
  write_file(directory / "generation_config.json", R"({"eos_token_id":960})");
  EXPECT_THAT(message_of([&] { ModelConfig::load(directory); }),
              HasSubstr("generation_config.json: eos_token_id"));
}

TEST(Config, CountsParameters) {
  const auto released = count_parameters(builtin_config("8x7b"));
  EXPECT_EQ(released.total, 46'702'792'704);
  EXPECT_NEAR(static_cast<double>(released.active), 12.75e9, 0.005e9);
  const auto seed = count_parameters(builtin_config("seed"));
  EXPECT_NEAR(static_cast<double>(seed.total), 1.31e9, 0.005e9);
  EXPECT_NEAR(static_cast<double>(seed.active), 373e6, 0.5e6);
  EXPECT_LT(count_parameters(builtin_config("tiny")).active, 800'000);
  for (const auto& name : builtin_config_names()) {
    const auto count = count_parameters(builtin_config(name));
    EXPECT_EQ(count.total, count.embedding + count.attention + count.router + count.experts +
                               count.norms + count.head);
    EXPECT_LT(count.active, count.total);
  }
  ModelConfig tied = builtin_config("tiny");
  tied.tie_embeddings = true;
  EXPECT_EQ(count_parameters(tied).head, 0);
  EXPECT_EQ(count_parameters(tied).active, count_parameters(builtin_config("tiny")).active);
  EXPECT_GT(training_flops_per_token(tied, 128), 6.0 * 700'000);
}

TEST(Config, BuiltInConfigurationsAreValid) {
  for (const auto& name : builtin_config_names()) {
    EXPECT_TRUE(is_builtin_config(name));
    EXPECT_NO_THROW(builtin_config(name).validate(name));
  }
  EXPECT_FALSE(is_builtin_config("models/x"));
  EXPECT_EQ(message_of([] { builtin_config("smal"); }),
            "there is no built-in configuration \"smal\"; expected one of tiny, small, seed, 8x7b "
            "(did you mean small?)");
  EXPECT_THROW(builtin_config("zebra"), UsageError);
  EXPECT_THAT(message_of([] { builtin_config("zebra"); }), testing::Not(HasSubstr("did you")));
}

TEST(Config, ReadsTheFixtures) {
  const fs::path fixtures = source_directory() / "../shared/fixtures";
  if (!fs::exists(fixtures)) GTEST_SKIP() << fixtures << " is absent";
  int count = 0;
  for (const auto& entry : fs::recursive_directory_iterator(fixtures)) {
    if (entry.path().filename() != "config.json") continue;
    const ModelConfig config = ModelConfig::load(entry.path().parent_path());
    EXPECT_EQ(config.hidden_size, 32) << entry.path();
    ++count;
  }
  EXPECT_GE(count, 6);
  EXPECT_EQ(ModelConfig::load(fixtures / "sliding").sliding_window > 0, true);
  EXPECT_TRUE(ModelConfig::load(fixtures / "tied").tie_embeddings);
  EXPECT_EQ(ModelConfig::load(fixtures / "headdim").head_dim, 16);
}

}  // namespace
}  // namespace mixtral
