#pragma once

#include <cstdint>
#include <optional>

#include "open/open_model.h"

namespace mixtral {

/// A model for inference and the bytes of the plan that was checked: of the model, and of a cache
/// of so many sequences as the options say.
struct PlannedModel {
  OpenedModel opened;
  int64_t bytes = 0;
};

/// As open_model for inference, where the plan may not have more than `most` bytes, though the
/// device had them.
PlannedModel open_within(const ModelSource& source, const OpenOptions& options,
                         std::optional<int64_t> most, const ModelSource::Note& note);

}  // namespace mixtral
