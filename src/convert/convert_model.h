#pragma once

#include <filesystem>
#include <functional>

#include "convert/calibration.h"
#include "convert/model_edit.h"
#include "convert/output_tensor.h"
#include "convert/receipt.h"
#include "convert/stored_type.h"
#include "open/model_source.h"

namespace mixtral {

struct ConvertOptions {
  ModelFormat to = ModelFormat::hugging_face;
  TypeChoice type;                     // of the target's tensors
  TypePlan plan;                       // of those that have another, by name
  std::filesystem::path out;           // a .gguf file, or a directory
  bool overwrite = false;              // what stands there
  bool vocabulary = true;              // GGUF: the tokenizer goes into the file
  bool compare = true;                 // the logits of source and target
  int threads = 0;                     // 0: one a core
  Calibration* calibration = nullptr;  // of the source, or null: rounding to the nearest
  const ModelEdit* edit = nullptr;     // what the source was made by (EditedTensors), or null
};

/// Is told how many of the source's bytes have been converted, and of how many.
using ConvertProgress = std::function<void(uint64_t done, uint64_t total)>;

/// Writes a model in another format, tensor by tensor, with its tokenizer, templates and settings,
/// and a receipt (receipt_path). The target appears whole or not at all. Throws Error where the
/// target cannot say what the model is, where a tensor finds no place, or where logits differ
/// although every number was kept.
Receipt convert_model(const ModelSource& source, const ConvertOptions& options,
                      const ConvertProgress& progress = {});

/// The tensors that the conversion would write, with their types.
std::vector<OutputTensor> planned_tensors(const ModelSource& source, const ConvertOptions& options);
/// Bytes of their weights.
uint64_t planned_bytes(const ModelSource& source, const ConvertOptions& options);

/// Throws Error unless the options' target may be written: nothing is there, or a model that may
/// be replaced, and it is not the source.
void check_target(const ModelSource& source, const ConvertOptions& options);

}  // namespace mixtral
