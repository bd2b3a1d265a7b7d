#pragma once

#include <string>
#include <vector>

#include "convert/output_tensor.h"
#include "convert/sensitivity.h"

namespace mixtral {

/// Plans mixed precision: which tensors of a target get more bits than 4, so that little is lost in
/// a given size. Where a tensor's noise at 4 bits is known (Sensitivity), each bit more divides it
/// by 4. A tensor without a known noise keeps its type.
class TypePlanner {
 public:
  /// `outputs` have the types of a choice of few bits; those that are planned begin with the first
  /// of type_ladder().
  TypePlanner(const std::vector<OutputTensor>& outputs, const Sensitivity& sensitivity);

  /// Gives more bits to those tensors where a byte lowers the noise most, as long as the target
  /// stays within `bytes`.
  void fill(uint64_t bytes);
  /// The same until the noise is no more than `noise`, or no tensor can have more bits.
  void quieten(double noise, uint64_t bytes);

  double noise() const;
  uint64_t bytes() const;
  TypePlan types() const;

 private:
  struct Choice {
    std::string name;
    std::vector<StoredType> types;  // from the fewest bits to the most
    std::vector<uint64_t> bytes;    // with each
    std::vector<double> noise;
    size_t chosen = 0;

    double gain() const;  // noise less for each byte more of the next type
  };
  /// Takes the best step within so many bytes; false if there is none.
  bool step(uint64_t bytes);

  std::vector<Choice> choices_;
};

}  // namespace mixtral
