#pragma once

#include <optional>
#include <string>

#include "io/json.h"
#include "model/batch.h"

namespace mixtral {

/// Where a loop gets its micro-batches.
class BatchSource {
 public:
  virtual ~BatchSource() = default;

  /// The next one. A source for training never ends: it goes on to the next epoch. One for
  /// evaluation ends with nothing after a pass over its records.
  virtual std::optional<HostBatch> next() = 0;
  /// Back to the beginning of the pass.
  virtual void rewind() = 0;

  /// How far it has come, as JSON; restore() makes next() continue from there. Throws Error when
  /// the text is not of this kind of source.
  virtual std::string position() const = 0;
  virtual void restore(const Json& position) = 0;
};

}  // namespace mixtral
