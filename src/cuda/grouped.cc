#include "cuda/grouped.h"

namespace mixtral::cuda {
namespace {

/// TMA moves whole 16 bytes: every row of every matrix must begin at a multiple of them.
bool fits_tma(const Product& p) {
  for (const void* data : {p.wide, p.narrow, p.weight})
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return false;
  return p.inputs % 8 == 0 && p.outputs % 8 == 0 && p.wide_stride % 8 == 0;
}

using Kernel = void (*)(const Product&, int processors, Scratch&, cudaStream_t);

// Measured on an H100, like the choice below.
Kernel grouped_weight(const Product& p) {
  if (p.accumulate)
    return p.outputs >= 8192 ? grouped_weight_large_accumulate : grouped_weight_small_accumulate;
  return p.outputs >= 8192 || p.inputs >= 8192 ? grouped_weight_large : grouped_weight_small;
}

}  // namespace

bool grouped_product(const Product& p, int processors, Scratch& scratch, cudaStream_t stream) {
  using Form = Product::Form;
  const Dtype result = p.form == Form::weight ? Dtype::f32 : Dtype::bf16;
  if (p.left_type() != Dtype::bf16 || p.right_type() != Dtype::bf16 || p.result_type() != result ||
      !fits_tma(p))
    return false;
  // Measured on an H100: with inner sizes of 4096 and more the large tiles win, at 1024 the small.
  const int64_t inner = p.form == Form::forward ? p.inputs : p.outputs;
  const bool large = p.rows >= 256 * p.groups && inner >= 2048;
  switch (p.form) {
    case Form::forward:
      (p.accumulate ? grouped_forward_accumulate
                    : (large ? grouped_forward_large : grouped_forward_small))(p, processors,
                                                                               scratch, stream);
      break;
    case Form::input:
      (p.accumulate
           ? grouped_input_accumulate
           : (large ? grouped_input_large : grouped_input_small))(p, processors, scratch, stream);
      break;
    case Form::weight:
      grouped_weight(p)(p, processors, scratch, stream);
      break;
  }
  return true;
}

}  // namespace mixtral::cuda
