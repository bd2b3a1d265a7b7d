#pragma once

#include <compare>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tensor_source.h"
#include "model/config.h"

namespace mixtral {

/// The matrices and vectors of a Mixtral, under the paper's names: an expert is
/// w2 (silu(w1 x) · w3 x).
enum class TensorKind : uint8_t {
  embedding,
  attention_norm,
  query,
  key,
  value,
  attention_output,
  experts_norm,
  router,
  w1,
  w2,
  w3,
  final_norm,
  head,
};

/// One of the model's tensors. `layer` and `expert` are -1 where the kind has none.
struct TensorId {
  TensorKind kind = TensorKind::embedding;
  int64_t layer = -1;
  int64_t expert = -1;

  friend auto operator<=>(const TensorId&, const TensorId&) = default;
};

/// [rows, columns] of a matrix as the model multiplies by it, [n] of a norm.
Shape tensor_shape(const ModelConfig& config, TensorKind kind);

/// Every tensor of a model, in the order of the layers. A tied head is left out.
void for_each_tensor(const ModelConfig& config, const std::function<void(const TensorId&)>& visit);

/// How a file's tensor of one kind is named and packed. The whole tensor has the shape
/// [E if all_experts, parts · rows, columns], or with the last two swapped where it is transposed.
struct TensorNaming {
  enum class RowOrder : uint8_t {
    same,
    /// Rotary pairs are neighbours (Mistral, GGUF): row 2i of a head is row i here, and row 2i + 1
    /// is row i + h/2.
    interleaved,
  };

  TensorKind kind = TensorKind::embedding;
  std::string_view name;     // with {layer} and {expert} in the places of the numbers
  bool all_experts = false;  // one tensor for all experts of a layer
  int part = 0, parts = 1;   // which of several equal shares of the rows
  bool transposed = false;   // [columns, rows]
  RowOrder row_order = RowOrder::same;
  bool lone_expert = false;  // of a model with one expert, which a dense model counts as
};

/// A way to name tensors: a row for each kind. Kinds without a row have other schemes' names.
struct NamingScheme {
  std::string_view name;  // of the scheme, for people
  std::span<const TensorNaming> rows;
};

/// One tensor an expert, as Mixtral was released and as every tool reads it: what is written here.
const NamingScheme& hugging_face_names();
/// The scheme of that name ("Mistral", "GGUF", "mlx-lm", ...), or null.
const NamingScheme* find_naming_scheme(std::string_view name);
/// All schemes that are read. Those that pack experts come first.
std::span<const NamingScheme> naming_schemes();

/// The tensor's name in a scheme, or nothing where the scheme has no row for it.
std::string tensor_name(const NamingScheme& scheme, const TensorId& id);
/// The same in hugging_face_names(), which has all kinds.
std::string tensor_name(const TensorId& id);
/// Which tensor a name of hugging_face_names() is of.
std::optional<TensorId> parse_tensor_name(std::string_view name);

/// The tensor's name as these files would have it, for messages: in the scheme of their embedding.
std::string name_in_files(const TensorSource& source, const TensorId& id);
/// Which row of the file is row `r` of the model's matrix, where heads have `width` rows.
int64_t row_in_head(const TensorNaming& row, int64_t r, int64_t width);

/// Which tensor a name is of by one row.
std::optional<TensorId> parse_tensor_name(const TensorNaming& row, std::string_view name);

/// Where a tensor of the model stands in the files.
struct TensorPlace {
  std::string name;  // of the file's tensor
  TensorNaming naming;
  Shape shape;  // of the whole tensor in the file
};
/// Looks through all schemes; nothing where the files do not have the tensor.
std::optional<TensorPlace> find_place(const TensorSource& source, const ModelConfig& config,
                                      const TensorId& id);

/// Reads a tensor of the model into host memory of tensor_shape(), in the model's order of rows and
/// columns whatever the file's is. The place's shape must have been checked.
void read_tensor(const TensorSource& source, const TensorPlace& place, const ModelConfig& config,
                 const TensorId& id, const Tensor& to);

}  // namespace mixtral
