#pragma once

#include "model/config.h"
#include "nn/attention.h"
#include "tensor/buffer.h"

namespace mixtral {

/// Keys and values of the tokens so far, for several sequences (slots), layer by layer; kv heads
/// are stored once. With a sliding window the cache is a ring that holds the window and the largest
/// chunk that is appended at once, however long the sequence grows.
class KvCache {
 public:
  /// Room for `slots` sequences of `context` tokens, appended at most `chunk` at a time.
  KvCache(Backend& backend, const ModelConfig& config, int64_t slots, int64_t context,
          int64_t chunk, Dtype dtype);

  nn::CacheView layer(int64_t i) const;
  int64_t slots() const { return slots_; }
  int64_t context() const { return context_; }
  int64_t chunk() const { return chunk_; }
  int64_t bytes() const { return buffer_.bytes(); }

  static int64_t bytes_needed(const ModelConfig& config, int64_t slots, int64_t context,
                              int64_t chunk, Dtype dtype);

 private:
  static int64_t capacity(const ModelConfig& config, int64_t context, int64_t chunk);

  Buffer buffer_;
  Tensor all_;  // [2 L slots, C, G, h]
  int64_t slots_, context_, chunk_;
};

}  // namespace mixtral
