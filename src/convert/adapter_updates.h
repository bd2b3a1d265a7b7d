#pragma once

#include <vector>

#include "model/adapter_file.h"
#include "model/tensor_names.h"

namespace mixtral {

/// What an adapter adds to one matrix of the model: scale · B A.
struct AdapterUpdate {
  TensorId id;
  int64_t rank = 0;
  double scale = 0;
  std::vector<float> a;  // [rank, inputs]
  std::vector<float> b;  // [rows, rank]
  int64_t inputs = 0, rows = 0;
};

/// An adapter matrix by matrix, in the order of the layers: packed experts taken apart, gate and up
/// with the A that they share. Experts that an adapter does not touch are left out.
std::vector<AdapterUpdate> updates_of(const AdapterFile& adapter, const ModelConfig& config);

/// Multiplies B so that the update is the same under another scale. Throws Error where that would
/// round. The error names the matrix and gives `reason`, which says why the format fixes the scale.
void rescale(AdapterUpdate& update, double scale, const char* reason);

}  // namespace mixtral
