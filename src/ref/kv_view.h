#pragma once

#include <span>
#include <vector>

#include "ops/kv_view.h"
#include "ref/array.h"

namespace mixtral::ref {

/// Tokens first .. last of one sequence in a cache. Throws InternalError where a page is missing.
class CachedTokens {
 public:
  CachedTokens(const ops::KvView& cache, int64_t sequence, int64_t first, int64_t last)
      : first_(first),
        coded_(cache.coded()),
        keys_tensor_(cache.keys.reshape(entries(cache))),
        values_tensor_(cache.values.reshape(entries(cache))),
        keys_(keys_tensor_),
        values_(values_tensor_) {
    check_pages(cache, sequence, first, last);
    const Integers table(cache.table);
    const int64_t size = cache.page_tokens();
    for (int64_t t = first; t <= last; ++t)
      entry_.push_back(table(sequence, t / size) * size + t % size);
  }

  /// Element c of kv head `head` of token t.
  double key(int64_t t, int64_t head, int64_t c) const {
    return coded_ ? decoded(keys_tensor_, t, head, c) : double{keys_(entry_of(t), head, c)};
  }
  double value(int64_t t, int64_t head, int64_t c) const {
    return coded_ ? decoded(values_tensor_, t, head, c) : double{values_(entry_of(t), head, c)};
  }
  /// Writes a head of token t.
  void set_key(int64_t t, int64_t head, std::span<const double> numbers) const {
    set(keys_tensor_, keys_, t, head, numbers);
  }
  void set_value(int64_t t, int64_t head, std::span<const double> numbers) const {
    set(values_tensor_, values_, t, head, numbers);
  }

 private:
  static Shape entries(const ops::KvView& cache) {
    return {cache.pages() * cache.page_tokens(), cache.keys.dim(2), cache.keys.dim(3)};
  }
  int64_t entry_of(int64_t t) const { return entry_[static_cast<size_t>(t - first_)]; }

  uint8_t* codes(const Tensor& tensor, int64_t t, int64_t head) const {
    return tensor.as<uint8_t>() + (entry_of(t) * tensor.dim(1) + head) * tensor.dim(2);
  }
  double decoded(const Tensor& tensor, int64_t t, int64_t head, int64_t c) const {
    const uint8_t* const of_head = codes(tensor, t, head);
    const int64_t width = tensor.dim(2) - static_cast<int64_t>(sizeof(float));
    return static_cast<double>(static_cast<int8_t>(of_head[c])) *
           static_cast<double>(ops::scale_of_head(of_head, width));
  }
  void set(const Tensor& tensor, const Floats& elements, int64_t t, int64_t head,
           std::span<const double> numbers) const {
    if (coded_) {
      std::vector<float> floats;
      for (const double number : numbers) floats.push_back(static_cast<float>(number));
      ops::pack_head(floats, codes(tensor, t, head));
      return;
    }
    for (size_t c = 0; c < numbers.size(); ++c)
      elements(entry_of(t), head, static_cast<int64_t>(c)) = numbers[c];
  }

  int64_t first_;
  bool coded_;
  Tensor keys_tensor_, values_tensor_;
  Floats keys_, values_;
  std::vector<int64_t> entry_;
};

}  // namespace mixtral::ref
