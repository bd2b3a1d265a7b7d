#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "io/gguf.h"
#include "model/config.h"

namespace mixtral {

/// The tensors of a GGUF file, or of several that one model was split into. Blocks of every type
/// that ops::kWeightFormats has a row for are decoded by read(), or given as they are.
class GgufTensors : public TensorSource {
 public:
  /// `path` is the file, or the first of "NAME-00001-of-00003.gguf" and so on, which must stand
  /// beside one another. Throws Error as GgufFile, or when a part is missing, is not the one that
  /// its name says, or two have a tensor of the same name.
  explicit GgufTensors(const std::filesystem::path& path);

  /// The keys of the first file.
  const GgufHeader& header() const { return files_.front()->header(); }

  const std::filesystem::path& path() const override { return files_.front()->path(); }
  const std::vector<std::string>& names() const override { return names_; }
  const TensorEntry* find(std::string_view name) const override;
  const std::filesystem::path& file_of(std::string_view name) const override;
  std::span<const std::byte> raw(std::string_view name) const override;
  std::optional<FilePlace> file_place(std::string_view name) const override;
  void read(std::string_view name, int64_t first, const Tensor& to) const override;
  void read_codes(std::string_view name, int64_t first_row,
                  std::span<const Tensor> pieces) const override;

 protected:
  bool has_finite_scales(std::string_view name) const override;

 private:
  struct Place {
    TensorEntry entry;
    const GgufEntry* stored = nullptr;
    const GgufFile* file = nullptr;
  };
  void add(const GgufFile& file);
  void open_parts(int64_t count);
  const Place& place(std::string_view name) const;

  std::vector<std::unique_ptr<GgufFile>> files_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, Place> places_;
};

/// The configuration that a GGUF file's keys say (llama.*, tokenizer.ggml.*_token_id; llama.cpp,
/// src/llama-model.cpp). What is absent has llama.cpp's defaults: rope.freq_base 10000, the width
/// of a head embedding_length / head_count, the head the embedding where there is no output.weight.
/// Throws Error naming the key that is missing, out of range, or asks for what this program does
/// not do.
ModelConfig gguf_config(const GgufTensors& tensors);

}  // namespace mixtral
