#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ops/backend.h"

namespace mixtral::nn {

/// What a parameter is for: decides how it starts, and whether weight decay applies (to matrices).
enum class Role { embedding, norm, projection, residual_projection, router, head, lora_a, lora_b };

/// A learnable tensor. In memory it may hold several of the tensors that stand in a model's files
/// (queries, keys and values packed into one; all experts of a layer): `parts` names those.
struct Parameter {
  struct Part {
    /// How the file orders the elements: as they stand here, or, of a [G, rows, r] parameter, as
    /// [rows, r · G] with the group index fastest (PEFT's lora_B of fused experts).
    enum class Order : uint8_t { same, group_fastest };

    std::string name;    // in a model or adapter file
    int64_t offset = 0;  // first element, in the parameter
    Shape shape;         // in the file
    Order order = Order::same;
  };

  Shape shape;
  Role role = Role::projection;
  std::vector<Part> parts;
  bool trainable = true;
  /// The format of a matrix that is kept in another way than the model's other weights. Such a
  /// parameter is never trained. Dense formats give `value` (unless `fixed`), others `packed`.
  std::optional<ops::WeightFormat> format;
  /// A matrix that products alone read, once it is loaded: the backend may want a dense one in
  /// another layout, and then it is `packed`, too. Such a parameter is never trained.
  bool fixed = false;

  // Set by ParameterStore.
  Dtype type = Dtype::f32;  // of `value`, or of what `packed` is unpacked to
  Tensor value;             // empty when packed
  Tensor grad;              // empty when frozen
  ops::Weight packed;       // in a format that is not dense, or in another layout

  int64_t columns() const { return shape[shape.rank() - 1]; }
  bool decays() const { return role != Role::norm; }
  bool placed() const { return value || packed; }
  /// Whether a backward pass writes the whole gradient by one product. (The head's is a sum over
  /// slices of tokens, and may be the embedding's, too.)
  bool one_product() const { return role == Role::projection || role == Role::residual_projection; }
  Tensor value_of(const Part& part) const {
    CHECK(value, part.name + " is not dense");
    return value.view(part.offset, part.shape);
  }
  Tensor grad_of(const Part& part) const {
    return grad ? grad.view(part.offset, part.shape) : Tensor();
  }
};

using ParameterVisitor = std::function<void(Parameter&)>;
using ParameterSource = std::function<void(const ParameterVisitor&)>;

/// A stable number for a name (FNV-1a, 64 bits): the random stream of a parameter.
uint64_t name_hash(std::string_view name);

/// One part of a parameter, with shape and name: the whole of it.
Parameter make_parameter(std::string name, Shape shape, Role role);

/// Gives parameters their memory: each group (matrices that decay, vectors that do not) of values
/// and of gradients is one buffer, so that the optimizer, clipping and reductions are single
/// launches.
class ParameterStore {
 public:
  struct Group {
    Tensor value;             // [n]
    Tensor grad;              // [n], or empty when no parameter of the group is trainable
    int64_t one_product = 0;  // elements at the front that are of parameters with one_product()
    bool decay = false;
    bool trainable = false;
  };

  /// Lays out every parameter that `source` enumerates and that has no memory yet, and points
  /// `value` and `grad` into it, or `packed`. Values are undefined; gradients of the type
  /// `gradients` start at 0. Throws Error when the backend or a parameter's shape does not go with
  /// its format.
  ParameterStore(Backend& backend, const ParameterSource& source, Dtype values, Dtype gradients);

  const std::vector<Group>& groups() const { return groups_; }
  int64_t value_bytes() const;  // of all weights, in whatever format
  int64_t gradient_bytes() const;
  void zero_gradients(Backend& backend) const;

 private:
  void place_formats(Backend& backend, const ParameterSource& source, Dtype values);

  std::vector<Buffer> buffers_;
  std::vector<Group> groups_;
  int64_t format_bytes_ = 0;  // of parameters with a format of their own
};

/// Puts numbers into parameters, a part at a time: into the value, or, for a packed parameter, into
/// a tensor of the part's size, which is then packed into its place. So the device never holds more
/// than one part in full precision.
class PartWriter {
 public:
  explicit PartWriter(Backend& backend) : backend_(backend) {}

  /// Calls `fill` with a tensor of the part's shape and the parameter's type, and expects it to
  /// issue what writes there. A packed parameter must be in plain rows (nn/layout.h).
  void write(const Parameter& parameter, const Parameter::Part& part,
             const std::function<void(const Tensor&)>& fill);
  /// Copies a part that is in the parameter's format already, from ordinary memory.
  void copy(const Parameter& parameter, const Parameter::Part& part, const ops::Weight& host);

 private:
  Backend& backend_;
  Buffer staging_;  // of the largest part so far
};

/// Draws starting values: normal with deviation `deviation` for matrices, the residual outputs
/// (o_proj and w2) with `residual_deviation`, ones for norms, zeros for LoRA's B. A part's numbers
/// depend on (seed, its name) alone, not on how it is packed. Packed weights end in the layout that
/// the backend prefers.
struct Initialisation {
  uint64_t seed = 0;
  double deviation = 0.02;
  double residual_deviation = 0.02;
  double embedding_deviation = 0.02;
};
void initialise(Backend& backend, const ParameterSource& source, const Initialisation& how);

}  // namespace mixtral::nn
