// A format that the program does not know, defined in tests/support/toy_formats.h: a whole model
// takes it by the option that sets any other format. Nothing else is touched.
#include <gtest/gtest.h>

#include <vector>

#include "backends/registry.h"
#include "model/checkpoint.h"
#include "tests/support/files.h"
#include "tests/support/models.h"
#include "tests/support/toy_formats.h"

namespace mixtral {
namespace {

ModelConfig config_of_whole_blocks() {
  ModelConfig config = testing::minimal_config();
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.num_heads = 4;
  return config;  // heads of 8: rows of 32, 64 and 96 numbers
}

std::vector<float> logits_of(Backend& backend, const Mixtral& model) {
  Arena arena(backend);
  Context ctx(backend, arena, Dtype::f32);
  HostBatch host;
  host.append(std::vector<int32_t>{3, 1, 4, 1, 5, 9, 2, 6});
  const Batch batch = upload(ctx, host, model.config().vocab_size, model.context());
  const Tensor hidden = model.forward(ctx, batch, nullptr, nullptr, nullptr);
  const Tensor logits = ctx.allocate({hidden.dim(0), model.config().vocab_size}, Dtype::f32);
  model.logits(ctx, hidden, logits);
  std::vector<float> values(static_cast<size_t>(logits.numel()));
  backend.download(logits, Tensor(values.data(), logits.shape(), Dtype::f32));
  return values;
}

TEST(ANewWeightFormat, TakesARowAndTwoFunctionsForAWholeModel) {
  TemporaryDirectory scratch;
  const ModelConfig config = config_of_whole_blocks();
  const auto writer = make_backend("cpu", 1);
  Mixtral original(*writer, config, {});
  nn::initialise(*writer, original.parameters(), {.seed = 4, .deviation = 0.1});
  save_model(*writer, original, scratch.path(), Dtype::f32);
  for (const char* device : {"ref", "cpu"}) {
    const auto backend = make_backend(device, 2);
    for (const ops::FormatRow* row : {&testing::kToy6, &testing::kToy6Pieces}) {
      const ops::WeightFormat format(*row);
      const auto packed = load_model(*backend, scratch.path(), {.quantization = format});
      // The same model with the numbers that the packed weights stand for.
      const auto dense = load_model(*backend, scratch.path(), {});
      std::vector<nn::Parameter*> parameters;
      dense->for_each_parameter([&](nn::Parameter& p) { parameters.push_back(&p); });
      size_t index = 0;
      int count = 0;
      packed->for_each_parameter([&](const nn::Parameter& p) {
        nn::Parameter& other = *parameters[index++];
        if (!p.packed) return;
        ++count;
        backend->run(ops::Dequantize{
            .weight = p.packed, .y = other.value.reshape({p.packed.rows(), p.packed.inputs()})});
      });
      EXPECT_EQ(count, 4 * config.num_layers);
      EXPECT_LT(packed->store().value_bytes(), dense->store().value_bytes());
      const auto logits = logits_of(*backend, *packed);
      EXPECT_EQ(logits, logits_of(*backend, *dense)) << format.name() << " on " << device;
      EXPECT_NE(logits, logits_of(*backend, *load_model(*backend, scratch.path(), {})));
    }
  }
}

}  // namespace
}  // namespace mixtral
