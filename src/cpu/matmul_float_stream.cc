// Few rows times many lines of floats, for each instruction set (Highway compiles this file once
// for each): each line is read once and not packed.

#include "cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul_float_stream.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <utility>

#include "cpu/matmul_float.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
#if HWY_TARGET == HWY_SCALAR
StreamKernel get_float_stream() { return nullptr; }
#else
namespace {

/// sum[r] += a[r, k] · (element k of each line), for kWords words of elements of k.
template <Element kElement, int kWords, int kM, int kGroups>
HWY_INLINE void multiply_words(const V* words, const float* a, int64_t a_stride, bool round,
                               int group, V (&sum)[kM][kGroups]) {
  const F f;
  constexpr int kPerWord = kElement == Element::f32 ? 1 : 2;
#pragma GCC unroll 16
  for (int w = 0; w < kWords; ++w) {
    V v[2] = {words[w], words[w]};
    if constexpr (kPerWord == 2) split_pair<kElement>(hn::BitCast(U(), words[w]), v[0], v[1]);
#pragma GCC unroll 2
    for (int i = 0; i < kPerWord; ++i) {
      if (kElement != Element::bf16 && round) v[i] = round_bf16(v[i]);
#pragma GCC unroll 8
      for (int r = 0; r < kM; ++r)
        sum[r][group] =
            hn::MulAdd(hn::Set(f, a[r * a_stride + w * kPerWord + i]), v[i], sum[r][group]);
    }
  }
}

/// sums[r][g] += a[r, i] · (element i of each line) for i from k on: what is no whole step of every
/// line. The lines are those from `done` on, kLanes a group; the last group may have fewer.
template <Element kElement>
void add_rest(const Stream& s, int64_t done, int64_t lines, int64_t k, int groups, float* sums) {
  const F f;
  constexpr int64_t kSize = bytes_of(kElement);
  constexpr int64_t kTake = kChunk / kSize;
  const int64_t stride = s.b.operand.stride * kSize;
  const auto* base = static_cast<const uint8_t*>(s.b.operand.data) + (s.b.line + done) * stride;
  alignas(64) uint8_t tail[kLanes * kChunk];
  alignas(64) float elements[kTake * kLanes];
  V words[4 * kSteps];
  for (; k < s.b.count; k += kTake) {
    const int64_t rest = HWY_MIN(kTake, s.b.count - k);
    for (int g = 0; g < groups; ++g) {
      copy_tail<kChunk>(base + g * kLanes * stride + k * kSize, stride, lines - g * kLanes,
                        rest * kSize, tail);
      transpose<kSteps>(tail, kChunk, words);
      if (kElement != Element::bf16 && s.b.round)
        store_words<kElement, true, 4 * kSteps, kLanes>(words, elements);
      else
        store_words<kElement, false, 4 * kSteps, kLanes>(words, elements);
      for (int r = 0; r < s.rows; ++r) {
        const float* a = static_cast<const float*>(s.a) + r * s.a_stride + k;
        float* to = sums + (r * groups + g) * kLanes;
        V sum = hn::Load(f, to);
        for (int64_t i = 0; i < rest; ++i)
          sum = hn::MulAdd(hn::Set(f, a[i]), hn::Load(f, elements + i * kLanes), sum);
        hn::Store(sum, f, to);
      }
    }
  }
}

/// kGroups vectors of lines for kM rows at a time; `lines` may be fewer in the last.
template <Element kElement, int kM, int kGroups>
void stream_lines(const Stream& s, int64_t done, int64_t lines) {
  const F f;
  constexpr int kN = steps_for(kM);
  constexpr int64_t kSize = bytes_of(kElement);
  constexpr int64_t kTake = 16 * kN / kSize;
  const int64_t stride = s.b.operand.stride * kSize;
  const int64_t count = s.b.count;
  const auto* base = static_cast<const uint8_t*>(s.b.operand.data) + (s.b.line + done) * stride;
  const auto* a = static_cast<const float*>(s.a);
  V sum[kM][kGroups];
#pragma GCC unroll 8
  for (int r = 0; r < kM; ++r)
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) sum[r][g] = hn::Zero(f);
  int64_t k = 0;
  if (lines == kGroups * kLanes) {
    // Fetch the next lines into the L2 cache meanwhile, in the order of memory: the processor's own
    // prefetching is slow to start on short lines. (Fetching into L1 was measured to halve the
    // rate.)
    const int64_t fetch = lines * stride <= kMaxAhead ? kGroups * kLanes * 16 * kN : 0;
    const bool last = done + lines == s.b.lines && s.next;
    const uint8_t* ahead = last ? static_cast<const uint8_t*>(s.next) : base + lines * stride;
    V words[4 * kN];
    for (; k + kTake <= count; k += kTake) {
      for (const uint8_t* end = ahead + fetch; ahead < end; ahead += 64)
        __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        transpose<kN>(base + g * kLanes * stride + k * kSize, stride, words);
        multiply_words<kElement, 4 * kN>(words, a + k, s.a_stride, s.b.round, g, sum);
      }
    }
  } else if (kGroups == 1 && lines % 4 == 0) {  // a router's
    constexpr int64_t kFew = 32 / kSize;
    const auto blocks = static_cast<int>(lines / 4);
    V words[8];
    for (; k + kFew <= count; k += kFew) {
      transpose<2>(base + k * kSize, stride, words, blocks);
      multiply_words<kElement, 8>(words, a + k, s.a_stride, s.b.round, 0, sum);
    }
  }
  alignas(64) float sums[kM][kGroups * kLanes];
#pragma GCC unroll 8
  for (int r = 0; r < kM; ++r)
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) hn::Store(sum[r][g], f, sums[r] + g * kLanes);
  if (k < count) add_rest<kElement>(s, done, lines, k, kGroups, sums[0]);
  for (int r = 0; r < kM; ++r)
    finish_row(sums[r], s.c + done + r * s.c_stride, lines, s.scale, s.accumulate);
}

/// Lines in one bundle, of few rows, are one stream that the processor itself reads ahead, and that
/// was measured to be faster than two with what comes after them fetched.
constexpr int kBundleVectors = static_cast<int>(kInterleavedLines) / kLanes;
constexpr int kBundleRows = 2;

/// The same of interleaved lines: kVectors vectors of them, from line `done` of the stream on.
template <Element kElement, int kM, int kVectors>
void stream_interleaved(const Stream& s, int64_t done) {
  const F f;
  constexpr int64_t kPerWord = 4 / bytes_of(kElement);
  constexpr int kWords = 4;  // at a time
  const int64_t words = s.b.count / kPerWord;
  const auto* a = static_cast<const float*>(s.a);
  V sum[kM][kVectors];
  const float* from[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    from[v] = interleaved_word(s.b.operand, s.b.line + done + v * kLanes, 0, kPerWord);
#pragma GCC unroll 8
    for (int r = 0; r < kM; ++r) sum[r][v] = hn::Zero(f);
  }
  // Where there are more, the lines after these are fetched into the L2 cache meanwhile, in the
  // order of memory.
  constexpr int64_t kLines = kVectors * kLanes;
  const int64_t bytes = kLines * words * 4;
  const bool last = done + kLines == s.b.lines;
  const auto* ahead = reinterpret_cast<const uint8_t*>(from[0]) + bytes;
  if (last && s.next) ahead = static_cast<const uint8_t*>(s.next);
  const bool fetches = kM > kBundleRows && bytes <= kMaxAhead && kLines % kInterleavedLines == 0;
  const int64_t fetch = fetches ? kLines * kWords * 4 : 0;
  int64_t w = 0;
  V loaded[kWords];
  for (; w + kWords <= words; w += kWords) {
    for (const uint8_t* end = ahead + fetch; ahead < end; ahead += 64)
      __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
      for (int i = 0; i < kWords; ++i)
        loaded[i] = hn::LoadU(f, from[v] + (w + i) * kInterleavedLines);
      multiply_words<kElement, kWords>(loaded, a + w * kPerWord, s.a_stride, s.b.round, v, sum);
    }
  }
  for (; w < words; ++w)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      loaded[0] = hn::LoadU(f, from[v] + w * kInterleavedLines);
      multiply_words<kElement, 1>(loaded, a + w * kPerWord, s.a_stride, s.b.round, v, sum);
    }
  alignas(64) float sums[kVectors * kLanes];
  for (int r = 0; r < kM; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) hn::Store(sum[r][v], f, sums + v * kLanes);
    finish_row(sums, s.c + done + r * s.c_stride, kLines, s.scale, s.accumulate);
  }
}

template <Element kElement, int kM>
void stream_rows(const Stream& s) {
  int64_t done = 0;
  if (s.b.operand.layout == Layout::interleaved) {
    constexpr int kVectors = kM <= kBundleRows ? kBundleVectors : 2;
    for (; done + kVectors * kLanes <= s.b.lines; done += kVectors * kLanes)
      stream_interleaved<kElement, kM, kVectors>(s, done);
    for (; done < s.b.lines; done += kLanes) stream_interleaved<kElement, kM, 1>(s, done);
    return;
  }
  for (; done + 2 * kLanes <= s.b.lines; done += 2 * kLanes)
    stream_lines<kElement, kM, 2>(s, done, 2 * kLanes);
  for (; done < s.b.lines; done += kLanes)
    stream_lines<kElement, kM, 1>(s, done, HWY_MIN(s.b.lines - done, int64_t{kLanes}));
}

template <Element kElement, int... kM>
void choose_stream(const Stream& s, std::integer_sequence<int, kM...>) {
  static constexpr void (*kTable[])(const Stream&) = {stream_rows<kElement, kM + 1>...};
  kTable[s.rows - 1](s);
}

void stream(const Stream& s) {
  constexpr std::make_integer_sequence<int, kStreamRows> kSizes;
  switch (s.b.operand.element) {
    case Element::f32:
      return choose_stream<Element::f32>(s, kSizes);
    case Element::bf16:
      return choose_stream<Element::bf16>(s, kSizes);
    case Element::f16:
      return choose_stream<Element::f16>(s, kSizes);
  }
}

}  // namespace

StreamKernel get_float_stream() { return stream; }
#endif

}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {

HWY_EXPORT(get_float_stream);

StreamKernel float_stream() { return HWY_DYNAMIC_DISPATCH(get_float_stream)(); }

}  // namespace mixtral::cpu
#endif
