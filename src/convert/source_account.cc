#include "convert/source_account.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/pages.h"
#include "convert/model_format.h"

namespace mixtral {
namespace {

constexpr size_t kSummedAtOnce = size_t{16} << 20;

}  // namespace

SourceAccount::SourceAccount(const ModelSource& source, const ModelEdit* edit) : edit_(edit) {
  if (!edit_) {
    sources_ = {&source};
    total_ = source.tensors().bytes();
    return;
  }
  sources_ = edit_->sources;
  std::set<std::pair<size_t, std::string>> used;
  for_each_tensor(edit_->config, [&](const TensorId& id) {
    for (const ModelEdit::Origin& origin : origins(id)) {
      const std::string name = place(origin).place.name;
      if (used.emplace(origin.source, name).second)
        total_ += sources_[origin.source]->tensors().raw(name).size();
    }
  });
}

std::vector<ModelEdit::Origin> SourceAccount::origins(const TensorId& id) const {
  if (edit_) return edit_->origins(id);
  return {{.source = 0, .id = id}};
}

SourceAccount::Place SourceAccount::place(const ModelEdit::Origin& origin) const {
  const ModelSource& source = *sources_[origin.source];
  auto found = find_place(source.tensors(), source.config(), origin.id);
  CHECK(found.has_value(), tensor_name(origin.id));
  const TensorEntry* entry = source.tensors().find(found->name);
  return {.place = std::move(*found), .entry = entry};
}

std::optional<SourceAccount::Place> SourceAccount::place(const TensorId& id) const {
  const auto found = origins(id);
  return found.empty() ? std::nullopt : std::optional(place(found.front()));
}

void SourceAccount::note(const TensorId& id, ReceiptTensor& row) {
  bool first = true;
  for (const ModelEdit::Origin& origin : origins(id)) {
    const Place at = place(origin);
    const std::string& own = sum(origin.source, at.place.name);
    if (first) {
      row.source = at.entry->name;
      row.source_type = at.entry->type;
      row.source_shape = at.entry->dims;
      row.source_sum = own;
      row.source_model = origin.source;
    } else {
      row.others.push_back({.name = at.entry->name, .sum = own, .source = origin.source});
    }
    first = false;
  }
}

const std::string& SourceAccount::sum(size_t source, const std::string& name) {
  const auto known = sums_.find({source, name});
  if (known != sums_.end()) return known->second;
  Checksummer sum;
  std::span<const std::byte> bytes = sources_[source]->tensors().raw(name);
  done_ += bytes.size();
  while (!bytes.empty()) {
    const size_t count = std::min(kSummedAtOnce, bytes.size());
    sum.update(bytes.first(count));
    release_pages(bytes.first(count));
    bytes = bytes.subspan(count);
  }
  return sums_.emplace(std::pair(source, name), sum.result().hex()).first->second;
}

/// The tensors of a source's files that nothing was made of.
std::vector<std::string> SourceAccount::left(size_t source) const {
  const TensorSource& tensors = sources_[source]->tensors();
  std::vector<std::string> names;
  for (const std::string& name : tensors.names())
    if (!sums_.contains({source, name}) && !tensors.raw(name).empty()) names.push_back(name);
  return names;
}

void SourceAccount::finish(Receipt& receipt) const {
  if (!edit_) {
    receipt.unused = left(0);  // check_weights() knows them
    return;
  }
  receipt.edit.operation = edit_->operation;
  for (size_t i = 0; i < sources_.size(); ++i) {
    const ModelSource& source = *sources_[i];
    std::set<std::string, std::less<>> of_model;
    for_each_tensor(source.config(), [&](const TensorId& id) {
      of_model.insert(place({.source = i, .id = id}).place.name);
    });
    ReceiptSource own{.path = std::filesystem::absolute(source.tensors().path()).string(),
                      .format = std::string(name(format_of(source.tensors()))),
                      .dropped = {},
                      .unused = {}};
    for (std::string& name : left(i))
      (of_model.contains(name) ? own.dropped : own.unused).push_back(std::move(name));
    receipt.edit.sources.push_back(std::move(own));
  }
  receipt.unused = receipt.edit.sources.front().unused;
}

}  // namespace mixtral
