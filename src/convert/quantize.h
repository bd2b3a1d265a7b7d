#pragma once

#include <functional>
#include <optional>
#include <string>

#include "convert/convert_model.h"
#include "convert/quality.h"
#include "convert/sensitivity.h"

namespace mixtral {

/// What quantize_within() may use.
struct Budget {
  uint64_t bytes = ~uint64_t{0};        // of weights
  std::optional<double> most_increase;  // of perplexity, as a share
};

struct Quantized {
  Receipt receipt;
  Quality quality;
  bool within = true;  // the budget; false where no type of more bits is left
};

/// Is told, in words, of a result that the budget refuses and that is made again.
using RetryNote = std::function<void(const std::string&)>;

/// Converts with mixed precision: the tensors on which a text depends most get more bits. Within a
/// size alone, as many as fit. With a bound on perplexity, as few as keep to it on `text`: what has
/// been written is measured and written again with more until it does. `options.type` names the
/// fewest bits. Throws Error where these exceed the size.
Quantized quantize_within(Backend& backend, const ModelSource& source, ConvertOptions options,
                          const Budget& budget, const Sensitivity& sensitivity,
                          const HostBatch& text, const ConvertProgress& progress,
                          const RetryNote& note);

/// Both models' quality on a text: the source's, and that of what has been written.
Quality measure_written(Backend& backend, const ModelSource& source,
                        const std::filesystem::path& written, const HostBatch& text);

}  // namespace mixtral
