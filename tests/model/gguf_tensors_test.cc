// GGUF models whose files are made here: tensors, splits, and configurations.
#include "model/gguf_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "backends/registry.h"
#include "model/batch.h"
#include "model/checkpoint.h"
#include "model/open_tensors.h"
#include "model/stored_formats.h"
#include "model/tensor_names.h"
#include "tests/support/files.h"
#include "tests/support/gguf_model.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using namespace testing::toy_gguf;  // NOLINT: the pieces of one helper
using testing::GgufBuilder;
using ::testing::HasSubstr;

std::vector<float> read_all(const TensorSource& tensors, const ModelConfig& config,
                            const TensorId& id) {
  const Shape shape = tensor_shape(config, id.kind);
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  read_tensor(tensors, *find_place(tensors, config, id), config, id,
              Tensor(values.data(), shape, Dtype::f32));
  return values;
}

TEST(GgufTensors, AreTheModelsInItsOwnOrderOfRows) {
  const TemporaryDirectory directory;
  const GgufTensors tensors(model_file(directory.path() / "m.gguf", "f32"));
  const ModelConfig config = gguf_config(tensors);
  EXPECT_NO_THROW(check_weights(config, tensors));
  // Expert 1's w3 is the second matrix of ffn_up_exps.
  const auto w3 = read_all(tensors, config, {TensorKind::w3, 0, 1});
  const auto up = counted(kExperts * kExpertWidth * kWidth, 2.5f);
  EXPECT_TRUE(std::equal(w3.begin(), w3.end(), up.begin() + kExpertWidth * kWidth));
  // Row 1 of a query head is row 2 of the file, and row 8 (the second half's first) row 1.
  const auto query = read_all(tensors, config, {TensorKind::query, 0});
  const auto q = counted(kWidth * kWidth, 0.75f);
  const auto row = [&](const std::vector<float>& of, size_t r) {
    return std::vector<float>(of.begin() + static_cast<int64_t>(r * kWidth),
                              of.begin() + static_cast<int64_t>((r + 1) * kWidth));
  };
  EXPECT_EQ(row(query, 1), row(q, 2));
  EXPECT_EQ(row(query, 8), row(q, 1));
  EXPECT_EQ(row(query, 16), row(q, 16));  // the second head
}

TEST(GgufTensors, InBlocksAreKeptAsTheyAreAndGiveTheSameNumbersAsDecoded) {
  for (const char* format : {"q8_0", "q4_0", "q5_1"}) {
    const TemporaryDirectory directory;
    const GgufTensors tensors(model_file(directory.path() / "m.gguf", format));
    const ModelConfig config = gguf_config(tensors);
    EXPECT_EQ(config.dtype, Dtype::f32);
    const auto formats = stored_formats(tensors, config, [](ops::WeightFormat) { return true; });
    EXPECT_EQ(formats.size(), 8u) << format;
    const auto backend = make_backend("ref");
    Mixtral packed(*backend, config, {.formats = formats}), dense(*backend, config, {});
    load_weights(*backend, packed, tensors);
    load_weights(*backend, dense, tensors);
    std::vector<std::vector<float>> all[2];
    for (Mixtral* model : {&packed, &dense})
      model->for_each_parameter([&](nn::Parameter& p) {
        std::vector<float> values(static_cast<size_t>(p.shape.numel()));
        const int64_t columns = p.columns(), rows = p.shape.numel() / columns;
        const Tensor to(values.data(), {rows, columns}, Dtype::f32);
        if (p.packed)
          backend->run(ops::Dequantize{.weight = p.packed, .y = to});
        else
          backend->download(p.value.reshape({rows, columns}), to);
        EXPECT_EQ(static_cast<bool>(p.packed),
                  model == &packed && formats.contains(p.parts.front().name));
        all[model == &packed ? 0 : 1].push_back(std::move(values));
      });
    EXPECT_EQ(all[0], all[1]) << format;
  }
}

std::vector<float> logits(const GgufTensors& tensors, const ParameterFormats& formats) {
  const auto backend = make_backend("ref");
  const ModelConfig config = gguf_config(tensors);
  Mixtral model(*backend, config, {.formats = formats});
  load_weights(*backend, model, tensors);
  Arena arena(*backend);
  Context ctx(*backend, arena, Dtype::f32);
  HostBatch host;
  host.append(std::vector<int32_t>{1, 5, 2, 7, 0, 3});
  const Batch batch = upload(ctx, host, config.vocab_size, config.max_positions);
  const Tensor hidden = model.forward(ctx, batch, nullptr, nullptr, nullptr);
  const Tensor y = ctx.allocate({host.size(), config.vocab_size});
  model.logits(ctx, hidden, y);
  const auto* values = y.as<float>();
  return {values, values + y.numel()};
}

// llama.cpp's mixes keep keys and values of a Mixtral in more bits than queries.
TEST(GgufTensors, InSeveralFormatsGiveTheLogitsOfTheirNumbers) {
  const TemporaryDirectory directory;
  GgufBuilder b;
  add_keys(b);
  const auto has = [](std::string_view name, const char* word) {
    return name.find(word) != std::string_view::npos;
  };
  const auto wide = [&](std::string_view name) { return has(name, "attn_v"); };
  const auto plain = [&](std::string_view name) { return has(name, "ffn_up_exps"); };
  add_tensors(b, "q8_0", wide);
  add_tensors(b, "f32", plain);
  add_tensors(b, "q4_0", [&](std::string_view name) { return !wide(name) && !plain(name); });
  const GgufTensors tensors(b.write(directory.path() / "m.gguf"));
  const auto formats =
      stored_formats(tensors, gguf_config(tensors), [](ops::WeightFormat) { return true; });
  EXPECT_EQ(formats.size(), 7u);
  EXPECT_EQ(formats.at("model.layers.0.self_attn.v_proj.weight"), ops::WeightFormat::q8_0);
  EXPECT_FALSE(formats.contains("model.layers.0.block_sparse_moe.experts.0.w3.weight"));
  EXPECT_EQ(logits(tensors, formats), logits(tensors, {}));
}

TEST(GgufTensors, OfASplitModelAreInAllItsFiles) {
  const TemporaryDirectory directory;
  const fs::path first = directory.path() / "m-00001-of-00002.gguf",
                 second = directory.path() / "m-00002-of-00002.gguf";
  const auto write = [&](const fs::path& path, uint16_t part, bool experts) {
    GgufBuilder b;
    if (part == 0) add_keys(b);
    b.key("split.no", part).key("split.count", uint16_t{2}).key("split.tensors.count", int32_t{13});
    add_tensors(b, "f32", [&](std::string_view name) {
      return (name.find("_exps") != name.npos) == experts;
    });
    b.write(path);
  };
  write(first, 0, false);
  EXPECT_THAT(message_of([&] { GgufTensors{first}; }), HasSubstr("m-00002-of-00002.gguf"));
  write(second, 1, true);
  const GgufTensors tensors(first);
  EXPECT_NO_THROW(check_weights(gguf_config(tensors), tensors));
  EXPECT_EQ(tensors.file_of("blk.0.ffn_up_exps.weight"), second);
  EXPECT_THAT(message_of([&] { GgufTensors{second}; }), HasSubstr("m-00001-of-00002.gguf"));
  write(second, 0, true);
  EXPECT_THAT(message_of([&] { GgufTensors{first}; }), HasSubstr("split.no"));
  write(second, 1, false);
  EXPECT_THAT(message_of([&] { GgufTensors{first}; }), HasSubstr("also in another part"));
}

TEST(GgufConfig, HasTheDefaultsOfTheFormat) {
  const TemporaryDirectory directory;
  const auto config = [&](const std::string& without) {
    GgufBuilder b;
    add_keys(b, without);
    add_tensors(b, "f32", [](std::string_view name) { return name != "output.weight"; });
    return gguf_config(GgufTensors(b.write(directory.path() / "m.gguf")));
  };
  EXPECT_EQ(config("llama.rope.freq_base").rope_theta, 1e4);
  EXPECT_EQ(config("llama.attention.head_count_kv").num_kv_heads, 2);
  const ModelConfig all = config("");
  EXPECT_EQ(all.rope_theta, 1e6);
  EXPECT_EQ(all.rms_norm_eps, 1e-5);
  EXPECT_EQ(all.vocab_size, 8);
  EXPECT_EQ(all.head_dim, 16);
  EXPECT_EQ(all.num_experts, 3);
  EXPECT_EQ(all.experts_per_token, 2);
  EXPECT_EQ(all.max_positions, 64);
  EXPECT_TRUE(all.tie_embeddings);
  EXPECT_EQ(all.bos_id, -1);
}

TEST(GgufConfig, RefusesByTheKeyWhatIsMissingOrNotDoneHere) {
  const TemporaryDirectory directory;
  const auto problem = [&](const std::string& without,
                           const std::function<void(GgufBuilder&)>& add) {
    GgufBuilder b;
    add_keys(b, without);
    if (add) add(b);
    add_tensors(b, "f32");
    const fs::path file = b.write(directory.path() / "m.gguf");
    return message_of([&] { gguf_config(GgufTensors(file)); });
  };
  for (const char* key : {"general.architecture", "llama.block_count", "llama.embedding_length",
                          "llama.feed_forward_length", "llama.attention.head_count",
                          "llama.expert_count", "llama.expert_used_count", "llama.context_length",
                          "llama.attention.layer_norm_rms_epsilon"})
    EXPECT_THAT(problem(key, {}), AllOf(HasSubstr("m.gguf"), HasSubstr(key), HasSubstr("missing")))
        << key;
  const auto changed = [&](const std::string& key, auto value) {
    return problem(key, [&](GgufBuilder& b) { b.key(key, value); });
  };
  const auto expect = [&](const std::string& key, auto value) {
    EXPECT_THAT(changed(key, value), HasSubstr(key)) << key;
  };
  expect("general.architecture", "qwen2moe");
  expect("general.type", "adapter");
  expect("llama.block_count", "1");
  expect("llama.block_count", uint32_t{0});
  expect("llama.attention.head_count", uint32_t{0});
  expect("llama.attention.head_count", uint32_t{3});
  expect("llama.attention.head_count_kv", uint32_t{3});
  expect("llama.expert_used_count", uint32_t{4});
  expect("llama.expert_used_count", uint32_t{0});
  expect("llama.rope.freq_base", 0.0f);
  expect("llama.rope.dimension_count", uint32_t{8});
  expect("llama.rope.scaling.type", "yarn");
  expect("llama.rope.scaling.factor", 4.0f);
  expect("llama.attention.clamp_kqv", 8.0f);
  expect("llama.expert_shared_count", uint32_t{1});
  expect("llama.logit_scale", 0.5f);
}

TEST(GgufModels, WithTensorsThatDoNotFitAreRefusedByTheNamesOfTheFile) {
  const TemporaryDirectory directory;
  const auto problem = [&](const std::function<void(GgufBuilder&)>& add, const char* without) {
    GgufBuilder b;
    add_keys(b);
    add_tensors(b, "f32", [&](std::string_view name) { return name != without; });
    add(b);
    const GgufTensors tensors(b.write(directory.path() / "m.gguf"));
    return message_of([&] { check_weights(gguf_config(tensors), tensors); });
  };
  const auto nothing = [](GgufBuilder&) {};
  EXPECT_THAT(problem(nothing, "blk.0.ffn_down_exps.weight"),
              AllOf(HasSubstr("is missing"), HasSubstr("blk.0.ffn_down")));
  EXPECT_THAT(problem(nothing, "blk.0.attn_q.weight"), HasSubstr("blk.0.attn_q.weight is missing"));
  EXPECT_THAT(
      problem([](GgufBuilder& b) { add_tensor(b, "blk.0.attn_q.bias", {32}, "f32", 0); }, ""),
      HasSubstr("blk.0.attn_q.bias has no place"));
  EXPECT_THAT(
      problem([](GgufBuilder& b) { add_tensor(b, "rope_freqs.weight", {8}, "f32", 0); }, ""),
      HasSubstr("rope_freqs.weight has no place"));
}

TEST(ModelFiles, AreFoundInTheirForms) {
  const TemporaryDirectory directory;
  const fs::path& folder = directory.path();
  EXPECT_FALSE(find_model_files(folder));
  const fs::path file = model_file(folder / "m.gguf", "f32");
  EXPECT_EQ(find_model_files(file)->form, ModelForm::gguf);
  EXPECT_EQ(find_model_files(folder)->path, file);  // the only one
  model_file(folder / "n.gguf", "f32");
  EXPECT_THAT(message_of([&] { find_model_files(folder); }), HasSubstr("2 GGUF files"));
  write_file(folder / "params.json", "{}");
  EXPECT_EQ(find_model_files(folder)->form, ModelForm::mistral);
  write_file(folder / "config.json", "{}");
  EXPECT_EQ(find_model_files(folder)->form, ModelForm::mistral);  // whose weights may be there
  write_file(folder / "model.safetensors", "");
  EXPECT_EQ(find_model_files(folder)->form, ModelForm::hugging_face);
  EXPECT_TRUE(find_model_files(folder)->others);
}

}  // namespace
}  // namespace mixtral
