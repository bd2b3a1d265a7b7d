// Products of few rows on a GPU, by weights in every format that is multiplied as it is, beside
// sums in double precision over the numbers that the codes stand for. Skipped without a GPU.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <numeric>

#include "base/random.h"
#include "cuda/backend.h"
#include "tests/cuda/gpu_test.h"
#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

using ops::WeightFormat;

struct Case {
  std::string format;
  std::vector<int32_t> rows;  // per group; one group: without offsets
  int64_t outputs, inputs;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << fmt::format("{}, {} by {}, rows", c.format, c.outputs, c.inputs);
  for (const int32_t rows : c.rows) *out << ' ' << rows;
}

/// Whole steps of a warp, and not; outputs that are whole tiles, and not; groups without rows, with
/// more than a chunk of them, and more groups than rows.
std::vector<Case> cases() {
  std::vector<Case> all;
  const std::vector<std::vector<int32_t>> rows = {
      {1},
      {3},
      {4},
      {7},
      {9},
      {16},
      {1, 0, 0, 1, 0, 0, 0, 0},
      {0, 5, 8},
      {3, 1, 0, 7, 2, 0, 1, 2},
      {0, 9, 0, 15, 1, 1, 0, 3},
      {0, 33, 0, 2, 17, 0},
      {0, 0, 64, 0},
  };
  for (const char* format :
       {"bf16", "fp8", "nf4", "int4_g64_bf16", "int4_g128_f16", "int8_g64_bf16", "int8_g128_f16",
        "int4_g64_f16", "int8_g64_f16", "q8_0", "q4_0", "q4_k"})
    for (const auto& counts : rows)
      for (const auto& [outputs, inputs] :
           {std::pair(48, 256), std::pair(70, 1280), std::pair(8, 4096), std::pair(136, 2048)})
        // Plain numbers with few outputs are for other kernels.
        all.push_back(
            {format, counts, outputs + (format == std::string("bf16") ? 256 : 0), inputs});
  // More than other kernels take of plain numbers.
  for (const char* format : {"fp8", "nf4", "int4_g64_bf16", "int8_g64_f16", "q8_0", "q4_0", "q4_k"})
    for (const int32_t count : {17, 25, 32}) all.push_back({format, {count}, 136, 2048});
  // So many outputs that two tiles of them make an item, and the last item is short.
  for (const char* format :
       {"fp8", "nf4", "int4_g64_bf16", "int4_g128_f16", "int8_g64_bf16", "q8_0", "q4_0", "q4_k"})
    for (const int32_t count : {1, 2}) all.push_back({format, {count}, 8500, 256});
  for (const int64_t inputs : {8, 24, 40, 104, 520})
    for (const auto& counts : {std::vector<int32_t>{2}, {2, 0, 3}})
      all.push_back({"bf16", counts, 275, inputs});
  return all;
}

class Streamed : public GpuTest<Case> {
 protected:
  Tensor on_device(const Tensor& host) {
    buffers_.emplace_back(gpu(), std::max<int64_t>(host.bytes(), 1));
    const Tensor device = buffers_.back().tensor(host.shape(), host.dtype());
    if (host.numel() > 0) gpu().upload(host, device);
    return device;
  }
  Tensor room(Shape shape, Dtype dtype) {
    buffers_.emplace_back(gpu(), shape.numel() * size_of(dtype));
    return buffers_.back().tensor(shape, dtype);
  }
  Tensor host(Shape shape, Dtype dtype) {
    host_.emplace_back(host_memory(), shape.numel() * size_of(dtype));
    return host_.back().tensor(shape, dtype);
  }

  /// A weight on the device, and its numbers.
  ops::Weight weight(const Case& c, int64_t outputs, std::vector<float>& numbers) {
    const auto groups = static_cast<int64_t>(c.rows.size());
    const WeightFormat format = *ops::find_weight_format(c.format);
    ops::Weight packed =
        ops::make_weight({groups, outputs, c.inputs}, format,
                         [&](Shape shape, Dtype dtype) { return host(shape, dtype); });
    numbers.resize(static_cast<size_t>(groups * outputs * c.inputs));
    for (int64_t row = 0; row < packed.rows(); ++row) {
      const auto values = std::span(numbers).subspan(static_cast<size_t>(row * c.inputs),
                                                     static_cast<size_t>(c.inputs));
      // Means of any sign, so that minima matter.
      const double mean = random_.normal() * 0.01;
      for (float& value : values) value = static_cast<float>(mean + 0.02 * random_.normal());
      if (format.dense()) {
        for (size_t i = 0; i < values.size(); ++i) {
          const bf16 rounded(values[i]);
          packed.codes.as<bf16>()[row * c.inputs + static_cast<int64_t>(i)] = rounded;
          values[i] = static_cast<float>(rounded);
        }
      } else {
        if (format.row().pack)
          ops::pack_row(packed, row, values);
        else
          draw_blocks(packed, row);
        ops::unpack_row(packed, row, values);
      }
    }
    const ops::WeightLayout layout = gpu().preferred_layout(format, packed.shape);
    if (layout != packed.layout) {
      ops::Weight other = ops::make_weight(
          packed.shape, format, [&](Shape shape, Dtype dtype) { return host(shape, dtype); });
      other.layout = layout;
      ops::change_layout(packed, other);
      packed = other;
    }
    for (const auto piece : ops::kWeightPieces)
      if (packed.*piece) packed.*piece = on_device(packed.*piece);
    return packed;
  }

  /// Any codes and scales of a format that is only read, with super-block scales of usual size.
  void draw_blocks(const ops::Weight& weight, int64_t row) {
    const int64_t bytes = weight.codes.dim(1), size = weight.format.row().block_bytes;
    auto* const at = static_cast<uint8_t*>(weight.codes.data()) + row * bytes;
    for (int64_t i = 0; i < bytes; ++i) at[i] = static_cast<uint8_t>(random_.below(256));
    for (int64_t block = 0; block < bytes; block += size)
      for (int half = 0; half < weight.format.row().halves; ++half) {
        const f16 number(static_cast<float>((random_.uniform() - 0.3) * 1e-4));
        std::memcpy(at + block + weight.format.row().halves_at + 2 * half, &number, sizeof number);
      }
  }

  Tensor random_bf16(Shape shape, double deviation) {
    const Tensor values = host(shape, Dtype::bf16);
    for (int64_t i = 0; i < values.numel(); ++i)
      values.as<bf16>()[i] = bf16(static_cast<float>(deviation * random_.normal()));
    return values;
  }

  /// x · weightᵀ of one group, on the host.
  Tensor product(const ops::Weight& weights, const Tensor& x) {
    const ops::GroupedMatmul op{.x = on_device(x),
                                .weight = weights,
                                .offsets = {},
                                .y = room({x.dim(0), weights.outputs()}, Dtype::bf16)};
    gpu().run(op);
    const Tensor y = host(op.y.shape(), Dtype::bf16);
    gpu().download(op.y, y);
    return y;
  }

  RandomStream random_{7, 0};
  std::deque<Buffer> buffers_, host_;
};
class StreamedExperts : public Streamed {};
class StreamedAlone : public Streamed {};  // one group
class StreamedRows : public Streamed {};   // of at least three rows

/// Σ x · w of a row of x and one of w, and Σ |x · w|.
std::pair<double, double> dot(const bf16* x, const float* w, int64_t count) {
  double sum = 0, size = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double term = static_cast<double>(static_cast<float>(x[i])) * static_cast<double>(w[i]);
    sum += term;
    size += std::abs(term);
  }
  return {sum, size};
}

int64_t group_of(const std::vector<int32_t>& offsets, int64_t row) {
  return std::ranges::upper_bound(offsets, static_cast<int32_t>(row)) - offsets.begin() - 1;
}

/// Of a level of nf4 that is rounded to bf16, and of the sums of all formats.
double tolerance(const Case& c) { return c.format == "nf4" ? 0.004 : 2e-5; }

TEST_P(Streamed, ProductsEqualSumsInDoublePrecision) {
  const Case& c = GetParam();
  std::vector<float> numbers;
  const ops::Weight weights = weight(c, c.outputs, numbers);
  const std::vector<int32_t> offsets = offsets_of(c.rows);
  const int64_t rows = offsets.back();
  const Tensor x = random_bf16({rows, c.inputs}, 1);
  std::vector<int32_t> copy = offsets;
  const Tensor before = random_bf16({rows, c.outputs + 3}, 1);
  ops::GroupedMatmul op{
      .x = on_device(x),
      .weight = weights,
      .offsets = c.rows.size() > 1 ? on_device(Tensor(std::span(copy))) : Tensor(),
      .y = on_device(before),
      .y_begin = 2,
      .scale = -0.75,
      .accumulate = true};
  ASSERT_TRUE(gpu().computes_directly(op));
  gpu().run(op);
  const Tensor y = host(before.shape(), Dtype::bf16);
  gpu().download(op.y, y);
  for (int64_t r = 0; r < rows; ++r) {
    const float* group = numbers.data() + group_of(offsets, r) * c.outputs * c.inputs;
    for (int64_t o = 0; o < c.outputs + 3; ++o) {
      const auto got =
          static_cast<double>(static_cast<float>(y.as<bf16>()[r * (c.outputs + 3) + o]));
      const auto old =
          static_cast<double>(static_cast<float>(before.as<bf16>()[r * (c.outputs + 3) + o]));
      if (o < 2 || o >= c.outputs + 2) {
        ASSERT_EQ(got, old) << "row " << r << " column " << o;
        continue;
      }
      const auto [sum, size] =
          dot(x.as<bf16>() + r * c.inputs, group + (o - 2) * c.inputs, c.inputs);
      const double expected = old - 0.75 * sum;
      ASSERT_NEAR(got, expected, std::abs(expected) / 250 + tolerance(c) * size)
          << "row " << r << " output " << o - 2;
    }
  }
}

TEST_P(StreamedExperts, GatedProductsEqualSumsInDoublePrecision) {
  const Case& c = GetParam();
  std::vector<float> numbers;
  const ops::Weight weights = weight(c, 2 * c.outputs, numbers);
  std::vector<int32_t> offsets = offsets_of(c.rows);
  const int64_t rows = offsets.back();
  const Tensor x = random_bf16({rows, c.inputs}, 1);
  std::vector<float> shares(static_cast<size_t>(rows));
  for (float& share : shares) share = static_cast<float>(0.2 + random_.uniform());
  std::vector<int32_t> source(static_cast<size_t>(rows));
  std::iota(source.rbegin(), source.rend(), 0);
  ops::GroupedMatmulSwiGlu op{.x = on_device(x),
                              .weight = weights,
                              .offsets = on_device(Tensor(std::span(offsets))),
                              .weights = on_device(Tensor(std::span(shares)).reshape({rows, 1})),
                              .source = on_device(Tensor(std::span(source))),
                              .gate_up = room({rows, 2 * c.outputs}, Dtype::bf16),
                              .h = room({rows, c.outputs}, Dtype::bf16),
                              .keep_gate_up = false};
  gpu().run(op);
  const Tensor h = host({rows, c.outputs}, Dtype::bf16);
  gpu().download(op.h, h);
  for (int64_t r = 0; r < rows; ++r) {
    const float* group = numbers.data() + group_of(offsets, r) * 2 * c.outputs * c.inputs;
    const double share = shares[static_cast<size_t>(source[static_cast<size_t>(r)])];
    for (int64_t o = 0; o < c.outputs; ++o) {
      const bf16* row = x.as<bf16>() + r * c.inputs;
      const auto [gate, gate_size] = dot(row, group + o * c.inputs, c.inputs);
      const auto [up, up_size] = dot(row, group + (c.outputs + o) * c.inputs, c.inputs);
      const double silu = gate / (1 + std::exp(-gate));
      const double expected = share * silu * up;
      const double slack = tolerance(c) * share *
                           (1.1 * gate_size * std::abs(up) + up_size * std::abs(silu) +
                            tolerance(c) * gate_size * up_size);
      const auto got = static_cast<double>(static_cast<float>(h.as<bf16>()[r * c.outputs + o]));
      ASSERT_NEAR(got, expected, std::abs(expected) / 250 + slack + 1e-6)
          << "row " << r << " output " << o;
    }
  }
}

/// As decoding needs it: what a row comes to does not depend on the rows beside it. In fp8 and
/// integers more than eight rows are summed in another order than fewer are.
TEST_P(StreamedAlone, ARowHasTheSameBitsBesideFewerRows) {
  const Case& c = GetParam();
  std::vector<float> numbers;
  const ops::Weight weights = weight(c, c.outputs, numbers);
  const int64_t rows = c.rows[0];
  const bool one_order = c.format == "bf16" || c.format == "nf4";
  const int64_t fewer = rows > 8 && !one_order ? 9 : 1;
  const Tensor x = random_bf16({rows, c.inputs}, 1);
  const Tensor all = product(weights, x), some = product(weights, x.slice(rows - fewer, rows));
  for (int64_t o = 0; o < c.outputs; ++o)
    EXPECT_EQ(static_cast<float>(all.as<bf16>()[(rows - 1) * c.outputs + o]),
              static_cast<float>(some.as<bf16>()[(fewer - 1) * c.outputs + o]))
        << o;
}

/// Integer codes are multiplied by x in fixed point: as good as that is, whatever x's magnitude.
TEST_P(StreamedAlone, NumbersOfAnySizeKeepTheirPlaces) {
  const Case& c = GetParam();
  std::vector<float> numbers;
  const ops::Weight weights = weight(c, c.outputs, numbers);
  const int64_t rows = c.rows[0];
  const Tensor x = host({rows, c.inputs}, Dtype::bf16);
  for (int64_t i = 0; i < x.numel(); ++i) {
    // Of each 64 columns, a few are a thousand times as large as the others; some are all zero.
    const auto magnitude = static_cast<int>(i / 64 % 5) * 20 - 60 + (i % 37 == 0 ? 10 : 0);
    const double number = i / 64 % 7 == 6 ? 0 : random_.normal();
    x.as<bf16>()[i] = bf16(static_cast<float>(std::ldexp(number, magnitude)));
  }
  const Tensor y = product(weights, x);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < c.outputs; ++o) {
      const bf16* const row = x.as<bf16>() + r * c.inputs;
      const float* const w = numbers.data() + o * c.inputs;
      const auto [expected, size] = dot(row, w, c.inputs);
      double slack = tolerance(c) * size;
      for (int64_t first = 0; first < c.inputs; first += 64) {
        double most = 0, weight = 0;
        for (int64_t i = first; i < std::min(first + 64, c.inputs); ++i) {
          most = std::max(most, std::abs(static_cast<double>(static_cast<float>(row[i]))));
          weight += std::abs(static_cast<double>(w[i]));
        }
        slack += std::ldexp(most, -14) * weight;
      }
      const auto got = static_cast<double>(static_cast<float>(y.as<bf16>()[r * c.outputs + o]));
      ASSERT_NEAR(got, expected, std::abs(expected) / 250 + slack)
          << "row " << r << " output " << o;
    }
}

TEST_P(StreamedRows, ANumberThatIsNotFiniteSpoilsItsRowAlone) {
  const Case& c = GetParam();
  std::vector<float> numbers;
  const ops::Weight weights = weight(c, c.outputs, numbers);
  const int64_t rows = c.rows[0];
  const Tensor x = random_bf16({rows, c.inputs}, 1);
  x.as<bf16>()[c.inputs / 2] = bf16(std::numeric_limits<float>::quiet_NaN());
  x.as<bf16>()[2 * c.inputs + 3] = bf16(std::numeric_limits<float>::infinity());
  const Tensor y = product(weights, x);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < c.outputs; ++o)
      ASSERT_EQ(std::isfinite(static_cast<float>(y.as<bf16>()[r * c.outputs + o])),
                r != 0 && r != 2)
          << "row " << r << " output " << o;
}

/// The cases of several groups, or of one with so many rows.
std::vector<Case> cases_of(bool several, int32_t least_rows = 0) {
  std::vector<Case> all = cases();
  std::erase_if(all, [&](const Case& c) {
    return several != (c.rows.size() > 1) || (!several && c.rows[0] < least_rows);
  });
  return all;
}

INSTANTIATE_TEST_SUITE_P(Gpu, Streamed, testing::ValuesIn(cases()));
INSTANTIATE_TEST_SUITE_P(Gpu, StreamedExperts, testing::ValuesIn(cases_of(true)));
INSTANTIATE_TEST_SUITE_P(Gpu, StreamedAlone, testing::ValuesIn(cases_of(false)));
INSTANTIATE_TEST_SUITE_P(Gpu, StreamedRows, testing::ValuesIn(cases_of(false, 3)));

class Planes : public Streamed {};

TEST_P(Planes, AreMadeInPlaceAndUnpackedAsRowsAre) {
  const Case& c = GetParam();
  const WeightFormat format = *ops::find_weight_format(c.format);
  const auto groups = static_cast<int64_t>(c.rows.size());
  const Shape shape{groups, c.outputs, c.inputs};
  const auto make = [&] {
    return ops::make_weight(shape, format,
                            [&](Shape piece, Dtype dtype) { return host(piece, dtype); });
  };
  const ops::Weight rows = make();
  ops::Weight planes = make(), seen = make();
  for (int64_t row = 0; row < rows.rows(); ++row) draw_blocks(rows, row);
  planes.layout = ops::WeightLayout::planes;
  ops::change_layout(rows, planes);
  ops::Weight device = rows;
  device.codes = on_device(rows.codes);
  const auto expect_bytes = [&](const ops::Weight& expected) {
    gpu().download(device.codes, seen.codes);
    EXPECT_EQ(std::memcmp(seen.codes.data(), expected.codes.data(),
                          static_cast<size_t>(expected.codes.bytes())),
              0);
  };
  ASSERT_EQ(gpu().preferred_layout(format, shape), ops::WeightLayout::planes);
  ASSERT_TRUE(gpu().change_layout(device, ops::WeightLayout::planes));
  device.layout = ops::WeightLayout::planes;
  expect_bytes(planes);
  // Groups without rows are left out.
  std::vector<int32_t> offsets = offsets_of(c.rows);
  std::vector<float> expected(static_cast<size_t>(c.inputs));
  for (const Dtype type : {Dtype::f32, Dtype::bf16}) {
    const Tensor y = room({rows.rows(), c.inputs}, type);
    gpu().run(
        ops::Dequantize{.weight = device,
                        .y = y,
                        .offsets = groups > 1 ? on_device(Tensor(std::span(offsets))) : Tensor()});
    const Tensor got = host(y.shape(), type);
    gpu().download(y, got);
    for (int64_t row = 0; row < rows.rows(); ++row) {
      if (c.rows[static_cast<size_t>(row / c.outputs)] == 0) continue;
      ops::unpack_row(rows, row, expected);
      for (int64_t i = 0; i < c.inputs; ++i) {
        const auto at = static_cast<size_t>(i);
        const int64_t place = row * c.inputs + i;
        if (type == Dtype::f32)
          ASSERT_EQ(got.as<float>()[place], expected[at]) << row << ", " << i;
        else
          ASSERT_EQ(static_cast<float>(got.as<bf16>()[place]),
                    static_cast<float>(bf16(expected[at])))
              << row << ", " << i;
      }
    }
  }
  ASSERT_TRUE(gpu().change_layout(device, ops::WeightLayout::rows));
  device.layout = ops::WeightLayout::rows;
  expect_bytes(rows);
}

std::vector<Case> plane_cases() {
  std::vector<Case> all;
  for (const char* format : {"q8_0", "q4_0", "q4_k"})
    for (const int64_t inputs : {256, 1280, 14336})
      for (const auto& rows : {std::vector<int32_t>{2}, {1, 0, 3}})
        all.push_back({format, rows, 64, inputs});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Gpu, Planes, testing::ValuesIn(plane_cases()));

}  // namespace
}  // namespace mixtral::test
