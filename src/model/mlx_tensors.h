#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/json.h"
#include "io/model_tensors.h"

namespace mixtral {

/// How MLX quantized a module: groups along a row share a scale and a bias.
struct MlxQuantization {
  int64_t bits = 0;  // 2, 3, 4, 5, 6 or 8
  int64_t group = 0;
};

/// What "quantization" of a config.json says: one setting for all modules, and others by their
/// paths, of which nothing means that the module is not quantized.
struct MlxQuantizations {
  MlxQuantization common;
  std::map<std::string, std::optional<MlxQuantization>, std::less<>> by_path;

  /// The object of a whole config.json. Nothing where it has none of MLX's. Throws Error naming the
  /// key that is malformed or asks for what is not read (modes other than affine).
  static std::optional<MlxQuantizations> read(const Json& config);
};

/// A model that MLX quantized (mlx-lm, utils.py; mlx/ops.cpp, affine quantization): beside
/// "PATH.weight", codes as 32-bit words, stand "PATH.scales" and "PATH.biases". Such a tensor is
/// one here, under the name of its weight; value = code * scale + bias. The others are as they
/// stand.
class MlxTensors : public TensorSource {
 public:
  /// Throws Error as ModelTensors, and naming the tensor where scales and biases do not go with
  /// their weight or config.json says another number of bits or another group size.
  MlxTensors(const std::filesystem::path& path, MlxQuantizations settings);

  const std::filesystem::path& path() const override { return files_.path(); }
  const std::vector<std::string>& names() const override { return names_; }
  const TensorEntry* find(std::string_view name) const override;
  const std::filesystem::path& file_of(std::string_view name) const override {
    return files_.file_of(name);
  }
  std::span<const std::byte> raw(std::string_view name) const override { return files_.raw(name); }
  int64_t rows_at_once(std::string_view) const override { return 1; }
  std::vector<FilePlace> piece_places(std::string_view name) const override;
  void read(std::string_view name, int64_t first, const Tensor& to) const override;
  void read_codes(std::string_view name, int64_t first_row,
                  std::span<const Tensor> pieces) const override;

 private:
  struct Quantized {
    TensorEntry entry;
    std::string scales, biases;
    Dtype scale_type = Dtype::f16;
    MlxQuantization how;
  };
  void add(const std::string& path);

  ModelTensors files_;
  MlxQuantizations settings_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, Quantized> quantized_;  // by the name of the weight
};

}  // namespace mixtral
