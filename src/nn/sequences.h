#pragma once

#include <cstdint>

#include "ops/context.h"

namespace mixtral {

/// A LoRA adapter of a model, by its index: none, which is the base alone; the model's own, which
/// it was opened or is trained with (the base alone where it has none); or one of an AdapterSet.
inline constexpr int32_t kNoAdapter = -1;
inline constexpr int32_t kOwnAdapter = 0;

}  // namespace mixtral

namespace mixtral::nn {

/// By what each row of a product is multiplied: which group's weight (expert), and which adapter's
/// update of it.
struct RowGroups {
  Tensor offsets;  // [G+1] i32: rows offsets[g] .. offsets[g+1] are group g's; empty if G = 1

  // Adapters: one of all rows; or, where `order` is given, the rows sorted (ops::SortByAdapter).
  int32_t adapter = kOwnAdapter;
  Tensor order, place;     // [N] i32
  Tensor adapter_offsets;  // [M·G+1] i32

  bool sorted() const { return !order.empty(); }
};

/// Which adapter each token of a batch uses.
struct TokenAdapters {
  int32_t all = kOwnAdapter;  // that of all tokens, where `each` is empty
  Tensor each;                // [N] i32: kNoAdapter, or below `count`
  int64_t count = 0;          // M

  /// The groups of a product with a row a token. Tables stand in the arena.
  RowGroups sort(Context& ctx) const;
  /// Those of a product with experts' rows: row r is of token source[r] / divisor.
  RowGroups sort(Context& ctx, const Tensor& source, const Tensor& offsets, int64_t divisor) const;
  /// Those of tokens begin .. end − 1.
  TokenAdapters slice(int64_t begin, int64_t end) const;
};

/// Which tokens of which sequences a computation is about: N tokens of S sequences end to end.
struct Sequences {
  Tensor positions;     // [N] i32: of each token in its sequence; with a cache, or ops::kPadding
  Tensor starts;        // [S+1] i32: where each begins among the tokens; not read with a cache
  int64_t longest = 0;  // an upper bound of the sequences' lengths
  // With a cache only. The first `decode_rows` tokens are taken one by one, such as the last token
  // of each sequence, perhaps with draft tokens; after them come runs of several tokens of a
  // sequence.
  Tensor rows;  // [N] i32: each token's sequence, as a row of the cache's table
  int64_t decode_rows = 0;
  int64_t seen_keys = 0;  // CachedAttention::seen_keys
  TokenAdapters adapters = {};
  RowGroups groups = {};  // adapters.sort(): made once for all layers
};

/// The tokens of a batch whose results are wanted, where these are not all: then the last block
/// leaves the others out as soon as their keys and values are in the cache.
struct LastTokens {
  Tensor source;        // [n] i32: which tokens of the batch; empty if n = 0
  Sequences sequences;  // theirs, over a cache

  int64_t count() const { return source ? source.dim(0) : 0; }
};

}  // namespace mixtral::nn
