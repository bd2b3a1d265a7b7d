// Weights in few bits: how far rounding goes, and that a projection of them is the dense projection
// of the rounded weight.
#include "nn/quantized.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "backends/registry.h"
#include "base/random.h"
#include "nn/lora.h"

namespace mixtral::nn {
namespace {

using ops::Quantization;

constexpr uint64_t kSeed = 31;

struct Case {
  std::string device;
  Quantization quantization;
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.device << " " << ops::to_string(c.quantization);
  }
};

class QuantizedWeights : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (GetParam().device == "cuda" && make_backend("auto")->name() == "cpu")
      GTEST_SKIP() << "no GPU";
    backend_ = make_backend(GetParam().device, 2);
    arena_ = std::make_unique<Arena>(*backend_);
    ctx_ = std::make_unique<Context>(*backend_, *arena_, Dtype::f32);
  }

  Tensor upload(const std::vector<float>& values, Shape shape) {
    const Tensor device = arena_->allocate(shape, Dtype::f32);
    std::vector<float> copy = values;
    backend_->upload(Tensor(copy.data(), shape, Dtype::f32), device);
    backend_->synchronize();
    return device;
  }
  template <class T = float>
  std::vector<T> download(const Tensor& device) {
    std::vector<T> values(static_cast<size_t>(device.numel()));
    backend_->download(device, Tensor(values.data(), device.shape(), device.dtype()));
    return values;
  }
  static std::vector<float> normal(int64_t count, double deviation, uint64_t stream) {
    RandomStream random(kSeed, stream);
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i)
      values.push_back(static_cast<float>(deviation * random.normal()));
    return values;
  }

  struct Rounded {
    Tensor codes, scales;
  };
  Rounded quantize(const Tensor& x) {
    const Quantization q = GetParam().quantization;
    const Rounded r{arena_->allocate({x.dim(0), ops::code_bytes(q, x.dim(1))}, Dtype::u8),
                    arena_->allocate({x.dim(0), ops::scale_count(q, x.dim(1))}, Dtype::f32)};
    ctx_->run(ops::Quantize{.x = x, .codes = r.codes, .scales = r.scales, .quantization = q});
    return r;
  }
  Tensor dequantize(const Rounded& r, Shape shape, Dtype type) {
    const Tensor y = arena_->allocate(shape, type);
    ctx_->run(ops::Dequantize{
        .codes = r.codes, .scales = r.scales, .y = y, .quantization = GetParam().quantization});
    return y;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Context> ctx_;
};

TEST_P(QuantizedWeights, AreTheNearestThereAre) {
  const Shape shape{6, 300};
  const auto x = normal(shape.numel(), 0.02, 1);
  const Rounded rounded = quantize(upload(x, shape));
  const auto y = download(dequantize(rounded, shape, Dtype::f32));
  const auto scales = download(rounded.scales);
  const Quantization q = GetParam().quantization;
  for (int64_t i = 0; i < shape.numel(); ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t row = i / shape[1], block = i % shape[1] / ops::block_of(q);
    const auto scale = static_cast<double>(
        scales[static_cast<size_t>(row * ops::scale_count(q, shape[1]) + block)]);
    const auto value = static_cast<double>(x[at]);
    const double error = std::abs(static_cast<double>(y[at]) - value);
    if (q == Quantization::fp8) {
      // Half a step of 3 fraction bits, or of the subnormals.
      EXPECT_LE(error, std::max(std::abs(value) / 16, scale / 1024)) << i;
    } else {
      for (const float level : ops::kNormalLevels)
        EXPECT_LE(error, std::abs(static_cast<double>(level) * scale - value) + 1e-7 * scale) << i;
    }
  }
}

TEST_P(QuantizedWeights, KeepWhatIsAlreadyRounded) {
  for (const Dtype type : {Dtype::f32, Dtype::bf16}) {
    const Shape shape{5, 200};
    const Rounded once = quantize(upload(normal(shape.numel(), 0.3, 2), shape));
    const Rounded twice = quantize(dequantize(once, shape, type));
    EXPECT_EQ(download<uint8_t>(once.codes), download<uint8_t>(twice.codes)) << to_string(type);
    // nf4's scale is any number, which bf16 rounds; fp8's is a power of two.
    const bool exact = type == Dtype::f32 || GetParam().quantization == Quantization::fp8;
    if (exact) {
      EXPECT_EQ(download(once.scales), download(twice.scales)) << to_string(type);
    }
  }
}

TEST_P(QuantizedWeights, ComeBackForEveryGroupThatHasRows) {
  // A GPU leaves a group without rows out where its weights are whole steps of 64 rows.
  for (const int64_t outputs : {5, 64}) {
    const int64_t groups = 3, columns = 200;
    const Shape shape{groups * outputs, columns};
    const Rounded rounded = quantize(upload(normal(shape.numel(), 0.3, 2), shape));
    const auto whole = download(dequantize(rounded, shape, Dtype::f32));
    std::vector<int32_t> starts{0, 2, 2, 7};
    const Tensor offsets = arena_->allocate({groups + 1}, Dtype::i32);
    backend_->upload(Tensor(std::span(starts)), offsets);
    const Tensor y = upload(std::vector<float>(static_cast<size_t>(shape.numel()), -9), shape);
    ctx_->run(ops::Dequantize{.codes = rounded.codes,
                              .scales = rounded.scales,
                              .y = y,
                              .quantization = GetParam().quantization,
                              .offsets = offsets});
    const auto some = download(y);
    for (const int64_t group : {0, 2})
      for (int64_t i = group * outputs * columns; i < (group + 1) * outputs * columns; ++i)
        EXPECT_EQ(some[static_cast<size_t>(i)], whole[static_cast<size_t>(i)]) << i;
  }
}

// Products read weights in steps, which may reach beyond a group into the next one.
TEST_P(QuantizedWeights, MayBeAbsentForAGroupWithoutRowsBesideOthers) {
  const Dtype type = GetParam().device == "cuda" ? Dtype::bf16 : Dtype::f32;
  for (const int64_t outputs : {40, 64, 128}) {
    const int64_t groups = 3, columns = 64, rows = 48;
    const Shape shape{groups * outputs, columns};
    const Rounded rounded = quantize(upload(normal(shape.numel(), 0.3, 2), shape));
    std::vector<int32_t> starts{0, 24, 24, 48};
    const Tensor offsets = arena_->allocate({groups + 1}, Dtype::i32);
    backend_->upload(Tensor(std::span(starts)), offsets);
    const auto converted = [&](const Tensor& x, Dtype to) {
      const Tensor y = arena_->allocate(x.shape(), to);
      ctx_->run(ops::Convert{.x = x, .y = y});
      return y;
    };
    const Tensor dy = converted(upload(normal(rows * outputs, 1, 3), Shape{rows, outputs}), type);
    std::vector<float> results[2];
    for (const bool sparing : {false, true}) {
      const std::vector<float> stale(static_cast<size_t>(shape.numel()), std::nanf(""));
      const Tensor weight = converted(upload(stale, shape), type);
      ctx_->run(ops::Dequantize{.codes = rounded.codes,
                                .scales = rounded.scales,
                                .y = weight,
                                .quantization = GetParam().quantization,
                                .offsets = sparing ? offsets : Tensor()});
      const Tensor dx = arena_->allocate({rows, columns}, type);
      ctx_->run(ops::GroupedMatmulInput{.dy = dy,
                                        .weight = weight.reshape({groups, outputs, columns}),
                                        .offsets = offsets,
                                        .dx = dx});
      results[sparing ? 1 : 0] = download(converted(dx, Dtype::f32));
    }
    EXPECT_EQ(results[0], results[1]);
  }
}

TEST_P(QuantizedWeights, DoNotDependOnHowAParameterIsPacked) {
  auto parameter = [](const std::vector<std::string>& names, int64_t rows, int64_t columns) {
    Parameter p;
    p.shape = {static_cast<int64_t>(names.size()) * rows, columns};
    for (size_t i = 0; i < names.size(); ++i)
      p.parts.push_back({names[i], static_cast<int64_t>(i) * rows * columns, {rows, columns}});
    return p;
  };
  const Quantization q = GetParam().quantization;
  Quantized packed(parameter({"a", "b"}, 3, 100), q);
  Quantized first(parameter({"a"}, 3, 100), q), second(parameter({"b"}, 3, 100), q);
  const ParameterSource source = [&](const ParameterVisitor& visit) {
    for (Quantized* each : {&packed, &first, &second}) each->for_each_parameter(visit);
  };
  const ParameterStore store(*backend_, source, Dtype::f32, Dtype::f32);
  initialise(*backend_, source, {.seed = 3});
  std::vector<std::vector<uint8_t>> codes;
  std::vector<std::vector<float>> scales;
  source([&](const Parameter& p) {
    codes.push_back(download<uint8_t>(p.codes));
    scales.push_back(download(p.scales));
  });
  codes[1].insert(codes[1].end(), codes[2].begin(), codes[2].end());
  scales[1].insert(scales[1].end(), scales[2].begin(), scales[2].end());
  EXPECT_EQ(codes[0], codes[1]);
  EXPECT_EQ(scales[0], scales[1]);
}

/// A dense projection with the weight that a quantized one stands for, on its own and under LoRA.
TEST_P(QuantizedWeights, MultiplyAsTheDenseWeightThatTheyStandFor) {
  const int64_t groups = 3, outputs = 40, inputs = 136, rows = 17, rank = 4;
  const Shape shape{groups, outputs, inputs};
  Quantized* quantized = nullptr;
  auto make = [&](bool dense) -> std::unique_ptr<Projection> {
    Parameter weight = make_parameter("weight", shape, Role::projection);
    weight.trainable = false;
    if (dense) return std::make_unique<Dense>(std::move(weight));
    auto made = std::make_unique<Quantized>(std::move(weight), GetParam().quantization);
    quantized = made.get();
    return made;
  };
  auto wrap = [&](std::unique_ptr<Projection> base) {
    std::vector<LoraBranch> branches(1);
    branches[0].a = make_parameter("a", {groups, rank, inputs}, Role::lora_a);
    branches[0].b = make_parameter("b", {groups, outputs, rank}, Role::head);  // not zero
    return Lora(std::move(base), std::move(branches));
  };
  Lora dense = wrap(make(true)), rounded = wrap(make(false));
  const ParameterSource source = [&](const ParameterVisitor& visit) {
    dense.for_each_parameter(visit);
    rounded.for_each_parameter(visit);
  };
  const ParameterStore store(*backend_, source, Dtype::f32, Dtype::f32);
  initialise(*backend_, source, {.seed = 5, .deviation = 0.1});
  EXPECT_TRUE(rounded.base().plain_weight().empty());
  const Tensor weight = dense.base().plain_weight();
  quantized->for_each_parameter([&](const Parameter& p) {
    ctx_->run(ops::Dequantize{.codes = p.codes,
                              .scales = p.scales,
                              .y = weight.reshape({groups * outputs, inputs}),
                              .quantization = *p.quantization});
  });

  std::vector<int32_t> starts{0, 5, 5, 17};
  const Tensor offsets = arena_->allocate({4}, Dtype::i32);
  backend_->upload(Tensor(std::span(starts)), offsets);
  const Tensor x = upload(normal(rows * inputs, 1, 6), {rows, inputs});
  const Tensor dy = upload(normal(rows * outputs, 1, 7), {rows, outputs});
  const Tensor weights = upload(normal(rows, 1, 9), {rows, 1});
  std::vector<int32_t> order;
  for (int32_t r = 0; r < rows; ++r) order.push_back((r * 5 + 3) % static_cast<int32_t>(rows));
  const Tensor source_rows = arena_->allocate({rows}, Dtype::i32);
  backend_->upload(Tensor(std::span(order)), source_rows);
  std::vector<std::vector<float>> results[2];
  for (const bool is_dense : {false, true}) {
    const Projection& projection = is_dense ? dense : rounded;
    auto& result = results[is_dense ? 1 : 0];
    const Tensor y = ctx_->allocate({rows, outputs});
    const Tensor dx = upload(normal(rows * inputs, 1, 8), {rows, inputs});
    const int64_t used = arena_->used();
    projection.forward(*ctx_, x, offsets, y);
    result.push_back(download(y));
    projection.backward(*ctx_, dy, x, offsets, dx, Write::accumulate);
    result.push_back(download(dx));
    projection.backward(*ctx_, dy, x, offsets, dx, Write::assign);
    result.push_back(download(dx));
    // The two halves of backward, one after the other.
    projection.backward_input(*ctx_, dy, offsets, dx, Write::assign);
    EXPECT_EQ(download(dx), result.back());
    projection.backward_weight(*ctx_, dy, x, offsets);
    // SwiGLU after the product: of the base, which may do both at once, and of the whole.
    for (const Projection* each :
         {static_cast<const Projection*>(&projection), &(is_dense ? dense : rounded).base()}) {
      const ArenaScope scope(*arena_);
      const ops::GroupedMatmulSwiGlu op{.x = x,
                                        .weight = {},
                                        .offsets = offsets,
                                        .weights = weights,
                                        .source = source_rows,
                                        .gate_up = ctx_->allocate({rows, outputs}),
                                        .h = ctx_->allocate({rows, outputs / 2})};
      each->forward_swiglu(*ctx_, op);
      result.push_back(download(op.gate_up));
      result.push_back(download(op.h));
      each->forward(*ctx_, x, offsets, op.gate_up);
      EXPECT_EQ(download(op.gate_up), result[result.size() - 2]);
      ctx_->run(op.activation());
      EXPECT_EQ(download(op.h), result.back());
    }
    EXPECT_EQ(arena_->used(), used);
  }
  std::vector<std::vector<float>> gradients[2];
  dense.for_each_parameter([&](const Parameter& p) {
    if (p.grad) gradients[1].push_back(download(p.grad));
  });
  rounded.for_each_parameter([&](const Parameter& p) {
    if (p.grad) gradients[0].push_back(download(p.grad));
  });
  EXPECT_EQ(gradients[0].size(), 2u);
  EXPECT_EQ(gradients[0], gradients[1]);
  // The same ops on the same numbers: the same bits, on every backend.
  EXPECT_EQ(results[0], results[1]);
}

INSTANTIATE_TEST_SUITE_P(
    All, QuantizedWeights,
    ::testing::Values(Case{"ref", Quantization::fp8}, Case{"ref", Quantization::nf4},
                      Case{"cpu", Quantization::fp8}, Case{"cpu", Quantization::nf4},
                      Case{"cuda", Quantization::fp8}, Case{"cuda", Quantization::nf4}),
    [](const auto& tested) {
      return fmt::format("{}_{}", tested.param.device, ops::to_string(tested.param.quantization));
    });

}  // namespace
}  // namespace mixtral::nn
