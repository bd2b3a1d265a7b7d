#pragma once

#include "ops/common.h"
#include "ops/weight.h"

namespace mixtral::ops {

// The three products of a linear layer y = x Wᵀ whose rows fall into G groups with a weight each:
// group g owns rows offsets[g] .. offsets[g+1]. With G = 1, `offsets` is empty and all rows are
// its. A column offset lets a product read or write some columns of a wider matrix: the queries of
// a packed QKV, or the gate half of a packed gate-and-up.
//
// Types: x, y, dy, dx are the activations' (f64, f32, bf16); a dense weight may be narrower (f32,
// bf16, f16 beside f32 activations); y may be f32 beside bf16 x (router and vocabulary logits). A
// weight in another format is multiplied only where Backend::computes_directly says so; nn::Linear
// makes it dense elsewhere. Each element is one sum over the inner dimension in a fixed order, on
// ref and cpu whatever the number of rows.

/// y[r, begin + o] = scale · Σ_i x[r, i] · weight[g(r), o, i]      (+= if accumulate)
struct GroupedMatmul {
  static constexpr std::string_view kName = "grouped_matmul";
  Tensor x;             // [N, I]
  Weight weight;        // [G, O, I]
  Tensor offsets;       // [G+1] i32, or empty when G == 1
  Tensor y;             // [N, Y], Y >= y_begin + O
  int64_t y_begin = 0;  // first column of y that is written
  double scale = 1;
  bool accumulate = false;
  Operands operands = Operands::exact;
};

/// dx[r, i] = scale · Σ_o dy[r, begin + o] · weight[g(r), o, i]    (+= if accumulate)
struct GroupedMatmulInput {
  static constexpr std::string_view kName = "grouped_matmul_input";
  Tensor dy;             // [N, Y], Y >= dy_begin + O
  Weight weight;         // [G, O, I]
  Tensor offsets;        // [G+1] i32, or empty when G == 1
  Tensor dx;             // [N, I]
  int64_t dy_begin = 0;  // first column of dy that is read
  double scale = 1;
  bool accumulate = false;
  Operands operands = Operands::exact;
};

/// dweight[g, o, i] = scale · Σ_{r in g} dy[r, begin + o] · x[r, i]    (+= if accumulate)
/// Without rows, a group's gradient is 0: accumulating leaves it alone, assigning clears it.
struct GroupedMatmulWeight {
  static constexpr std::string_view kName = "grouped_matmul_weight";
  Tensor dy;       // [N, Y], Y >= dy_begin + O
  Tensor x;        // [N, I]
  Tensor offsets;  // [G+1] i32, or empty when G == 1
  Tensor dweight;  // [G, O, I] of the statistics' type
  int64_t dy_begin = 0;
  double scale = 1;
  bool accumulate = true;
  Operands operands = Operands::exact;
};

/// Whether x is rounded to bf16 before it is multiplied by `weight`. The weight then is, too.
bool rounds_to_bf16(Operands operands, const Weight& weight);

void check(const GroupedMatmul&);
void check(const GroupedMatmulInput&);
void check(const GroupedMatmulWeight&);
Cost cost(const GroupedMatmul&);
Cost cost(const GroupedMatmulInput&);
Cost cost(const GroupedMatmulWeight&);

}  // namespace mixtral::ops
