#include "ops/quantize.h"

#include <fmt/format.h>

#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

using ops::Quantization;

const std::vector<Dtype> kFloats{Dtype::f64, Dtype::f32, Dtype::bf16};

Shape code_shape(Quantization q, int64_t rows, int64_t columns) {
  return {rows, ops::code_bytes(q, columns)};
}
Shape scale_shape(Quantization q, int64_t rows, int64_t columns) {
  return {rows, ops::scale_count(q, columns)};
}

OpCase quantize(const std::string& name, Quantization q, int64_t rows, int64_t columns,
                Spread spread = {0.02}, std::vector<Dtype> dtypes = kFloats,
                bool benchmark = false) {
  return {fmt::format("Quantize_{}_{}", to_string(q), name),
          [=](Rig& rig) {
            rig.run(ops::Quantize{
                .x = rig.input("x", {rows, columns}, spread),
                .codes = rig.output("codes", code_shape(q, rows, columns), Dtype::u8),
                .scales = rig.output("scales", scale_shape(q, rows, columns), Dtype::f32),
                .quantization = q});
          },
          std::move(dtypes), benchmark};
}

/// Values where rounding is decided: zeros of both signs, halves between codes, a block of nothing,
/// one of numbers too small for a normal scale.
OpCase quantize_edges(Quantization q) {
  return {fmt::format("Quantize_{}_edges", to_string(q)),
          [=](Rig& rig) {
            const int64_t block = ops::block_of(q), columns = 4 * block + 5;
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
            rig.run(ops::Quantize{
                .x = rig.values("x", {1, columns}, rig.dtype(), values),
                .codes = rig.output("codes", code_shape(q, 1, columns), Dtype::u8),
                .scales = rig.output("scales", scale_shape(q, 1, columns), Dtype::f32),
                .quantization = q});
          },
          kFloats};
}

OpCase dequantize(const std::string& name, Quantization q, int64_t rows, int64_t columns, Dtype to,
                  bool benchmark = false) {
  return {fmt::format("Dequantize_{}_{}_to_{}", to_string(q), name, to_string(to)),
          [=](Rig& rig) {
            ops::Quantize prepare{
                .x = rig.input("x", {rows, columns}, Dtype::f32, {0.02}),
                .codes = rig.prepared("codes", code_shape(q, rows, columns), Dtype::u8),
                .scales = rig.prepared("scales", scale_shape(q, rows, columns), Dtype::f32),
                .quantization = q};
            rig.prepare(prepare);
            rig.run(ops::Dequantize{.codes = prepare.codes,
                                    .scales = prepare.scales,
                                    .y = rig.output("y", {rows, columns}, to),
                                    .quantization = q});
          },
          {to == Dtype::f64 ? Dtype::f64 : Dtype::f32},
          benchmark};
}

/// Every code there is, of every scale's size.
OpCase dequantize_all_codes(Quantization q) {
  return {fmt::format("Dequantize_{}_all_codes", to_string(q)),
          [=](Rig& rig) {
            std::vector<double> codes;
            for (int code = 0; code < 256; ++code)
              codes.push_back(q == Quantization::fp8 && code % 128 == 127 ? 0 : code);
            const int64_t columns = q == Quantization::fp8 ? 256 : 512;
            std::vector<double> scales;
            for (int64_t i = 0; i < ops::scale_count(q, columns); ++i)
              scales.push_back(std::vector{1.0, 0.0, 0x1p-20, 0x1p90}[static_cast<size_t>(i % 4)]);
            rig.run(ops::Dequantize{
                .codes = rig.values("codes", code_shape(q, 1, columns), Dtype::u8, codes),
                .scales = rig.values("scales", scale_shape(q, 1, columns), Dtype::f32, scales),
                .y = rig.output("y", {1, columns}),
                .quantization = q});
          },
          kFloats};
}

}  // namespace

std::vector<OpCase> quantize_cases() {
  std::vector<OpCase> cases;
  for (const Quantization q : {Quantization::fp8, Quantization::nf4}) {
    cases.push_back(quantize("whole_blocks", q, 5, 256));
    cases.push_back(quantize("partial_blocks", q, 7, 300));
    cases.push_back(quantize("narrow", q, 3, 16));
    cases.push_back(quantize("odd", q, 4, 77));
    cases.push_back(quantize("one", q, 3, 1));
    cases.push_back(quantize("large_values", q, 2, 130, {1e6, 1e5}));
    cases.push_back(quantize_edges(q));
    cases.push_back(quantize("benchmark", q, 14336, 4096, {0.02}, {Dtype::bf16}, true));
    for (const Dtype to : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16}) {
      cases.push_back(dequantize("whole_blocks", q, 9, 256, to));
      cases.push_back(dequantize("partial_blocks", q, 5, 304, to));
      cases.push_back(dequantize("narrow", q, 3, 16, to));
      cases.push_back(dequantize("odd", q, 4, 77, to));
    }
    cases.push_back(dequantize("one", q, 3, 1, Dtype::f32));
    cases.push_back(dequantize_all_codes(q));
    for (const Dtype to : {Dtype::f32, Dtype::bf16})
      cases.push_back(dequantize("benchmark", q, 14336, 4096, to, true));
  }
  return cases;
}

}  // namespace mixtral::test
