#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "infer/request.h"
#include "model/batch.h"
#include "ops/context.h"

namespace mixtral {

/// What the device holds of each sequence that tokens are drawn for, a row each: the token to go
/// through the model next, its position, where its keys and values are, how to draw, and what was
/// drawn last. Draws and what follows from them (ops::Advance) stay on the device. The host sends a
/// row when a sequence takes it, and reads what was drawn, all rows at once. A sequence may have
/// more rows, for draft tokens: one after each of them, as if it had been drawn.
class DecodeRows {
 public:
  /// A sequence, as it takes a row.
  struct Row {
    std::span<const int32_t> tokens;  // all so far; the last is the next to go through the model
    size_t prompt = 0;                // of these: so many came with the request
    int32_t cache_row = 0;            // of the cache's table
    int32_t adapter = kNoAdapter;
    const GenerationOptions* options = nullptr;
  };

  /// Room for `rows` sequences of up to `context` tokens. No row is taken.
  DecodeRows(Context& ctx, int64_t rows, int64_t vocabulary, int64_t context);

  /// Prepares for a sequence: makes the history long enough, and room for masks and for what is
  /// added to logits when it has some.
  /// Returns whether this moved tensors that were handed out before.
  bool prepare(const GenerationOptions& options, bool masked);

  /// Changes on the host. They reach the device with the next upload().
  void set(int64_t row, const Row& content);
  /// The same for a row whose sequence has gone on by several tokens, penalised already.
  void move(int64_t row, const Row& content);
  /// What set() would do if `draft`, at least one token, had been drawn after those of `content`,
  /// which `base` holds. No mask.
  void set_draft(int64_t row, int64_t base, const Row& content, std::span<const int32_t> draft);
  void clear(int64_t row);                            // takes part in no step: ops::kPadding
  void set_mask(int64_t row, const TokenMask& mask);  // for the next draw; `prepare` comes first
  /// The last of these tokens was drawn: it is less likely from now on, where options say so.
  void penalise(int64_t row, const Row& content);
  void upload();

  // The first `count` rows on the device.
  Tensor tokens(int64_t count) const { return tokens_.slice(0, count); }        // [count] i32
  Tensor positions(int64_t count) const { return positions_.slice(0, count); }  // [count] i32
  Tensor cache_rows(int64_t count) const { return cache_rows_.slice(0, count); }
  Tensor adapters(int64_t count) const { return adapters_.slice(0, count); }  // [count] i32
  Tensor starts(int64_t count) const { return starts_.slice(0, count + 1); }  // 0, 1, .. count
  Tensor logits(int64_t count) const { return logits_.slice(0, count); }      // [count, V]
  /// The first `count` rows as a step's batch, without adapters.
  Batch batch(int64_t count) const;

  /// Draws a token for each of the first `count` rows from their logits, which becomes the row's
  /// next. Padding rows stay as they are.
  void draw(int64_t count);

  /// Waits for the last draw, of the first `count` rows, and copies its results. It has to follow
  /// each draw: what the host knows of the rows advances, too.
  void read(int64_t count);
  int32_t drawn(int64_t row) const;
  double log_probability(int64_t row) const;

 private:
  /// Copies rows begin .. end − 1 of a host vector to the device.
  template <class T>
  void send(const std::vector<T>& host, const Tensor& device, int64_t begin, int64_t end) const;
  bool remembers(const GenerationOptions& options) const;
  void place(int64_t row, const Row& content, std::span<const int32_t> draft);
  void set_bias(int64_t row, const Row& content);
  void subtract_penalty(int64_t row, const GenerationOptions& options, int32_t token, bool again);
  void allow_all(int64_t row);
  std::span<float> bias_of(int64_t row);  // on the host

  Context& ctx_;
  int64_t rows_, context_;
  Buffer state_buffer_, history_buffer_, mask_buffer_, bias_buffer_, results_buffer_,
      host_results_buffer_;
  Tensor tokens_, positions_, cache_rows_, adapters_, starts_, settings_, logits_;
  Tensor history_;  // [R, W], or empty: no sequence has needed one yet
  Tensor mask_;     // [R, ⌈V/32⌉], or empty: likewise
  Tensor bias_;     // [R, V] f32, or empty: likewise
  struct Results {
    Tensor drawn, log_probability, all;  // [R] i32, [R] statistics, and the bytes of both
  };
  static Results cut_results(const Buffer& buffer, int64_t rows, Dtype statistics);
  Results results_, host_results_;
  // What the device has, or gets with the next upload.
  std::vector<int32_t> host_tokens_, host_positions_, host_cache_rows_, host_adapters_,
      host_history_;
  std::vector<uint32_t> host_mask_;
  std::vector<float> host_bias_;
  std::vector<ops::SamplingSettings> host_settings_;
  std::vector<uint8_t> changed_, mask_changed_, bias_changed_;
  std::vector<uint8_t> masked_, biased_;  // rows whose mask or bias may be other than at first
};

}  // namespace mixtral
