#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "convert/model_format.h"
#include "ops/weight_format.h"

namespace mixtral {

/// How the numbers of a target's tensor are kept.
struct StoredType {
  ops::WeightFormat format;  // a dense type, or one of ggml's
  /// MLX's groups: codes of so many bits, and for each `group` of columns a scale and a bias of the
  /// dense type `format`. 0: none.
  int bits = 0, group = 0;

  bool grouped() const { return bits > 0; }
  bool dense() const { return !grouped() && format.dense(); }
  std::string name() const;  // "f16", "q4_k", "int4 in groups of 64"
  double bits_per_weight(int64_t columns) const;

  friend bool operator==(const StoredType&, const StoredType&) = default;
};

/// Whether a tensor of a file in `format` can be copied where `type` is wanted.
bool is_stored_as(ops::WeightFormat format, const StoredType& type);

/// What the user asked for: one type, or one of llama.cpp's mixes.
class TypeChoice {
 public:
  /// Each tensor keeps its source's type.
  TypeChoice() = default;
  /// "f32", "q8_0", "q4_k_m", "int4", ... Throws UsageError listing the names, or where the target
  /// has no such type.
  TypeChoice(std::string_view name, ModelFormat target, int group_size);

  bool keeps() const { return name_.empty(); }
  const std::string& name() const { return name_; }
  /// Whether it has fewer bits than 16.
  bool quantizes() const;
  /// llama.cpp's number of the mix (general.file_type).
  uint32_t file_type() const;

  /// The type of a tensor whose parts have the formats `sources` (those of the source's files;
  /// nothing where a source's format is none of kWeightFormats).
  StoredType of(TensorKind kind, int64_t layer, const ModelConfig& config, ModelFormat target,
                const std::vector<std::optional<ops::WeightFormat>>& sources) const;

 private:
  StoredType kept(const std::vector<std::optional<ops::WeightFormat>>& sources,
                  ModelFormat target) const;
  ops::WeightFormat mixed(TensorKind kind, int64_t layer, const ModelConfig& config) const;

  std::string name_;
  int group_ = 0;
};

/// The types that a tensor with rows of `columns` numbers can have instead of `type`, from the
/// fewest bits to the most: for one of ggml's q4_k, q5_k, q6_k and q8_0 or what stands in for them,
/// for groups those of 4 and 8 bits. A dense type has no other.
std::vector<StoredType> type_ladder(const StoredType& type, int64_t columns);

/// A type for each of some tensors of a target, by their names there.
using TypePlan = std::map<std::string, StoredType>;

/// The names that TypeChoice takes for a target.
std::vector<std::string> type_names(ModelFormat target);

/// Whether a tensor of this kind is kept in full precision by every choice: norms, the router.
bool stays_precise(TensorKind kind);

}  // namespace mixtral
