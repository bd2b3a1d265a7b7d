#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "convert/model_edit.h"
#include "convert/receipt.h"

namespace mixtral {

/// The tensors of the files that a conversion reads, which a receipt accounts for: of its source,
/// or of all models that an edited one is made of.
class SourceAccount {
 public:
  /// Both must outlive this; `edit` may be null.
  SourceAccount(const ModelSource& source, const ModelEdit* edit);

  /// Notes what of the files a tensor of the result is made of. Reads it for its checksum, unless
  /// that is known.
  void note(const TensorId& id, ReceiptTensor& row);
  /// Where the first tensor that it is made of stands; nothing where it is made of none.
  struct Place {
    TensorPlace place;
    const TensorEntry* entry = nullptr;
  };
  std::optional<Place> place(const TensorId& id) const;
  /// Bytes that were read for checksums, and that will be in all.
  uint64_t done() const { return done_; }
  uint64_t total() const { return total_; }
  /// Adds to the receipt what was left.
  void finish(Receipt& receipt) const;

 private:
  std::vector<ModelEdit::Origin> origins(const TensorId& id) const;
  Place place(const ModelEdit::Origin& origin) const;
  const std::string& sum(size_t source, const std::string& name);
  std::vector<std::string> left(size_t source) const;

  const ModelEdit* edit_;
  std::vector<const ModelSource*> sources_;
  std::map<std::pair<size_t, std::string>, std::string> sums_;
  uint64_t done_ = 0, total_ = 0;
};

}  // namespace mixtral
