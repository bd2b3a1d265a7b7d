#pragma once

#include <map>
#include <optional>

#include "model/tensor_names.h"
#include "ops/weight.h"
#include "tensor/buffer.h"

namespace mixtral {

/// What a file keeps a tensor in; nothing where it is none of kWeightFormats.
std::optional<ops::WeightFormat> stored_format(const TensorEntry& entry);

/// Reads the tensors of a model one at a time, from files in any naming scheme. What has been read
/// of the files' pages is given back to the system, so that a pass over a large model does not
/// count as memory in use.
class PartReader {
 public:
  /// Both must outlive this. check_weights() has accepted them.
  PartReader(const TensorSource& source, const ModelConfig& config);

  const ModelConfig& config() const { return config_; }
  const TensorSource& source() const { return source_; }
  const TensorPlace& place(const TensorId& id);
  const TensorEntry& entry(const TensorId& id) { return source_.at(place(id).name); }
  std::optional<ops::WeightFormat> format(const TensorId& id) { return stored_format(entry(id)); }

  /// The values, [rows, columns] or [n], in the model's order. Throws Error naming file, tensor and
  /// element where one is NaN or infinite.
  Tensor values(const TensorId& id, Dtype dtype);
  /// The codes, scales and minima of a tensor in one of kWeightFormats that is not dense, as they
  /// stand in the file, but in the model's order of rows: [1, rows, columns].
  ops::Weight codes(const TensorId& id);
  // Both are valid until the next call.

 private:
  Tensor room(Shape shape, Dtype dtype);
  void release(const TensorId& id);

  const TensorSource& source_;
  const ModelConfig& config_;
  std::map<TensorId, TensorPlace> places_;
  Buffer buffer_;
};

/// Copies rows of `bytes` bytes each, from the model's order within heads of `width` rows to that
/// in which rotary pairs are neighbours: row 2i of a head is row i, and row 2i + 1 is row i +
/// width/2.
void interleave_rows(const std::byte* from, std::byte* to, int64_t rows, int64_t width,
                     int64_t bytes);

}  // namespace mixtral
