#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "convert/convert_model.h"
#include "convert/kept_files.h"
#include "convert/output_tensor.h"
#include "convert/part_packer.h"
#include "convert/part_reader.h"
#include "convert/source_account.h"

namespace mixtral {

/// A conversion that is under way: what will be written, and the account of what was.
class Conversion {
 public:
  /// Checks the source and decides each tensor's type. All must outlive this.
  Conversion(const ModelSource& source, const ConvertOptions& options,
             const ConvertProgress& progress);

  const ModelSource& source() const { return source_; }
  const ModelConfig& config() const { return source_.config(); }
  const ConvertOptions& options() const { return options_; }
  const std::vector<OutputTensor>& outputs() const { return outputs_; }
  ModelFormat source_format() const { return source_format_; }
  /// Of the source, where it is a GGUF file.
  const GgufFile* gguf() const { return gguf_ ? &*gguf_ : nullptr; }
  /// The files beside the source's weights that stay true, by name.
  const std::map<std::string, std::string>& kept() const { return kept_; }
  /// Types of the model's tensors that the target widens.
  const OriginalTypes& original_types() const { return original_; }
  /// The type of most numbers of the target, where they are plain numbers.
  Dtype dtype() const;
  uint64_t target_bytes() const;  // of all tensors

  /// Packs a part, which is valid until the next call, and notes it in the receipt.
  PackedPart pack(const OutputTensor& output, const TensorId& id);
  /// Notes a whole tensor of the target.
  void note_target(const std::string& name, std::string type, std::vector<int64_t> shape,
                   const FileChecksum& sum);
  /// The account. Every tensor must have been packed.
  Receipt finish();
  Receipt& receipt() { return receipt_; }

 private:
  void choose_types();
  std::string transform_of(const OutputTensor& output, const TensorId& id, const PackedPart& part);

  const ModelSource& source_;
  const ConvertOptions& options_;
  ConvertProgress progress_;
  ModelFormat source_format_;
  std::optional<GgufFile> gguf_;
  std::map<std::string, std::string> kept_;
  OriginalTypes known_, original_;  // of the source; of the target
  PartReader reader_;
  ThreadPool threads_;
  PartPacker packer_;
  std::vector<OutputTensor> outputs_;
  SourceAccount account_;
  std::set<TensorId> noted_;  // in the receipt
  Receipt receipt_;
};

// Each writes the target below `directory`: the file there that options().out names, or the
// directory's own files.
void write_gguf(Conversion& conversion, const std::filesystem::path& file);
void write_directory(Conversion& conversion, const std::filesystem::path& directory);

}  // namespace mixtral
