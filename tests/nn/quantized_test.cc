// Weights in every format that is not dense: how far rounding goes, and that a projection of them
// is the dense projection of the rounded weight.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <tuple>

#include "backends/registry.h"
#include "base/random.h"
#include "nn/layout.h"
#include "nn/linear.h"
#include "nn/lora.h"
#include "ops/format_nf4.h"
#include "ref/backend.h"
#include "tests/support/toy_formats.h"

namespace mixtral::nn {
namespace {

using ops::WeightFormat;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 31;

struct Case {
  std::string device;
  WeightFormat format;
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.device << " " << c.format.name();
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
  /// At least `columns`, in whole blocks where the format needs them.
  static int64_t fitting(int64_t columns) {
    const int64_t unit = GetParam().format.unit();
    return (columns + unit - 1) / unit * unit;
  }
  static std::vector<float> normal(int64_t count, double deviation, uint64_t stream) {
    RandomStream random(kSeed, stream);
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i)
      values.push_back(static_cast<float>(deviation * random.normal()));
    return values;
  }

  /// x [R, I] as one group's weight, or as G groups'.
  ops::Weight quantize(const Tensor& x, int64_t groups = 1) {
    const ops::Weight weight =
        ops::make_weight({groups, x.dim(0) / groups, x.dim(1)}, GetParam().format,
                         [&](Shape shape, Dtype dtype) { return arena_->allocate(shape, dtype); });
    ctx_->run(ops::Quantize{.x = x, .weight = weight});
    return weight;
  }
  Tensor dequantize(const ops::Weight& weight, Dtype type) {
    const Tensor y = arena_->allocate({weight.rows(), weight.inputs()}, type);
    ctx_->run(ops::Dequantize{.weight = weight, .y = y});
    return y;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Context> ctx_;
};

/// The formats whose rounding is known number by number.
class NearestWeights : public QuantizedWeights {};

TEST_P(NearestWeights, AreTheNearestThereAre) {
  const Shape shape{6, 300};
  const auto x = normal(shape.numel(), 0.02, 1);
  const ops::Weight rounded = quantize(upload(x, shape));
  const auto y = download(dequantize(rounded, Dtype::f32));
  const auto scales = download(rounded.scales);
  const WeightFormat format = GetParam().format;
  for (int64_t i = 0; i < shape.numel(); ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t row = i / shape[1], block = i % shape[1] / format.row().block;
    const auto scale =
        static_cast<double>(scales[static_cast<size_t>(row * format.scales(shape[1]) + block)]);
    const auto value = static_cast<double>(x[at]);
    const double error = std::abs(static_cast<double>(y[at]) - value);
    if (format == WeightFormat::fp8) {
      // Half a step of 3 fraction bits, or of the subnormals.
      EXPECT_LE(error, std::max(std::abs(value) / 16, scale / 1024)) << i;
    } else {
      for (const float level : ops::kNormalLevels)
        EXPECT_LE(error, std::abs(static_cast<double>(level) * scale - value) + 1e-7 * scale) << i;
    }
  }
}

TEST_P(NearestWeights, KeepWhatIsAlreadyRounded) {
  for (const Dtype type : {Dtype::f32, Dtype::bf16}) {
    const Shape shape{5, 200};
    const ops::Weight once = quantize(upload(normal(shape.numel(), 0.3, 2), shape));
    const ops::Weight twice = quantize(dequantize(once, type));
    EXPECT_EQ(download<uint8_t>(once.codes), download<uint8_t>(twice.codes)) << to_string(type);
    // nf4's scale is any number, which bf16 rounds; fp8's is a power of two.
    const bool exact = type == Dtype::f32 || GetParam().format == WeightFormat::fp8;
    if (exact) {
      EXPECT_EQ(download(once.scales), download(twice.scales)) << to_string(type);
    }
  }
}

TEST_P(QuantizedWeights, ComeBackForEveryGroupThatHasRows) {
  // A GPU leaves a group without rows out where its weights are whole steps of 64 rows.
  for (const int64_t outputs : {5, 64}) {
    const int64_t groups = 3, columns = fitting(200);
    const Shape shape{groups * outputs, columns};
    const ops::Weight rounded = quantize(upload(normal(shape.numel(), 0.3, 2), shape), groups);
    const auto whole = download(dequantize(rounded, Dtype::f32));
    std::vector<int32_t> starts{0, 2, 2, 7};
    const Tensor offsets = arena_->allocate({groups + 1}, Dtype::i32);
    backend_->upload(Tensor(std::span(starts)), offsets);
    const Tensor y = upload(std::vector<float>(static_cast<size_t>(shape.numel()), -9), shape);
    ctx_->run(ops::Dequantize{.weight = rounded, .y = y, .offsets = offsets});
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
    const ops::Weight rounded = quantize(upload(normal(shape.numel(), 0.3, 2), shape), groups);
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
      ctx_->run(
          ops::Dequantize{.weight = rounded, .y = weight, .offsets = sparing ? offsets : Tensor()});
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
    p.format = GetParam().format;
    for (size_t i = 0; i < names.size(); ++i)
      p.parts.push_back({names[i], static_cast<int64_t>(i) * rows * columns, {rows, columns}});
    return p;
  };
  const int64_t columns = fitting(100);
  Linear packed(parameter({"a", "b"}, 3, columns));
  Linear first(parameter({"a"}, 3, columns)), second(parameter({"b"}, 3, columns));
  const ParameterSource source = [&](const ParameterVisitor& visit) {
    for (Linear* each : {&packed, &first, &second}) each->for_each_parameter(visit);
  };
  const ParameterStore store(*backend_, source, Dtype::f32, Dtype::f32);
  initialise(*backend_, source, {.seed = 3});
  for (const auto piece : ops::kWeightPieces) {
    std::vector<std::vector<uint8_t>> bytes;
    source([&](const Parameter& p) {
      const Tensor& device = p.packed.*piece;
      auto& own = bytes.emplace_back(static_cast<size_t>(device.bytes()));
      if (device) backend_->download(device, Tensor(own.data(), device.shape(), device.dtype()));
    });
    bytes[1].insert(bytes[1].end(), bytes[2].begin(), bytes[2].end());
    EXPECT_EQ(bytes[0], bytes[1]);
  }
}

TEST_P(QuantizedWeights, AreCopiedAsTheyAreFromTheirBytes) {
  const int64_t columns = fitting(100);
  Parameter p = make_parameter("a", {2, 3, columns}, Role::projection);
  p.parts = {{"first", 0, {3, columns}}, {"second", 3 * columns, {3, columns}}};
  p.format = GetParam().format;
  Linear drawn(p), copied(p);
  const ParameterSource source = [&](const ParameterVisitor& visit) {
    drawn.for_each_parameter(visit);
    copied.for_each_parameter(visit);
  };
  const ParameterStore store(*backend_, source, Dtype::f32, Dtype::f32);
  initialise(*backend_, [&](const auto& visit) { drawn.for_each_parameter(visit); }, {.seed = 3});
  PartWriter writer(*backend_);
  for (const auto& part : p.parts) {
    std::vector<std::vector<uint8_t>> room;
    ops::Weight host = ops::make_weight({1, 3, columns}, *p.format, [&](Shape shape, Dtype dtype) {
      room.emplace_back(static_cast<size_t>(shape.numel() * size_of(dtype)));
      return Tensor(room.back().data(), shape, dtype);
    });
    const int64_t first = part.offset / columns;
    const ops::Weight device = drawn.parameter().packed.slice_rows(first, first + 3);
    for (const auto piece : ops::kWeightPieces)
      if (device.*piece) backend_->download(device.*piece, host.*piece);
    writer.copy(copied.parameter(), part, host);
    backend_->synchronize();
  }
  EXPECT_EQ(download(dequantize(copied.parameter().packed, Dtype::f32)),
            download(dequantize(drawn.parameter().packed, Dtype::f32)));
}

/// A dense projection with the weight that a quantized one stands for, on its own and under LoRA.
TEST_P(QuantizedWeights, MultiplyAsTheDenseWeightThatTheyStandFor) {
  const int64_t groups = 3, outputs = 40, inputs = fitting(136), rows = 17, rank = 4;
  const Shape shape{groups, outputs, inputs};
  Linear* quantized = nullptr;
  auto make = [&](bool dense) {
    Parameter weight = make_parameter("weight", shape, Role::projection);
    weight.trainable = false;
    if (!dense) weight.format = GetParam().format;
    auto made = std::make_unique<Linear>(std::move(weight));
    if (!dense) quantized = made.get();
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
    ctx_->run(ops::Dequantize{.weight = p.packed, .y = weight.reshape({groups * outputs, inputs})});
  });

  std::vector<int32_t> starts{0, 5, 5, 17};
  const Tensor offsets = arena_->allocate({4}, Dtype::i32);
  backend_->upload(Tensor(std::span(starts)), offsets);
  const RowGroups groups_of_rows{.offsets = offsets};
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
    projection.forward(*ctx_, x, groups_of_rows, y);
    result.push_back(download(y));
    projection.backward(*ctx_, dy, x, groups_of_rows, dx, Write::accumulate);
    result.push_back(download(dx));
    projection.backward(*ctx_, dy, x, groups_of_rows, dx, Write::assign);
    result.push_back(download(dx));
    // The two halves of backward, one after the other.
    projection.backward_input(*ctx_, dy, groups_of_rows, dx, Write::assign);
    EXPECT_EQ(download(dx), result.back());
    projection.backward_weight(*ctx_, dy, x, groups_of_rows);
    // SwiGLU after the product: of the base, which may do both at once, and of the whole.
    for (const Projection* each : {&projection, &(is_dense ? dense : rounded).base()}) {
      const ArenaScope scope(*arena_);
      const ops::GroupedMatmulSwiGlu op{.x = x,
                                        .weight = {},
                                        .offsets = offsets,
                                        .weights = weights,
                                        .source = source_rows,
                                        .gate_up = ctx_->allocate({rows, outputs}),
                                        .h = ctx_->allocate({rows, outputs / 2})};
      each->forward_swiglu(*ctx_, op, groups_of_rows);
      result.push_back(download(op.gate_up));
      result.push_back(download(op.h));
      each->forward(*ctx_, x, groups_of_rows, op.gate_up);
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

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* device : {"ref", "cpu"})
    for (const WeightFormat format : mixtral::testing::packed_formats())
      all.push_back({device, format});
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::nf4})
    all.push_back({"cuda", format});
  return all;
}
std::vector<Case> nearest_cases() {
  std::vector<Case> all;
  for (const char* device : {"ref", "cpu", "cuda"})
    for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::nf4})
      all.push_back({device, format});
  return all;
}
std::string name_of(const ::testing::TestParamInfo<Case>& tested) {
  return fmt::format("{}_{}", tested.param.device, tested.param.format.name());
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedWeights, ::testing::ValuesIn(cases()), name_of);
INSTANTIATE_TEST_SUITE_P(All, NearestWeights, ::testing::ValuesIn(nearest_cases()), name_of);

TEST(WeightsInAFormat, AreRefusedByNameWhereTheyCannotBe) {
  class Refuses final : public ref::RefBackend {
   public:
    std::string name() const override { return "other"; }
    bool has_format(WeightFormat format) const override { return format != WeightFormat::nf4; }
  } backend;
  const auto message = [&](WeightFormat format, int64_t columns) -> std::string {
    Parameter p = make_parameter("layer.weight", {4, columns}, Role::projection);
    p.format = format;
    Linear linear(std::move(p));
    try {
      ParameterStore(
          backend, [&](const auto& visit) { linear.for_each_parameter(visit); }, Dtype::f32,
          Dtype::f32);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message(WeightFormat::fp8, 100), "");
  EXPECT_THAT(message(WeightFormat::nf4, 100),
              ::testing::AllOf(HasSubstr("layer.weight"), HasSubstr("nf4"), HasSubstr("other")));
  EXPECT_THAT(message(WeightFormat(mixtral::testing::kToy6), 100),
              ::testing::AllOf(HasSubstr("layer.weight"), HasSubstr("100"), HasSubstr("32")));
}

TEST(WeightsInAFormat, OfADenseTypeHaveThatTypeBesideOthers) {
  ref::RefBackend backend;
  Parameter p = make_parameter("a", {4, 6}, Role::projection);
  p.format = WeightFormat::f16;
  Linear half(std::move(p)), whole(make_parameter("b", {4, 6}, Role::projection));
  const ParameterStore store(
      backend,
      [&](const auto& visit) {
        half.for_each_parameter(visit);
        whole.for_each_parameter(visit);
      },
      Dtype::f32, Dtype::f32);
  EXPECT_EQ(half.parameter().value.dtype(), Dtype::f16);
  EXPECT_EQ(half.parameter().type, Dtype::f16);
  EXPECT_FALSE(half.parameter().grad);
  EXPECT_EQ(whole.parameter().value.dtype(), Dtype::f32);
  EXPECT_EQ(half.plain_weight().shape(), (Shape{1, 4, 6}));
}

/// A backend that wants eight rows side by side, and multiplies by them as they are in products of
/// few rows.
class Interleaving final : public ref::RefBackend {
 public:
  ops::WeightLayout preferred_layout(WeightFormat format, const Shape& shape) const override {
    return ops::has_layout(format, shape, ops::WeightLayout::interleaved8)
               ? ops::WeightLayout::interleaved8
               : ops::WeightLayout::rows;
  }
  bool computes_directly(const ops::GroupedMatmul& op) const override {
    return op.weight.dense() ||
           (op.weight.layout == ops::WeightLayout::interleaved8 && op.x.dim(0) <= 2);
  }
  using ref::RefBackend::run;
  void run(const ops::GroupedMatmul& op) override {
    if (op.weight.dense()) return ref::RefBackend::run(op);
    ++direct;
    std::vector<float> values(static_cast<size_t>(op.weight.rows() * op.weight.inputs()));
    for (int64_t row = 0; row < op.weight.rows(); ++row)
      ops::unpack_row(op.weight, row,
                      std::span(values).subspan(static_cast<size_t>(row * op.weight.inputs()),
                                                static_cast<size_t>(op.weight.inputs())));
    ops::GroupedMatmul dense = op;
    dense.weight = Tensor(values.data(), op.weight.shape, Dtype::f32);
    ref::RefBackend::run(dense);
  }
  int direct = 0;
};

TEST(WeightLayouts, ThatABackendPrefersAreMadeOnceAndUndoneExactly) {
  for (const WeightFormat format : mixtral::testing::packed_formats()) {
    const int64_t columns = std::max<int64_t>(160, format.unit());
    Interleaving backend;
    ref::RefBackend plain;
    Arena arena(backend), plain_arena(plain);
    Context ctx(backend, arena, Dtype::f32), plain_ctx(plain, plain_arena, Dtype::f32);
    Parameter p = make_parameter("a", {16, columns}, Role::projection);
    p.format = format;
    Linear mixed(p), rows(p);
    const ParameterSource mixed_source = [&](const auto& v) { mixed.for_each_parameter(v); };
    const ParameterSource rows_source = [&](const auto& v) { rows.for_each_parameter(v); };
    const ParameterStore mixed_store(backend, mixed_source, Dtype::f32, Dtype::f32);
    const ParameterStore rows_store(plain, rows_source, Dtype::f32, Dtype::f32);
    for (int time = 0; time < 2; ++time) {  // drawn again, over weights in the other layout
      initialise(backend, mixed_source, {.seed = 7});
      initialise(plain, rows_source, {.seed = 7});
      const bool interleaved =
          ops::has_layout(format, {1, 16, columns}, ops::WeightLayout::interleaved8);
      EXPECT_EQ(mixed.parameter().packed.layout == ops::WeightLayout::interleaved8, interleaved);
      for (const int64_t count : {2, 5}) {
        std::vector<float> x(static_cast<size_t>(count * columns)),
            y(static_cast<size_t>(count * 16));
        for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 13) - 6;
        std::vector<float> expected = y;
        const Tensor input(x.data(), {count, columns}, Dtype::f32);
        backend.direct = 0;
        mixed.forward(ctx, input, {}, Tensor(y.data(), {count, 16}, Dtype::f32));
        EXPECT_EQ(backend.direct, interleaved && count == 2 ? 1 : 0) << format.name();
        rows.forward(plain_ctx, input, {}, Tensor(expected.data(), {count, 16}, Dtype::f32));
        EXPECT_EQ(y, expected) << format.name();
      }
    }
    use_plain_rows(backend, mixed_source);
    for (const auto piece : ops::kWeightPieces) {
      const Tensor &a = mixed.parameter().packed.*piece, &b = rows.parameter().packed.*piece;
      ASSERT_EQ(a.bytes(), b.bytes());
      if (a) {
        EXPECT_EQ(std::memcmp(a.data(), b.data(), static_cast<size_t>(a.bytes())), 0);
      }
    }
  }
}

}  // namespace
}  // namespace mixtral::nn
