// The CPU kernels' building blocks: accuracy of elementary functions and roundings, and that every
// instruction set of this machine gives the same bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/registry.h"
#include "base/random.h"
#include "cpu/simd_targets.h"
#include "ops/weight_format.h"
#include "tests/op_cases.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/ops/cpu_simd_test.cc"
#include <hwy/foreach_target.h>

#include "cpu/simd_math.h"
#include "cpu/simd_philox.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

// y[i] = f(x[i]) for sixteen elements.
void run_exponential(const float* x, float* y) { store(exponential(load(x)), y); }
void run_nonpositive(const float* x, float* y) { store(exponential_nonpositive(load(x)), y); }
void run_exponential2(const float* x, float* y) { store(exponential2(load(x)), y); }
void run_sigmoid(const float* x, float* y) { store(sigmoid(load(x)), y); }
void run_logarithm(const float* x, float* y) { store(logarithm(load(x)), y); }
void run_cosine(const float* x, float* y) { store(cosine_of_turns(load(x)), y); }
void run_bf16(const float* x, bf16* y) { store(load(x), y); }
void run_f16(const float* x, f16* y) { store(load(x), y); }
void run_from_bf16(const bf16* x, float* y) { store(load(x), y); }
void run_from_f16(const f16* x, float* y) { store(load(x), y); }
void run_philox(uint64_t key, uint64_t high, uint64_t low, uint32_t* words) {
  const RandomWords random = philox16(PhiloxKey(key), high, low);
  for (int j = 0; j < 4; ++j)
    store(as_floats(random.word[j]), reinterpret_cast<float*>(words + j * kLanes));
}
float run_sum(const float* x, int64_t n) {
  return sum_lanes(n, [&](int64_t i, int64_t count) HWY_ATTR { return load_n(x + i, count); });
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(run_exponential);
HWY_EXPORT(run_nonpositive);
HWY_EXPORT(run_exponential2);
HWY_EXPORT(run_sigmoid);
HWY_EXPORT(run_logarithm);
HWY_EXPORT(run_cosine);
HWY_EXPORT(run_bf16);
HWY_EXPORT(run_f16);
HWY_EXPORT(run_from_bf16);
HWY_EXPORT(run_from_f16);
HWY_EXPORT(run_philox);
HWY_EXPORT(run_sum);

/// Each instruction set that this machine has and the kernels are compiled for, with fused
/// multiply-adds; while it lives, it is the one that is used.
std::vector<int64_t> instruction_sets() {
  std::vector<int64_t> targets;
  for (int64_t target : {HWY_AVX2, HWY_AVX3, HWY_NEON})
    if ((hwy::SupportedTargets() & HWY_TARGETS & target) != 0) targets.push_back(target);
  return targets;
}

class Use {
 public:
  explicit Use(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ~Use() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

/// Finite and special floats between two values, both included, `stride` bit patterns apart.
template <class Visit>
void for_floats(float low, float high, uint32_t stride, const Visit& visit) {
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += stride) {
    const auto x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (x >= low && x <= high) visit(x);
  }
  visit(low);
  visit(high);
}

/// The largest error of `run`, in units of the last place of the result (of normal results; of a
/// subnormal one, in units of the smallest).
template <class Run, class Exact>
double worst_ulp(float low, float high, const Run& run, const Exact& exact) {
  double worst = 0;
  float x[16], y[16];
  int filled = 0;
  const auto flush = [&] {
    for (int i = filled; i < 16; ++i) x[i] = x[0];
    run(x, y);
    for (int i = 0; i < filled; ++i) {
      const double want = exact(static_cast<double>(x[i]));
      const float nearest = std::abs(static_cast<float>(want));
      const double unit = std::isinf(nearest)
                              ? 0x1p104
                              : static_cast<double>(std::nextafter(nearest, INFINITY) - nearest);
      double error = std::abs(static_cast<double>(y[i]) - want) / unit;
      if (y[i] == static_cast<float>(want)) error = std::min(error, 0.5);
      if (error > worst) worst = error;
    }
    filled = 0;
  };
  for_floats(low, high, 509, [&](float value) {
    x[filled++] = value;
    if (filled == 16) flush();
  });
  if (filled > 0) flush();
  return worst;
}

TEST(CpuMath, ElementaryFunctionsAreAccurate) {
  const auto exp = [](double x) { return std::exp(x); };
  for (int64_t target : instruction_sets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    const Use use(target);
    EXPECT_LE(worst_ulp(-INFINITY, INFINITY, HWY_DYNAMIC_DISPATCH(run_exponential), exp), 1.05);
    EXPECT_LE(worst_ulp(-87.33f, 0, HWY_DYNAMIC_DISPATCH(run_nonpositive), exp), 1.05);
    EXPECT_LE(worst_ulp(-126, 127, HWY_DYNAMIC_DISPATCH(run_exponential2),
                        [](double x) { return std::exp2(x); }),
              1.05);
    EXPECT_LE(worst_ulp(-87, INFINITY, HWY_DYNAMIC_DISPATCH(run_sigmoid),
                        [](double x) { return 1 / (1 + std::exp(-x)); }),
              2.5);
    EXPECT_LE(worst_ulp(0x1p-126f, std::numeric_limits<float>::max(),
                        HWY_DYNAMIC_DISPATCH(run_logarithm), [](double x) { return std::log(x); }),
              1.5);
    float x[16], y[16];
    for (uint32_t word = 0; word < 1u << 24; word += 16) {
      for (uint32_t i = 0; i < 16; ++i) x[i] = static_cast<float>(word + i) * 0x1p-24f;
      HWY_DYNAMIC_DISPATCH(run_cosine)(x, y);
      for (int i = 0; i < 16; ++i)
        ASSERT_NEAR(static_cast<double>(y[i]), std::cos(2 * M_PI * static_cast<double>(x[i])),
                    1.2e-7)
            << x[i];
    }
  }
}

TEST(CpuMath, ExponentialsOfSpecialValues) {
  float x[16] = {-INFINITY, -1e30f, -104, -88, 0, -0.f, NAN, std::bit_cast<float>(0x7fc00155u)};
  float y[16];
  for (int64_t target : instruction_sets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    const Use use(target);
    using Function = void (*)(const float*, float*);
    for (const Function run : {Function(HWY_DYNAMIC_DISPATCH(run_exponential)),
                               Function(HWY_DYNAMIC_DISPATCH(run_nonpositive)),
                               Function(HWY_DYNAMIC_DISPATCH(run_exponential2))}) {
      run(x, y);
      EXPECT_EQ(y[0], 0);
      EXPECT_EQ(y[1], 0);
      EXPECT_LE(y[2], 0x1p-103f);
      EXPECT_EQ(y[4], 1);
      EXPECT_EQ(y[5], 1);
      EXPECT_TRUE(std::isnan(y[6]) && std::isnan(y[7]));
    }
  }
}

TEST(CpuMath, RoundsToSixteenBitsAsTheScalarTypesDo) {
  for (int64_t target : instruction_sets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    const Use use(target);
    float x[16];
    bf16 b[16];
    f16 h[16];
    for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 16 * 127) {
      for (uint32_t i = 0; i < 16; ++i)
        x[i] = std::bit_cast<float>(static_cast<uint32_t>(bits) + i * 127);
      HWY_DYNAMIC_DISPATCH(run_bf16)(x, b);
      HWY_DYNAMIC_DISPATCH(run_f16)(x, h);
      for (int i = 0; i < 16; ++i) {
        ASSERT_EQ(b[i].bits, bf16(x[i]).bits) << x[i];
        ASSERT_EQ(h[i].bits, f16(x[i]).bits) << x[i];
      }
    }
    float y[16];
    for (uint32_t bits = 0; bits < 1u << 16; bits += 16) {
      for (uint32_t i = 0; i < 16; ++i) b[i].bits = h[i].bits = static_cast<uint16_t>(bits + i);
      HWY_DYNAMIC_DISPATCH(run_from_bf16)(b, y);
      for (int i = 0; i < 16; ++i)
        ASSERT_EQ(std::bit_cast<uint32_t>(y[i]), uint32_t{b[i].bits} << 16);
      HWY_DYNAMIC_DISPATCH(run_from_f16)(h, y);
      for (int i = 0; i < 16; ++i)
        ASSERT_EQ(std::bit_cast<uint32_t>(y[i]), std::bit_cast<uint32_t>(static_cast<float>(h[i])));
    }
  }
}

TEST(CpuMath, PhiloxOfSixteenCountersIsPhiloxOfEach) {
  for (int64_t target : instruction_sets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    const Use use(target);
    const uint64_t key = 0x0123456789abcdef, high = 0xfedcba9876543210;
    for (uint64_t low : {uint64_t{0}, uint64_t{4096}, uint64_t{0xfffffff0}, ~uint64_t{15}}) {
      uint32_t words[64];
      HWY_DYNAMIC_DISPATCH(run_philox)(key, high, low, words);
      for (uint64_t i = 0; i < 16; ++i) {
        const auto expected = philox(key, high, low + i);
        for (size_t j = 0; j < 4; ++j) ASSERT_EQ(words[j * 16 + i], expected[j]) << low + i;
      }
    }
  }
}

TEST(CpuMath, SumsAreTheSameTreeOnEveryInstructionSet) {
  RandomStream random(7);
  std::vector<float> x(301);
  for (float& value : x) value = static_cast<float>(random.normal());
  for (int64_t n = 0; n <= static_cast<int64_t>(x.size()); ++n) {
    std::vector<uint32_t> bits;
    for (int64_t target : instruction_sets()) {
      const Use use(target);
      bits.push_back(std::bit_cast<uint32_t>(HWY_DYNAMIC_DISPATCH(run_sum)(x.data(), n)));
    }
    for (uint32_t each : bits) ASSERT_EQ(each, bits[0]) << n << " elements";
  }
}

TEST(CpuBackend, EveryInstructionSetGivesTheSameBits) {
  if (instruction_sets().size() < 2) GTEST_SKIP() << "this machine has one instruction set only";
  const uint64_t seed = test::test_seed();
  for (const auto& op : test::op_cases()) {
    const bool in_f32 =
        std::find(op.dtypes.begin(), op.dtypes.end(), Dtype::f32) != op.dtypes.end();
    // Products of bf16 pairs are the processor's own and round as it does.
    if (op.benchmark || !in_f32 || op.name.find("operands") != std::string::npos) continue;
    SCOPED_TRACE(op.name + ", MIXTRAL_TEST_SEED=" + std::to_string(seed));
    std::vector<std::vector<std::byte>> first;
    const auto original = make_backend("cpu", 2);
    test::Rig model(*original, Dtype::f32, seed);
    op.build(model);
    for (int64_t target : instruction_sets()) {
      const Use use(target);
      const auto backend = make_backend("cpu", 2);
      test::Rig rig(*backend, model);
      op.build(rig);
      rig.execute();
      std::vector<std::vector<std::byte>> results;
      for (const auto& operand : rig.operands()) results.push_back(rig.download(operand));
      if (first.empty()) first = results;
      for (size_t i = 0; i < results.size(); ++i)
        EXPECT_TRUE(results[i] == first[i])
            << rig.operands()[i].name << " with " << hwy::TargetName(target);
    }
  }
}

// Packing needs no fused multiply-adds, so that it has older instruction sets, too.
TEST(KTypes, ArePackedToTheSameBytesByEveryInstructionSet) {
  std::vector<float> values(4096);
  RandomStream random(test::test_seed(), 1);
  for (float& value : values) value = static_cast<float>(random.normal());
  using Pack = void (*)(std::span<const float>, const ops::RowPieces&);
  for (const auto& [name, pack] : {std::pair<const char*, Pack>{"q4_k", ops::pack_q4_k},
                                   {"q5_k", ops::pack_q5_k},
                                   {"q6_k", ops::pack_q6_k}}) {
    const ops::WeightFormat format = *ops::find_weight_format(name);
    std::vector<std::vector<uint8_t>> packed;
    for (int64_t target : {HWY_SSSE3, HWY_SSE4, HWY_AVX2, HWY_AVX3, HWY_NEON}) {
      if ((hwy::SupportedTargets() & target) == 0) continue;
      const Use use(target);
      std::vector<uint8_t>& bytes = packed.emplace_back(
          static_cast<size_t>(format.row_bytes(static_cast<int64_t>(values.size()))));
      pack(values, {.codes = bytes.data()});
      EXPECT_EQ(bytes, packed[0]) << name << " with " << hwy::TargetName(target)
                                  << ", MIXTRAL_TEST_SEED=" << test::test_seed();
    }
    EXPECT_FALSE(packed.empty());
  }
}

}  // namespace
}  // namespace mixtral::cpu
#endif  // HWY_ONCE
