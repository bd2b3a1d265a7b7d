#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "ops/kv_view.h"
#include "ref/array.h"

namespace mixtral::ref {

/// Tokens first .. last of one sequence in a cache. Throws InternalError where a page is missing.
class CachedTokens {
 public:
  CachedTokens(const ops::KvView& cache, int64_t sequence, int64_t first, int64_t last)
      : cache_(cache),
        first_(first),
        heads_{.kv = static_cast<int>(cache.keys.dim(2)), .width = static_cast<int>(width(cache))},
        keys_(cache.keys.reshape(entries(cache))),
        values_(cache.values.reshape(entries(cache))) {
    check_pages(cache, sequence, first, last);
    const Integers table(cache.table);
    const int64_t size = cache.page_tokens();
    for (int64_t t = first; t <= last; ++t)
      entry_.push_back(table(sequence, t / size) * size + t % size);
  }

  /// Element c of kv head `head` of token t.
  double key(int64_t t, int64_t head, int64_t c) const {
    return cache_.coded() ? decoded(cache_.keys, t, head, c) : double{keys_(entry_of(t), head, c)};
  }
  double value(int64_t t, int64_t head, int64_t c) const {
    return cache_.coded() ? decoded(cache_.values, t, head, c)
                          : double{values_(entry_of(t), head, c)};
  }
  /// Writes a head of token t.
  void set_key(int64_t t, int64_t head, std::span<const double> numbers) const {
    set(cache_.keys, keys_, t, head, numbers);
  }
  void set_value(int64_t t, int64_t head, std::span<const double> numbers) const {
    set(cache_.values, values_, t, head, numbers);
  }

 private:
  static int64_t width(const ops::KvView& cache) {
    return cache.keys.dim(3) - ops::cached_width(cache.type, 0);
  }
  static Shape entries(const ops::KvView& cache) {
    return {cache.pages() * cache.page_tokens(), cache.keys.dim(2), cache.keys.dim(3)};
  }
  int64_t entry_of(int64_t t) const { return entry_[static_cast<size_t>(t - first_)]; }

  /// The codes and the scale of a head of token t.
  struct Codes {
    uint8_t *codes, *scale;
  };
  Codes codes(const Tensor& tensor, int64_t t, int64_t head) const {
    const ops::CodedPages pages = coded_pages(cache_, heads_);
    const int64_t page = entry_of(t) / pages.tokens, i = entry_of(t) % pages.tokens;
    auto* bytes = tensor.as<uint8_t>();
    return {bytes + pages.codes(page, i, head), bytes + pages.scale(page, i, head)};
  }
  double decoded(const Tensor& tensor, int64_t t, int64_t head, int64_t c) const {
    const Codes from = codes(tensor, t, head);
    float scale = 0;
    std::memcpy(&scale, from.scale, sizeof scale);
    return static_cast<double>(ops::unpack_code(cache_.type, from.codes[c])) *
           static_cast<double>(scale);
  }
  void set(const Tensor& tensor, const Floats& elements, int64_t t, int64_t head,
           std::span<const double> numbers) const {
    if (cache_.coded()) {
      std::vector<float> floats;
      for (const double number : numbers) floats.push_back(static_cast<float>(number));
      const Codes to = codes(tensor, t, head);
      const float scale = ops::pack_head(cache_.type, floats, to.codes);
      std::memcpy(to.scale, &scale, sizeof scale);
      return;
    }
    for (size_t c = 0; c < numbers.size(); ++c)
      elements(entry_of(t), head, static_cast<int64_t>(c)) = numbers[c];
  }

  ops::KvView cache_;
  int64_t first_;
  ops::Heads heads_;
  Floats keys_, values_;
  std::vector<int64_t> entry_;
};

}  // namespace mixtral::ref
