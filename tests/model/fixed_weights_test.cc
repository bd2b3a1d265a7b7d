// Models whose weights stand in the layout that the CPU's kernels want: the same numbers and the
// same results as in rows.
#include <gtest/gtest.h>

#include <cstring>

#include "backends/registry.h"
#include "model/batch.h"
#include "model/checkpoint.h"
#include "model/gguf_tensors.h"
#include "model/open_tensors.h"
#include "nn/layout.h"
#include "tests/support/files.h"
#include "tests/support/gguf_model.h"
#include "tests/support/small_models.h"

namespace mixtral {
namespace {

/// Logits of prompts of several lengths, end to end.
std::vector<float> logits(Backend& backend, const Mixtral& model) {
  Arena arena(backend);
  Context ctx(backend, arena, Dtype::f32);
  std::vector<float> all;
  const ModelConfig& config = model.config();
  for (const int length : {1, 3, 40}) {
    HostBatch host;
    std::vector<int32_t> ids;
    for (int i = 0; i < length; ++i)
      ids.push_back((i * 5 + 1) % static_cast<int>(config.vocab_size));
    host.append(ids);
    const Batch batch = upload(ctx, host, config.vocab_size, config.max_positions);
    const Tensor hidden = model.forward(ctx, batch, nullptr, nullptr, nullptr);
    const Tensor y = ctx.allocate({host.size(), config.vocab_size});
    model.logits(ctx, hidden, y);
    all.insert(all.end(), y.as<float>(), y.as<float>() + y.numel());
  }
  return all;
}

/// Every parameter's bytes, in rows.
std::vector<std::vector<char>> numbers(Backend& backend, Mixtral& model) {
  nn::use_plain_rows(backend, model.parameters());
  std::vector<std::vector<char>> all;
  model.for_each_parameter([&](const nn::Parameter& p) {
    const Tensor& values = p.packed ? p.packed.codes : p.value;
    const auto* bytes = static_cast<const char*>(values.data());
    all.emplace_back(bytes, bytes + values.bytes());
  });
  return all;
}

int64_t interleaved(Mixtral& model) {
  int64_t count = 0;
  model.for_each_parameter([&](const nn::Parameter& p) {
    count += p.packed && p.packed.layout == ops::WeightLayout::interleaved16 ? 1 : 0;
  });
  return count;
}

void expect_same(const ModelConfig& config, const TensorSource* tensors, int64_t moved) {
  const auto backend = make_backend("cpu", 2);
  for (const Dtype weights : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    Mixtral::Options options{.weights = weights, .operands = ops::Operands::as_weight};
    Mixtral rows(*backend, config, options);
    options.fixed_weights = true;
    Mixtral fixed(*backend, config, options);
    for (Mixtral* model : {&rows, &fixed}) {
      if (tensors)
        load_weights(*backend, *model, *tensors);
      else
        nn::initialise(*backend, model->parameters(), {.seed = 3, .deviation = 0.2});
    }
    EXPECT_EQ(interleaved(rows), 0);
    EXPECT_EQ(interleaved(fixed), moved);
    EXPECT_EQ(rows.store().value_bytes(), fixed.store().value_bytes());
    EXPECT_EQ(logits(*backend, fixed), logits(*backend, rows)) << to_string(weights);
    EXPECT_EQ(numbers(*backend, fixed), numbers(*backend, rows)) << to_string(weights);
  }
}

TEST(FixedWeights, OfAFolderGiveTheSameNumbersAndLogits) {
  const TemporaryDirectory directory;
  const ModelConfig config = testing::small_config(48);
  testing::write_mixtral(directory.path(), config, testing::draw_model(config, 1));
  // Of each layer QKV, output, gate and up, down; and the head. Routers have too few rows.
  expect_same(config, open_tensors(*find_model_files(directory.path())).get(),
              4 * config.num_layers + 1);
}

TEST(FixedWeights, WhoseRowsAreNotWholeBundlesStayInRows) {
  const TemporaryDirectory directory;
  ModelConfig config = testing::small_config(50);  // the head's rows
  config.num_kv_heads = 1;                         // 32 + 8 + 8 rows: whole, but not each part's
  testing::write_mixtral(directory.path(), config, testing::draw_model(config, 2));
  expect_same(config, open_tensors(*find_model_files(directory.path())).get(),
              4 * config.num_layers);
}

TEST(FixedWeights, OfAFileWithRowsInAnotherOrderGiveTheSameNumbersAndLogits) {
  const TemporaryDirectory directory;
  const GgufTensors tensors(testing::toy_gguf::model_file(directory.path() / "m.gguf", "f32"));
  const ModelConfig config = gguf_config(tensors);
  expect_same(config, &tensors, 4 * config.num_layers + (config.vocab_size % 16 == 0 ? 1 : 0));
}

TEST(FixedWeights, ThatAreDrawnAreThoseInRows) {
  expect_same(testing::small_config(64), nullptr, 9);
}

TEST(FixedWeights, AreRefusedBesideTraining) {
  const auto backend = make_backend("cpu", 1);
  EXPECT_THROW(
      Mixtral(*backend, testing::small_config(64), {.trainable = true, .fixed_weights = true}),
      InternalError);
}

}  // namespace
}  // namespace mixtral
