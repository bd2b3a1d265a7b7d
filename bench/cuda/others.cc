#include "base/random.h"
#include "bench/cuda/bench.h"

// Norms, the vocabulary's ops, and all that are left.
namespace mixtral::bench {

void norms(const Bench& bench) {
  for (const auto& [rows, width, dtype] :
       std::vector<std::tuple<int64_t, int64_t, Dtype>>{{kTokens, 4096, Dtype::bf16},
                                                        {kTokens, 1024, Dtype::bf16},
                                                        {kTokens, 4096, Dtype::f32}}) {
    Operands operands(bench.backend);
    const std::string name = fmt::format("{}x{} {}", rows, width, to_string(dtype));
    const Tensor x = operands.floats({rows, width}, dtype);
    const Tensor residual = operands.floats({rows, width}, dtype);
    const Tensor y = operands.room({rows, width}, dtype);
    const Tensor sum = operands.room({rows, width}, dtype);
    const Tensor rstd = operands.floats({rows}, Dtype::f32);
    const Tensor weight = operands.floats({width}, dtype);
    bench.run(
        name,
        ops::RmsNorm{
            .x = x, .residual = residual, .weight = weight, .sum = sum, .y = y, .rstd = rstd});
    bench.run(name, ops::RmsNormBackward{.dy = x,
                                         .x = residual,
                                         .weight = weight,
                                         .rstd = rstd,
                                         .dx = y,
                                         .dweight = operands.zeros({width}, Dtype::f32),
                                         .accumulate = true});
  }
}

void vocabulary(const Bench& bench) {
  Operands operands(bench.backend);
  RandomStream random(5);
  std::vector<int32_t> tokens;
  // Few tokens are most of a text: the square of a uniform number is dense near 0.
  for (int64_t i = 0; i < kTokens; ++i)
    tokens.push_back(static_cast<int32_t>(std::pow(random.uniform(), 4) * 32000));
  const Tensor ids = operands.values({kTokens}, tokens);
  const Tensor x = operands.room({kTokens, 4096}, Dtype::bf16);
  bench.run(
      "d4096 bf16",
      ops::Embedding{.table = operands.floats({32000, 4096}, Dtype::bf16), .tokens = ids, .x = x});
  bench.run("d4096 bf16",
            ops::EmbeddingBackward{
                .dx = x, .tokens = ids, .dtable = operands.zeros({32000, 4096}, Dtype::f32)});
  for (Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Tensor logits = operands.floats({2048, 32000}, dtype);
    bench.run(fmt::format("2048x32000 {}", to_string(dtype)),
              ops::CrossEntropy{.logits = logits,
                                .labels = ids.slice(0, 2048),
                                .loss = operands.room({2048}, Dtype::f32),
                                .scale = operands.floats({1}, Dtype::f32),
                                .dlogits = operands.room({2048, 32000}, dtype)});
  }
  for (int64_t sequences : {1, 64}) {
    std::vector<ops::SamplingSettings> settings(static_cast<size_t>(sequences),
                                                {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f});
    const Tensor packed =
        operands.room({sequences, static_cast<int64_t>(sizeof(ops::SamplingSettings))}, Dtype::u8);
    bench.backend.upload(Tensor(settings.data(), packed.shape(), Dtype::u8), packed);
    bench.run(fmt::format("{}x32000", sequences),
              ops::Sample{.logits = operands.floats({sequences, 32000}, Dtype::f32),
                          .settings = packed,
                          .history = {},
                          .positions = operands.zeros({sequences}, Dtype::i32),
                          .tokens = operands.room({sequences}, Dtype::i32),
                          .log_probability = operands.room({sequences}, Dtype::f32)});
  }
}

void others(const Bench& bench) {
  Operands operands(bench.backend);
  const int64_t n = int64_t{1} << 28;
  const Tensor value = operands.floats({n}, Dtype::f32, 0.02);
  const Tensor grad = operands.floats({n}, Dtype::f32, 0.001);
  const Tensor model = operands.room({n}, Dtype::bf16);
  const Tensor schedule = operands.doubles({1e-4, 0.5, 0.3, 7});
  const Tensor norm = operands.doubles({1});
  bench.run("2^28", ops::SquaredNorm{.x = grad, .sum = norm});
  for (Dtype state : {Dtype::f32, Dtype::bf16}) {
    bench.run(fmt::format("2^28 {} state", to_string(state)),
              ops::AdamW{.value = value,
                         .grad = grad,
                         .m = operands.zeros({n}, state),
                         .v = operands.zeros({n}, state),
                         .model = model,
                         .schedule = schedule,
                         .squared_norm = norm,
                         .weight_decay = 0.1,
                         .clip = 1});
  }
  bench.run("f32 to bf16", ops::Convert{.x = value, .y = model});
  bench.run("f32", ops::AddScaled{.x = grad, .y = value, .scale = 1e-6});
  bench.run(
      "bf16",
      ops::Dropout{
          .x = model, .y = model, .seed = operands.zeros({1}, Dtype::i64), .probability = 0.1});
  bench.run("f32", ops::RandomNormal{.x = value, .deviation = 0.02});
  for (const auto format : {ops::WeightFormat::fp8, ops::WeightFormat::nf4}) {
    const int64_t columns = 4096, rows = n / columns;
    const ops::Weight weight =
        ops::make_weight({1, rows, columns}, format,
                         [&](Shape shape, Dtype dtype) { return operands.zeros(shape, dtype); });
    const Tensor x = value.reshape({rows, columns}), y = model.reshape({rows, columns});
    bench.run(fmt::format("f32 to {}", format.name()), ops::Quantize{.x = x, .weight = weight});
    bench.run(fmt::format("{} to bf16", format.name()), ops::Dequantize{.weight = weight, .y = y});
  }
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < kTokens; ++i) positions.push_back(static_cast<int32_t>(i % 2048));
  const ops::Heads heads{32, 8, 128};
  bench.run("8x7b bf16", ops::Rope{.qkv = operands.floats({kTokens, heads.columns()}, Dtype::bf16),
                                   .positions = operands.values({kTokens}, positions),
                                   .table = operands.floats({2048, 2, 64}, Dtype::f32),
                                   .heads = heads});
}

}  // namespace mixtral::bench
