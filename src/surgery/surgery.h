#pragma once

#include <optional>

#include "convert/convert_model.h"
#include "convert/model_edit.h"
#include "convert/quality.h"
#include "convert/sample_text.h"

namespace mixtral {

struct SurgeryResult {
  Receipt receipt;
  std::optional<Quality> quality;  // of the first source and what was written
};

/// Writes an edited model as convert_model() does, reading each source matrix by matrix, and
/// measures it on a text (may be null). `options.edit` is filled in here.
SurgeryResult write_edited(Backend& backend, const ModelEdit& edit, ConvertOptions options,
                           const HostBatch* text, const ConvertProgress& progress = {});

}  // namespace mixtral
