#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/json.h"
#include "io/model_tensors.h"

namespace mixtral {

/// How AWQ or GPTQ quantized a model: "quantization_config" of its config.json.
struct PackedQuantization {
  enum class Method { awq, gptq };

  Method method = Method::gptq;
  int64_t bits = 4;
  int64_t group = 128;          // rows of inputs that share a scale; -1: all of them
  bool stores_less_one = true;  // GPTQ's first format keeps each zero point less 1

  /// The object of a whole config.json. Nothing where it says neither "awq" nor "gptq". Throws
  /// Error naming the key that asks for what is not read.
  static std::optional<PackedQuantization> read(const Json& config);
};

/// A model that AWQ or GPTQ quantized: instead of "PATH.weight" it has "PATH.qweight",
/// "PATH.qzeros" and "PATH.scales" (and "PATH.g_idx"), transposed and packed in 32-bit words. Such
/// a tensor is one here, under the name of its weight and in its shape [outputs, inputs]; value =
/// (code - zero point) * scale.
/// - AWQ (AutoAWQ, utils/packing_utils.py, version "gemm"): a word holds eight outputs of one
/// input,
///   those of even number first.
/// - GPTQ (AutoGPTQ, nn_modules/qlinear): a word holds neighbouring inputs of one output, the first
///   lowest; zero points of neighbouring outputs.
class PackedTensors : public TensorSource {
 public:
  /// Throws Error as ModelTensors, and naming the tensor where the parts of one do not go together.
  PackedTensors(const std::filesystem::path& path, PackedQuantization how);

  const std::filesystem::path& path() const override { return files_.path(); }
  const std::vector<std::string>& names() const override { return names_; }
  const TensorEntry* find(std::string_view name) const override;
  const std::filesystem::path& file_of(std::string_view name) const override {
    return files_.file_of(stored_name(name));
  }
  /// The codes.
  std::span<const std::byte> raw(std::string_view name) const override {
    return files_.raw(stored_name(name));
  }
  int64_t rows_at_once(std::string_view) const override { return kRowsAtOnce; }
  void read(std::string_view name, int64_t first, const Tensor& to) const override;

 private:
  struct Packed {
    TensorEntry entry;
    std::string codes, zeros, scales;
    std::vector<int32_t> group_of;  // by input
  };
  static constexpr int64_t kRowsAtOnce = 64;  // eight words of AWQ's with 4 bits
  void add(const std::string& module);
  void read_part(const Packed& tensor, int64_t row, int64_t column, const Tensor& to) const;
  std::vector<int32_t> read_groups(const std::string& module, int64_t inputs, int64_t groups) const;
  std::string stored_name(std::string_view name) const;

  ModelTensors files_;
  PackedQuantization how_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, Packed> packed_;  // by the name of the weight
};

}  // namespace mixtral
