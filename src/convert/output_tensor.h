#pragma once

#include <string>
#include <vector>

#include "convert/model_format.h"
#include "convert/stored_type.h"

namespace mixtral {

/// A tensor of the target's files, and what of the model it holds.
struct OutputTensor {
  std::string name;
  std::vector<TensorId> parts;  // one, or each expert's
  bool stacked = false;         // the first dimension counts the parts
  int64_t heads = 0;  // of whose rows the rotary pairs are neighbours; 0: in the model's order
  Shape part_shape;   // [n] or [rows, columns]
  StoredType type;

  int64_t rows() const { return part_shape.rank() == 2 ? part_shape[0] : 1; }
  int64_t columns() const { return part_shape[part_shape.rank() - 1]; }
  int64_t count() const { return static_cast<int64_t>(parts.size()); }
  std::vector<int64_t> dims() const;  // outermost first
};

/// The target's tensors in the order of the layers, without types. Each tensor of the model is in
/// exactly one.
std::vector<OutputTensor> output_tensors(const ModelConfig& config, ModelFormat target);

}  // namespace mixtral
