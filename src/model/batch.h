#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "nn/attention.h"
#include "ops/context.h"

namespace mixtral {

/// N tokens of S sequences end to end, in ordinary memory.
struct HostBatch {
  std::vector<int32_t> tokens;           // [N]
  std::vector<int32_t> labels;           // [N]: the token that should come next, or −100; or empty
  std::vector<int32_t> positions;        // [N]: from 0 in each sequence, or from a cache's length
  std::vector<int32_t> sequence_starts;  // [S+1]; with a cache, not read and may be empty

  // For a forward pass over a cache (KvCache); empty and 0 without one. Rows of a padded batch that
  // hold no token have position ops::kPadding and any token id and row.
  std::vector<int32_t> rows;  // [N]: each token's sequence, as KvCache numbers them
  int64_t decode_rows = 0;    // so many tokens, the first ones, are taken one by one; the rest are
                              // runs of several tokens of a sequence
  /// Over a cache: the tokens whose hidden states are wanted (nn::LastTokens). Nothing: those of
  /// all.
  std::optional<std::vector<int32_t>> last;

  // Which adapters: that of all tokens, or each token's own, all below adapter_count.
  int32_t adapter = kOwnAdapter;
  std::vector<int32_t> adapters;  // [N], or empty
  int64_t adapter_count = 0;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t sequences() const { return static_cast<int64_t>(sequence_starts.size()) - 1; }
  int64_t longest() const;      // tokens of the longest sequence
  int64_t label_count() const;  // labels that take part in the loss

  /// Appends one sequence. `labels` are per position as in Hugging Face's data, not shifted: the
  /// label of position i is what position i − 1 must predict. Empty: every token is one.
  void append(std::span<const int32_t> sequence, std::span<const int32_t> labels = {});
};

/// The same on the device, in the context's arena.
struct Batch {
  Tensor tokens;  // [N] i32
  Tensor labels;  // [N] i32, or empty
  nn::Sequences sequences;
  std::optional<nn::LastTokens> last;

  int64_t size() const { return tokens.dim(0); }
};

/// Refuses (Error) tokens outside [0, vocabulary) and positions outside [0, context), since kernels
/// index with them. With a cache, a position may be ops::kPadding.
void check_batch(const HostBatch& host, int64_t vocabulary, int64_t context);
/// Copies a batch that was checked to the device.
Batch upload_batch(Context& ctx, const HostBatch& host);
/// Checks a batch and copies it to the device.
Batch upload(Context& ctx, const HostBatch& host, int64_t vocabulary, int64_t context);

}  // namespace mixtral
