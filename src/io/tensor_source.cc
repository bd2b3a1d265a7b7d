#include "io/tensor_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "base/threads.h"
#include "io/convert.h"
#include "io/json.h"

namespace mixtral {
namespace {

constexpr int64_t kDecodedAtOnce = int64_t{1} << 20;  // elements; whole blocks of every format

double element(const std::byte* data, Dtype dtype, int64_t index) {
  double value = 0;
  convert_elements(data + index * size_of(dtype), dtype, reinterpret_cast<std::byte*>(&value),
                   Dtype::f64, 1);
  return value;
}

}  // namespace

int64_t TensorEntry::numel() const {
  int64_t count = 1;
  for (const int64_t dim : dims) count *= dim;
  return count;
}

std::string TensorEntry::shape_text() const { return fmt::format("[{}]", fmt::join(dims, ", ")); }

void TensorSource::read_codes(std::string_view name, int64_t, std::span<const Tensor>) const {
  CHECK(false, std::string(name) + " is not kept in a format of its own");
}

const TensorEntry& TensorSource::at(std::string_view name) const {
  if (const TensorEntry* entry = find(name)) return *entry;
  throw Error(fmt::format("{}: there is no tensor \"{}\"", path().string(), printable(name)));
}

void TensorSource::read_into(std::string_view name, const Tensor& to) const {
  const TensorEntry& entry = at(name);
  bool same = entry.dims.size() == static_cast<size_t>(to.rank());
  for (int i = 0; same && i < to.rank(); ++i)
    same = entry.dims[static_cast<size_t>(i)] == to.dim(i);
  if (!same)
    throw Error(fmt::format("{}: tensor \"{}\" has shape {}, but {} is needed",
                            file_of(name).string(), printable(name), entry.shape_text(),
                            to.shape().to_string()));
  read(name, 0, to);
}

uint64_t TensorSource::bytes() const {
  uint64_t total = 0;
  for (const std::string& name : names()) total += raw(name).size();
  return total;
}

std::optional<TensorSource::NonFinite> TensorSource::first_non_finite(
    const std::string& name) const {
  const TensorEntry& entry = at(name);
  const int64_t count = entry.numel();
  if (!entry.coded) {
    if (!entry.dtype) return std::nullopt;
    const std::byte* data = raw(name).data();
    const int64_t index = find_non_finite(data, *entry.dtype, count);
    if (index < 0) return std::nullopt;
    return NonFinite{name, index, element(data, *entry.dtype, index), file_of(name)};
  }
  if (has_finite_scales(name)) return std::nullopt;
  std::vector<float> decoded;
  for (int64_t first = 0; first < count; first += kDecodedAtOnce) {
    decoded.resize(static_cast<size_t>(std::min(kDecodedAtOnce, count - first)));
    read(name, first, Tensor(std::span(decoded)));
    const auto bad = find_non_finite(reinterpret_cast<const std::byte*>(decoded.data()), Dtype::f32,
                                     static_cast<int64_t>(decoded.size()));
    if (bad >= 0)
      return NonFinite{name, first + bad, static_cast<double>(decoded[static_cast<size_t>(bad)]),
                       file_of(name)};
  }
  return std::nullopt;
}

std::vector<TensorSource::NonFinite> TensorSource::non_finite(
    std::span<const std::string> names) const {
  // Decoding takes longer than reading, so several tensors are looked at side by side.
  std::vector<std::optional<NonFinite>> first(names.size());
  const bool coded = std::ranges::any_of(names, [&](const auto& name) { return at(name).coded; });
  ThreadPool pool(coded ? 0 : 1);
  pool.for_each(static_cast<int64_t>(first.size()), [&](int64_t i, int) {
    first[static_cast<size_t>(i)] = first_non_finite(names[static_cast<size_t>(i)]);
  });
  std::vector<NonFinite> found;
  for (auto& one : first)
    if (one) found.push_back(std::move(*one));
  return found;
}

void TensorSource::refuse_non_finite(std::span<const std::string> names) const {
  const auto found = non_finite(names);
  if (found.empty()) return;
  const auto& first = found.front();
  throw Error(fmt::format("{}: tensor \"{}\" has {} at element {}{}; the weights are damaged",
                          first.file.string(), printable(first.name), first.value, first.index,
                          found.size() > 1
                              ? fmt::format(", and {} more tensors have others", found.size() - 1)
                              : std::string()));
}

}  // namespace mixtral
