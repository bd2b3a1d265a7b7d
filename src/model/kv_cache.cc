#include "model/kv_cache.h"

#include <algorithm>

namespace mixtral {

int64_t KvCache::capacity(const ModelConfig& config, int64_t context, int64_t chunk) {
  if (config.sliding_window <= 0) return context;
  return std::min<int64_t>(context, config.sliding_window + chunk - 1);
}

int64_t KvCache::bytes_needed(const ModelConfig& config, int64_t slots, int64_t context,
                              int64_t chunk, Dtype dtype) {
  return 2 * config.num_layers * slots * capacity(config, context, chunk) * config.num_kv_heads *
         config.head_dim * size_of(dtype);
}

KvCache::KvCache(Backend& backend, const ModelConfig& config, int64_t slots, int64_t context,
                 int64_t chunk, Dtype dtype)
    : buffer_(backend, bytes_needed(config, slots, context, chunk, dtype)),
      all_(buffer_.tensor({2 * config.num_layers * slots, capacity(config, context, chunk),
                           config.num_kv_heads, config.head_dim},
                          dtype)),
      slots_(slots),
      context_(context),
      chunk_(chunk) {}

nn::CacheView KvCache::layer(int64_t i) const {
  return {.keys = all_.slice(2 * i * slots_, (2 * i + 1) * slots_),
          .values = all_.slice((2 * i + 1) * slots_, (2 * i + 2) * slots_)};
}

}  // namespace mixtral
