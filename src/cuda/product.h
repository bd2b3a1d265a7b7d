#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "ops/matmul.h"

namespace mixtral::cuda {

class Scratch;

/// The three products of ops/matmul.h under one description. `wide` is y or dy, `narrow` is x or
/// dx:
///   forward: wide[r, begin + o] = Σ_i narrow[r, i] weight[g, o, i]
///   input:   narrow[r, i] = Σ_o wide[r, begin + o] weight[g, o, i]
///   weight:  weight[g, o, i] = Σ_{r in g} wide[r, begin + o] narrow[r, i]
/// Each is added to what was there if `accumulate`.
struct Product {
  enum class Form { forward, input, weight };

  Form form;
  void *wide, *narrow, *weight;
  Dtype wide_type, narrow_type, weight_type;
  int64_t rows, outputs, inputs, groups;  // N, O, I, G
  int64_t wide_stride;                    // elements from row to row of wide
  const int* offsets;                     // [G+1] on the device, or null when G is 1
  double scale;
  bool accumulate;
  bool round;  // operands to bf16

  /// The result's type, and those of what is multiplied.
  Dtype result_type() const {
    return form == Form::forward ? wide_type : form == Form::input ? narrow_type : weight_type;
  }
  Dtype left_type() const { return form == Form::forward ? narrow_type : wide_type; }
  Dtype right_type() const { return form == Form::weight ? narrow_type : weight_type; }
};

/// Few outputs, as a router has: bound by reading the activations. Needs one group.
void skinny_product(const Product&, int processors, Scratch&, cudaStream_t);
/// Few rows, as decoding has: bound by reading the weights. False when it does not take the
/// product.
bool few_rows_product(const Product&, cudaStream_t);
/// Any types and groups, in f32 arithmetic on ordinary cores.
void simt_product(const Product&, cudaStream_t);

/// total[c] += Σ_r partial[r, c], in order.
void add_columns(const float* partial, int64_t rows, int64_t width, float* total, cudaStream_t);

}  // namespace mixtral::cuda
