#include "ops/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/random.h"
#include "ops/format_nf4.h"
#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

using ops::FormatRow;
using ops::Weight;
using ops::WeightFormat;

const std::vector<Dtype> kFloats{Dtype::f64, Dtype::f32, Dtype::bf16};

enum class Written { by_the_op, before };

/// A weight of `rows` rows whose pieces are outputs, or prepared.
Weight weight(Rig& rig, WeightFormat format, int64_t rows, int64_t columns, Written written) {
  int piece = 0;
  return ops::make_weight({1, rows, columns}, format, [&](Shape shape, Dtype dtype) {
    const std::string name = fmt::format("piece {}", piece++);
    return written == Written::by_the_op ? rig.output(name, shape, dtype)
                                         : rig.prepared(name, shape, dtype);
  });
}

OpCase quantize(const std::string& name, WeightFormat format, int64_t rows, int64_t columns,
                Spread spread = {0.02}, std::vector<Dtype> dtypes = kFloats,
                bool benchmark = false) {
  return {
      fmt::format("Quantize_{}_{}", format.name(), name),
      [=](Rig& rig) {
        rig.run(ops::Quantize{.x = rig.input("x", {rows, columns}, spread),
                              .weight = weight(rig, format, rows, columns, Written::by_the_op)});
      },
      std::move(dtypes), benchmark, format};
}

/// Values where rounding is decided: zeros of both signs, halves between codes, a block of nothing,
/// one of numbers too small for a normal scale.
OpCase quantize_edges(WeightFormat format) {
  return {fmt::format("Quantize_{}_edges", format.name()),
          [=](Rig& rig) {
            const int64_t block = format.row().block, columns = 4 * block + 5;
            std::vector<double> values(static_cast<size_t>(columns), 0.0);
            auto at = [&](int64_t i) -> double& { return values[static_cast<size_t>(i)]; };
            for (int64_t i = 0; i < block; ++i) at(i) = (static_cast<double>(i) - 20) / 16;
            at(0) = 1.8125;  // 464 scales: rounds down to 448
            at(1) = -0.0;
            for (int i = 0; i < 15; ++i)
              at(16 + i) = 1.75 * static_cast<double>(ops::normal_midpoint(i));
            for (int64_t i = block; i < 2 * block; ++i)
              at(i) = 0x1p-9 * (static_cast<double>(i - block) / 2 - 10);
            at(block) = -448;  // scale 1
            for (int64_t i = 3 * block; i < 4 * block; ++i)
              at(i) = i % 2 == 0 ? 0x1p-140 : -0x1p-141;
            for (int64_t i = 4 * block; i < columns; ++i) at(i) = i % 2 == 0 ? 449.0 : -0x1p120;
            rig.run(ops::Quantize{.x = rig.values("x", {1, columns}, rig.dtype(), values),
                                  .weight = weight(rig, format, 1, columns, Written::by_the_op)});
          },
          kFloats};
}

OpCase dequantize(const std::string& name, WeightFormat format, int64_t rows, int64_t columns,
                  Dtype to, bool benchmark = false) {
  return {
      fmt::format("Dequantize_{}_{}_to_{}", format.name(), name, to_string(to)),
      [=](Rig& rig) {
        const ops::Quantize prepare{.x = rig.input("x", {rows, columns}, Dtype::f32, {0.02}),
                                    .weight = weight(rig, format, rows, columns, Written::before)};
        rig.prepare(prepare);
        rig.run(
            ops::Dequantize{.weight = prepare.weight, .y = rig.output("y", {rows, columns}, to)});
      },
      {to == Dtype::f64 ? Dtype::f64 : Dtype::f32},
      benchmark,
      format};
}

/// Every code that fp8 or nf4 has, with scales of every size.
OpCase dequantize_all_codes(WeightFormat format) {
  return {fmt::format("Dequantize_{}_all_codes", format.name()),
          [=](Rig& rig) {
            const bool fp8 = format == WeightFormat::fp8;
            std::vector<double> codes;
            for (int code = 0; code < 256; ++code)
              codes.push_back(fp8 && code % 128 == 127 ? 0 : code);
            const int64_t columns = fp8 ? 256 : 512;
            std::vector<double> scales;
            for (int64_t i = 0; i < format.scales(columns); ++i)
              scales.push_back(std::vector{1.0, 0.0, 0x1p-20, 0x1p90}[static_cast<size_t>(i % 4)]);
            bool first = true;
            const Weight weight =
                ops::make_weight({1, 1, columns}, format, [&](Shape shape, Dtype dtype) {
                  const bool of_codes = std::exchange(first, false);
                  return rig.values(of_codes ? "codes" : "scales", shape, dtype,
                                    of_codes ? codes : scales);
                });
            rig.run(ops::Dequantize{.weight = weight, .y = rig.output("y", {1, columns})});
          },
          kFloats};
}

/// A row of random bytes, drawn again until all of its numbers are finite.
std::vector<double> random_codes(WeightFormat format, int64_t columns, RandomStream& random) {
  std::vector<uint8_t> bytes(static_cast<size_t>(format.codes(columns)));
  std::vector<float> values(static_cast<size_t>(columns));
  do {
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.below(256));
    format.row().unpack({.codes = bytes.data()}, values);
  } while (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); }));
  return {bytes.begin(), bytes.end()};
}

/// A format in blocks that is only read.
OpCase dequantize_bytes(WeightFormat format, int64_t rows, int64_t columns, Dtype to) {
  return {fmt::format("Dequantize_{}_bytes_to_{}", format.name(), to_string(to)),
          [=](Rig& rig) {
            RandomStream random(11, 0);
            std::vector<double> codes;
            for (int64_t row = 0; row < rows; ++row)
              for (int64_t first = 0; first < columns; first += format.unit())
                for (const double code : random_codes(format, format.unit(), random))
                  codes.push_back(code);
            const Weight weight = ops::make_weight(
                {1, rows, columns}, format,
                [&](Shape shape, Dtype dtype) { return rig.values("codes", shape, dtype, codes); });
            rig.run(ops::Dequantize{.weight = weight, .y = rig.output("y", {rows, columns}, to)});
          },
          {to == Dtype::f64 ? Dtype::f64 : Dtype::f32},
          false,
          format};
}

}  // namespace

std::vector<OpCase> quantize_cases() {
  std::vector<OpCase> cases;
  for (const FormatRow& row : ops::kWeightFormats) {
    const WeightFormat format(row);
    if (format.dense()) continue;
    const int64_t block = format.unit() > 1 ? format.unit() : row.block;
    if (row.pack == nullptr) {
      for (const Dtype to : {Dtype::f64, Dtype::f32, Dtype::bf16})
        cases.push_back(dequantize_bytes(format, 9, 4 * block, to));
      continue;
    }
    cases.push_back(quantize("whole_blocks", format, 5, 2 * block));
    cases.push_back(quantize("large_values", format, 2, block, {1e6, 1e5}));
    cases.push_back(quantize("benchmark", format, 14336, 4096, {0.02}, {Dtype::bf16}, true));
    for (const Dtype to : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16})
      cases.push_back(dequantize("whole_blocks", format, 9, 4 * block, to));
    for (const Dtype to : {Dtype::f32, Dtype::bf16})
      cases.push_back(dequantize("benchmark", format, 14336, 4096, to, true));
    if (format.unit() > 1) continue;
    // Rows that end within a block, or within a byte of codes.
    cases.push_back(quantize("partial_blocks", format, 7, 300));
    cases.push_back(quantize("narrow", format, 3, 16));
    cases.push_back(quantize("odd", format, 4, 77));
    cases.push_back(quantize("one", format, 3, 1));
    for (const Dtype to : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16}) {
      cases.push_back(dequantize("partial_blocks", format, 5, 304, to));
      cases.push_back(dequantize("narrow", format, 3, 16, to));
      cases.push_back(dequantize("odd", format, 4, 77, to));
    }
    cases.push_back(dequantize("one", format, 3, 1, Dtype::f32));
  }
  for (const WeightFormat format : {WeightFormat::fp8, WeightFormat::nf4}) {
    cases.push_back(quantize_edges(format));
    cases.push_back(dequantize_all_codes(format));
  }
  return cases;
}

}  // namespace mixtral::test
