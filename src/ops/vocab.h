#pragma once

#include "ops/common.h"

namespace mixtral::ops {

/// A label that takes no part in the loss.
inline constexpr int32_t kIgnoredLabel = -100;

/// x[n] = table[tokens[n]]
struct Embedding {
  static constexpr std::string_view kName = "embedding";
  Tensor table;   // [V, D] any floating-point type
  Tensor tokens;  // [N] i32, each in [0, V)
  Tensor x;       // [N, D]
};

/// dtable[tokens[n]] += dx[n]; rows that share a token are added in order of n.
struct EmbeddingBackward {
  static constexpr std::string_view kName = "embedding_backward";
  Tensor dx;      // [N, D]
  Tensor tokens;  // [N] i32
  Tensor dtable;  // [V, D] statistics
};

/// loss[n] = log Σ_v exp(logits[n, v]) − logits[n, label], or 0 where the label is ignored;
/// dlogits[n] = scale[n] · (softmax(logits[n]) − onehot(label)), or 0.
struct CrossEntropy {
  static constexpr std::string_view kName = "cross_entropy";
  Tensor logits;   // [n, V] f64, f32 or bf16
  Tensor labels;   // [n] i32
  Tensor loss;     // [n] statistics
  Tensor scale;    // [1] or [n] statistics; empty when no gradient is wanted
  Tensor dlogits;  // [n, V] any floating-point type, may alias logits of the same type; given
                   // exactly when scale is
};

/// y[s] = Σ x[starts[s] .. starts[s+1]]  (+= if accumulate); with empty starts, y[0] = Σ x.
struct SegmentSum {
  static constexpr std::string_view kName = "segment_sum";
  Tensor x;       // [N] statistics
  Tensor starts;  // [S+1] i32, or empty
  Tensor y;       // [S] f64, or [1]
  bool accumulate = false;
};

/// How one sequence's next token is drawn. Filters apply in this order: allowed tokens, bias,
/// repetition penalty, temperature, top-k, top-p, min-p; each sees the distribution that the ones
/// before it left, renormalised. All arithmetic is in f64.
struct SamplingSettings {
  float temperature = 1;  // logits are divided by it; 0: the largest (after the penalty) is taken
  int32_t top_k = 0;      // keep this many most probable tokens; 0: no limit
  float top_p = 1;        // keep a token while the mass of those before it is below this; 1: all
  float min_p = 0;        // keep tokens at least this share as probable as the most probable one
  float repeat_penalty = 1;  // logits of tokens in `history`: divided if positive, else multiplied,
                             // once however often a token occurs
  int32_t repeat_last_n = 0;  // so many of the last tokens in `history` count; 0: all of them
  uint64_t seed = 0;
};

/// Draws a token per sequence from the filtered, renormalised distribution, by inversion of its
/// cumulative sum in order of descending logits (ties to the lower id): the first token at which
/// the sum exceeds u times the whole sum, else the last one kept, where u = (w >> 11) · 2^-53 and w
/// is word 0 (low half) and word 1 of philox(seed, 0, positions[s]). The draw depends on nothing
/// but seed, position, history and logits. The first token in that order always survives the
/// filters; it is the one drawn when its logit is infinite. A logit that is NaN counts as −∞. Rows
/// at kPadding are left alone: nothing is drawn for them.
struct Sample {
  static constexpr std::string_view kName = "sample";
  Tensor logits;     // [S, V] statistics
  Tensor settings;   // [S, sizeof(SamplingSettings)] u8
  Tensor history;    // [S, W] i32, −1 where there is none; or empty. The token at position p is
                     // entry p mod W (see Advance)
  Tensor allowed;    // [S, ⌈V/32⌉] i32: bit v mod 32 of word v / 32 says whether token v may be
                     // drawn, at least one of them; or empty: all may
  Tensor bias;       // [S, V] f32, added to the logits before the penalty; or empty
  Tensor positions;  // [S] i32: of the tokens whose logits these are, or kPadding
  Tensor tokens;     // [S] i32, assigned
  Tensor
      log_probability;  // [S]: log softmax(logits) of the drawn token, before any filter; or empty
};

/// One step of a decoding loop, on the device: the drawn tokens become the next inputs.
///   inputs = drawn; positions += 1; history[s, positions[s] mod W] = drawn[s]
/// Rows at kPadding are left alone and stay there.
struct Advance {
  static constexpr std::string_view kName = "advance";
  Tensor drawn;      // [S] i32
  Tensor inputs;     // [S] i32
  Tensor positions;  // [S] i32
  Tensor history;    // [S, W] i32, or empty
};

/// Words of a row of Sample::allowed for a vocabulary of V tokens.
constexpr int64_t allowed_words(int64_t vocabulary) { return (vocabulary + 31) / 32; }

/// Whether entry i of a row of W tokens of history is one of the last `last_n` tokens, where the
/// latest is at `position`; 0: all are.
constexpr bool in_history(int64_t i, int64_t width, int64_t position, int64_t last_n) {
  return last_n <= 0 || ((position - i) % width + width) % width < last_n;
}

void check(const Embedding&);
void check(const EmbeddingBackward&);
void check(const CrossEntropy&);
void check(const SegmentSum&);
void check(const Sample&);
void check(const Advance&);
Cost cost(const Embedding&);
Cost cost(const EmbeddingBackward&);
Cost cost(const CrossEntropy&);
Cost cost(const SegmentSum&);
Cost cost(const Sample&);
Cost cost(const Advance&);

}  // namespace mixtral::ops
