#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/page_pool.h"
#include "nn/attention.h"
#include "tensor/buffer.h"

namespace mixtral {

/// Keys and values of the tokens so far of several sequences, layer by layer, in pages of T tokens
/// that sequences can share. It owns one pool of pages on the device, counts the owners of each
/// page, and keeps the table that says which pages a sequence has.
///
/// A sequence is a row of the table: `open` gives its number, `close` takes it back. A step of
/// inference is
///
///   for each sequence s of the batch:
///     if (!cache.extend(s, n)) ...      // room for n tokens in all; false: too few pages are free
///   cache.upload();                     // once, after the last extend
///   model.forward(ctx, batch, &cache, nullptr, nullptr);
///                                       // positions: length(s) before extend .. n − 1; rows: s
///
/// Nothing here waits for the device or depends on what was computed, and the view's addresses stay
/// the same: a recorded forward pass can be replayed after `extend` and `upload`.
///
/// Sharing. `fork` makes a sequence that begins with the tokens of another; both then read the same
/// pages. The first to write to a page that is shared and partly filled gets a copy of it (in
/// `extend`). Tokens of a sequence that is closed can be kept for later ones, as a cache of
/// prefixes does: `retain` its full pages, `open` a sequence with them, `release` them at last.
///
/// With a sliding window, `extend` gives back pages that lie wholly behind the window of the tokens
/// to come.
class KvCache {
 public:
  struct Options {
    int64_t sequences = 1;  // rows of the table: sequences that are open at once
    int64_t context = 0;    // tokens of a sequence, at most
    int64_t pages = 0;      // of the pool; 0: as many as all sequences together can hold
    /// Tokens that one `extend` adds, at most. It matters with a sliding window, where a sequence
    /// then never holds more pages than the window and this many tokens span. 0: `context`.
    int64_t chunk = 0;
    int64_t page_tokens = 0;  // T, a power of two; 0: what suits the device
    ops::CacheType type = ops::CacheType::f32;
  };

  KvCache(Backend& backend, const ModelConfig& config, const Options& options);
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // What there is.
  int64_t sequences() const { return options_.sequences; }
  int64_t context() const { return options_.context; }
  int64_t chunk() const { return options_.chunk; }
  int64_t page_tokens() const { return options_.page_tokens; }
  int64_t pages() const { return pool_.size(); }
  int64_t free_pages() const { return pool_.free_pages(); }
  int64_t free_sequences() const { return static_cast<int64_t>(free_rows_.size()); }
  int64_t bytes() const { return pages_buffer_.bytes() + table_buffer_.bytes(); }

  /// Bytes that a cache with these options takes on `backend`.
  static int64_t bytes_needed(const Backend& backend, const ModelConfig& config,
                              const Options& options);
  /// Pages that one sequence holds at most while it grows to `context` tokens.
  static int64_t pages_of_sequence(const Backend& backend, const ModelConfig& config,
                                   const Options& options);

  // Sequences. Each function takes an open one, unless it says otherwise.

  /// A sequence without tokens. There must be a free one (free_sequences).
  int32_t open();
  /// A sequence that begins with the tokens of these pages, all of them full; it retains them.
  int32_t open(std::span<const int32_t> full_pages);
  /// A sequence with the same tokens, in the same pages.
  int32_t fork(int32_t sequence);
  /// Gives back the sequence and its pages.
  void close(int32_t sequence);

  /// Tokens that the sequence has room for: those of its last `extend`, `truncate` or `fork`.
  int64_t length(int32_t sequence) const { return row(sequence).length; }
  /// Makes room for `tokens` tokens in all, from length() to context(). False, and nothing has
  /// changed, when too few pages are free (see pages_to_extend).
  [[nodiscard]] bool extend(int32_t sequence, int64_t tokens) {
    return extend(sequence, tokens, row(sequence).length);
  }
  /// The same where tokens from position `first` on, below length(), go through the model in the
  /// same step: their window stays, too.
  [[nodiscard]] bool extend(int32_t sequence, int64_t tokens, int64_t first);
  /// Free pages that extend(sequence, tokens) would need, beyond those that it gives back itself.
  int64_t pages_to_extend(int32_t sequence, int64_t tokens) const {
    return pages_to_extend(sequence, tokens, row(sequence).length);
  }
  /// Drops the tokens from position `tokens` on and gives back pages that hold no other. False, and
  /// nothing has changed, when the window of the next token reaches pages that were given back;
  /// this cannot happen when `tokens` is 0 or no less than the length before the last `extend` (or
  /// its `first`).
  [[nodiscard]] bool truncate(int32_t sequence, int64_t tokens);

  /// The sequence's pages in order of its tokens: page i holds tokens i·T .. (i+1)·T − 1, or is
  /// ops::kNoPage where it was given back behind the window.
  std::span<const int32_t> pages_of(int32_t sequence) const;
  /// Another owner of a page in use, and one less: what keeps pages beyond their sequences.
  void retain(int32_t page) { pool_.retain(page); }
  void release(int32_t page) { pool_.release(page); }
  int64_t owners(int32_t page) const { return pool_.owners(page); }

  // Pages that come from elsewhere than a sequence, and go there.

  /// A free page, whose one owner the caller is. There must be one (free_pages).
  int32_t take_page() { return pool_.allocate(); }
  /// [2 L, T, G, h], of codes h + 4: keys of layer 0, its values, keys of layer 1, ...
  Shape page_shape() const;
  ops::CacheType type() const { return options_.type; }
  Dtype dtype() const { return stored_dtype(options_.type); }  // of the page's elements
  /// Copies a page to host memory of that shape, and from there.
  void read_page(int32_t page, const Tensor& host) const;
  void write_page(int32_t page, const Tensor& host);

  /// Sends what changed of the table to the device, in one transfer.
  void upload();
  /// What the ops of layer i read and write.
  ops::KvView layer(int64_t i) const;

 private:
  struct Row {
    bool open = false;
    int64_t length = 0;
  };

  const Row& row(int32_t sequence) const;
  int64_t pages_for(int64_t tokens) const {
    return (tokens + options_.page_tokens - 1) / options_.page_tokens;
  }
  int32_t* entries(int32_t sequence) {
    return table_.data() + static_cast<size_t>(sequence * width_);
  }
  const int32_t* entries(int32_t sequence) const {
    return table_.data() + static_cast<size_t>(sequence * width_);
  }
  /// The first position that the token at position p sees.
  int64_t first_seen(int64_t p) const {
    return window_ > 0 ? std::max<int64_t>(0, p - window_ + 1) : 0;
  }
  /// Whether the page of the next token is partly filled and has other owners.
  bool next_page_is_shared(int32_t sequence) const;
  int64_t pages_to_extend(int32_t sequence, int64_t tokens, int64_t first) const;
  void set_entry(int32_t sequence, int64_t index, int32_t page);

  Backend& backend_;
  Options options_;
  int64_t layers_, window_, width_;  // W of the table
  PagePool pool_;
  std::vector<Row> rows_;
  std::vector<int32_t> free_rows_;
  std::vector<int32_t> table_;                   // [sequences, W], on the host
  int64_t changed_begin_ = 0, changed_end_ = 0;  // rows that differ on the device
  Buffer pages_buffer_, table_buffer_;
  Tensor pages_;         // [2 L pages, T, G, h]: keys of layer 0, its values, keys of layer 1, ...
  Tensor device_table_;  // [sequences, W] i32
};

}  // namespace mixtral
