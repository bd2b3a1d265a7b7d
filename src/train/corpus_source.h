#pragma once

#include <utility>

#include "data/batches.h"
#include "train/batch_source.h"

namespace mixtral {

/// The batches of a corpus, as the training loop takes them. The corpus must outlive this.
class CorpusSource : public BatchSource {
 public:
  CorpusSource(const Corpus& corpus, const BatchOptions& options) : batches_(corpus, options) {}

  std::optional<HostBatch> next() override { return batches_.next(); }
  void rewind() override { batches_.rewind(); }
  std::string position() const override { return batches_.position(); }
  void restore(const Json& position) override { batches_.restore(position); }

  const Batches& batches() const { return batches_; }

 private:
  Batches batches_;
};

}  // namespace mixtral
