// Adapters written for other programs are the same updates when they are read again.
#include "convert/write_adapter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "convert/adapter_updates.h"
#include "tests/support/files.h"
#include "tests/support/models.h"

namespace mixtral {
namespace {

using ::testing::HasSubstr;

/// An adapter with values that tell every place apart.
AdapterFile filled(const AdapterSpec& spec, const ModelConfig& config) {
  AdapterFile adapter = new_adapter(spec, config);
  float next = 0.25f;
  for (AdapterModule& module : adapter.modules) {
    const TargetShape shape = target_shape(config, module.target);
    module.a.resize(static_cast<size_t>(shape.groups * module.rank * shape.inputs));
    module.b.resize(static_cast<size_t>(shape.groups * shape.rows * module.rank));
    for (auto* values : {&module.a, &module.b})
      for (float& value : *values) value = next += 0.125f;
  }
  return adapter;
}

constexpr std::pair<AdapterFormat, const char*> kFormats[] = {{AdapterFormat::peft, "peft"},
                                                              {AdapterFormat::mlx, "mlx"},
                                                              {AdapterFormat::mistral, "mistral"},
                                                              {AdapterFormat::gguf, "it.gguf"}};

TEST(WriteAdapter, EveryFormatGivesTheSameUpdatesBack) {
  const ModelConfig config = testing::uneven_config();
  const AdapterFile adapter =
      filled({.targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"},
              .rank = 2,
              .alpha = 8},
             config);
  const auto were = updates_of(adapter, config);
  ASSERT_EQ(were.size(), 2u * (5 + 3 * 3));
  for (const auto& [format, name] : kFormats) {
    const TemporaryDirectory directory;
    write_adapter(adapter, config, format, directory.path() / name);
    const auto are = updates_of(AdapterFile::load(directory.path() / name, config), config);
    ASSERT_EQ(are.size(), were.size()) << name;
    for (size_t i = 0; i < are.size(); ++i) {
      EXPECT_EQ(are[i].id, were[i].id) << name;
      EXPECT_EQ(are[i].a, were[i].a) << name << " " << tensor_name(were[i].id);
      for (size_t k = 0; k < are[i].b.size(); ++k)
        ASSERT_FLOAT_EQ(static_cast<float>(are[i].scale) * are[i].b[k],
                        static_cast<float>(were[i].scale) * were[i].b[k])
            << name << " " << tensor_name(were[i].id);
    }
  }
}

TEST(WriteAdapter, PackedExpertsAreTakenApart) {
  const ModelConfig config = testing::uneven_config();
  const AdapterFile adapter =
      filled({.targets = {"gate_up_proj", "down_proj"}, .rank = 2, .alpha = 4}, config);
  const TemporaryDirectory directory;
  write_adapter(adapter, config, AdapterFormat::gguf, directory.path() / "a.gguf");
  const auto updates = updates_of(AdapterFile::load(directory.path() / "a.gguf", config), config);
  EXPECT_EQ(updates.size(), 2u * 3 * 3);
}

TEST(WriteAdapter, WhatAFormatCannotSayIsAnErrorThatSaysWhy) {
  const ModelConfig config = testing::uneven_config();
  const TemporaryDirectory directory;
  const auto refusal = [&](const AdapterSpec& spec, AdapterFormat format, const char* name) {
    const auto out = directory.path() / name;
    const std::string message =
        message_of([&] { write_adapter(filled(spec, config), config, format, out); });
    EXPECT_FALSE(std::filesystem::exists(out));
    return message;
  };
  EXPECT_THAT(refusal({.targets = {"q_proj", "lm_head"}}, AdapterFormat::mlx, "head"),
              HasSubstr("lm_head"));
  EXPECT_THAT(refusal({.targets = {"q_proj", "v_proj"}, .rank = 4, .rank_of = {{"v_proj", 2}}},
                      AdapterFormat::mlx, "ranks"),
              HasSubstr("rank"));
  EXPECT_THAT(refusal({.targets = {"q_proj"}, .rank = 4, .alpha = 5}, AdapterFormat::mistral, "m"),
              HasSubstr("scaling"));
  EXPECT_THAT(
      refusal({.targets = {"q_proj", "v_proj"}, .rank = 4, .alpha = 8, .alpha_of = {{"v_proj", 7}}},
              AdapterFormat::gguf, "g.gguf"),
      HasSubstr("alpha"));
}

}  // namespace
}  // namespace mixtral
