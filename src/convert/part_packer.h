#pragma once

#include "base/threads.h"
#include "convert/calibration.h"
#include "convert/output_tensor.h"
#include "convert/part_reader.h"

namespace mixtral {

/// A part of an output tensor in the target's type and order of rows.
struct PackedPart {
  Tensor codes;           // dense: values in the part's shape; else rows of codes
  Tensor scales, biases;  // of MLX's groups
  double difference = 0;  // the largest |packed - source|, as a share of the largest |source|
  bool rounded = false;   // some number changed
};

/// The largest difference of two rows, and the largest number of the first.
struct Deviation {
  double difference = 0, size = 0;

  void add(std::span<const float> from, std::span<const float> to);
  void add(const Deviation& other);
  double share() const { return size > 0 ? difference / size : difference; }
};

/// Packs a model's tensors part by part.
class PartPacker {
 public:
  /// All must outlive this; `calibration` may be null.
  PartPacker(PartReader& reader, ThreadPool& threads, Calibration* calibration)
      : reader_(reader), threads_(threads), calibration_(calibration) {}

  /// The part, valid until the next call.
  PackedPart pack(const OutputTensor& output, const TensorId& id);

 private:
  Tensor room(Buffer& buffer, Shape shape, Dtype dtype);
  PackedPart copy_codes(const TensorId& id, const StoredType& type);
  PackedPart convert(const TensorId& id, Dtype dtype);
  PackedPart pack_blocks(const TensorId& id, ops::WeightFormat format);
  /// Rounds for the calibration's text. Returns what changed.
  Deviation compensate(const TensorId& id, const Tensor& values, const RowRounders& rounders);
  PackedPart pack_groups(const TensorId& id, const StoredType& type);
  Tensor in_order(const OutputTensor& output, const Tensor& rows);

  PartReader& reader_;
  ThreadPool& threads_;
  Calibration* calibration_;
  Buffer codes_, scales_, biases_, ordered_, packed_;
};

}  // namespace mixtral
