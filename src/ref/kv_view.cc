#include "ref/kv_view.h"

#include <cstring>

#include "ref/backend.h"

namespace mixtral::ref {

void RefBackend::run(const ops::CacheAppend& op) {
  const int64_t width = op.heads.width;
  const Floats qkv(op.qkv);
  const Integers positions(op.positions), rows(op.rows);
  for (int64_t n = 0; n < op.qkv.dim(0); ++n) {
    const int64_t p = positions[n];
    if (p == ops::kPadding) continue;
    const CachedTokens cached(op.cache, rows[n], p, p);
    for (int64_t g = 0; g < op.heads.kv; ++g) {
      const int64_t key = (op.heads.query + g) * width;
      const int64_t value = (op.heads.query + op.heads.kv + g) * width;
      std::vector<double> numbers(static_cast<size_t>(width));
      const auto take = [&](int64_t column) {
        for (int64_t c = 0; c < width; ++c) numbers[static_cast<size_t>(c)] = qkv(n, column + c);
        return std::span<const double>(numbers);
      };
      cached.set_key(p, g, take(key));
      cached.set_value(p, g, take(value));
    }
  }
}

void RefBackend::run(const ops::CopyPage& op) {
  for (int64_t plane = 0; plane < op.pages.dim(0); ++plane) {
    const Tensor from = op.pages[plane][op.from], to = op.pages[plane][op.to];
    if (op.from != op.to) std::memcpy(to.data(), from.data(), static_cast<size_t>(from.bytes()));
  }
}

}  // namespace mixtral::ref
