#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace mixtral {

/// Philox4x32-10: a counter-based generator (Salmon et al., "Parallel random numbers: as easy as
/// 1, 2, 3", SC'11). The same (key, counter) gives the same four words on every machine, thread and
/// backend, so random numbers need no shared state and no order of evaluation.
constexpr std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter_high,
                                         uint64_t counter_low) {
  std::array<uint32_t, 4> c{
      static_cast<uint32_t>(counter_low), static_cast<uint32_t>(counter_low >> 32),
      static_cast<uint32_t>(counter_high), static_cast<uint32_t>(counter_high >> 32)};
  auto k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

/// A uniform float in [0, 1) from 24 bits of a word, and one in (0, 1] for logarithms.
constexpr float unit_float(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }
constexpr float unit_float_open(uint32_t word) {
  return static_cast<float>((word >> 8) + 1) * 0x1p-24f;
}

/// A sequence of random numbers: (seed, stream) names it, `position` says how far it has come. The
/// three numbers are its whole state, so saving and restoring a stream is copying them.
class RandomStream {
 public:
  RandomStream() = default;
  explicit RandomStream(uint64_t seed, uint64_t stream = 0, uint64_t position = 0)
      : seed_(seed), stream_(stream), position_(position) {}

  uint64_t seed() const { return seed_; }
  uint64_t stream() const { return stream_; }
  uint64_t position() const { return position_; }

  /// 64 random bits.
  uint64_t next() {
    const auto words = philox(seed_, stream_, position_ >> 1);
    const int half = static_cast<int>(position_++ & 1) * 2;
    return uint64_t{words[half]} | uint64_t{words[half + 1]} << 32;
  }
  /// Uniform in [0, 1), 53 bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  __extension__ using Wide = unsigned __int128;
  /// Uniform in [0, n), without bias (Lemire's multiply-and-reject). n > 0.
  uint64_t below(uint64_t n) {
    const uint64_t limit = (0 - n) % n;
    while (true) {
      const Wide product = static_cast<Wide>(next()) * n;
      if (static_cast<uint64_t>(product) >= limit) return static_cast<uint64_t>(product >> 64);
    }
  }
  /// Standard normal (Box-Muller; one number for two uniforms).
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1.0 - uniform()));
    return radius * std::cos(2 * M_PI * uniform());
  }

 private:
  uint64_t seed_ = 0, stream_ = 0, position_ = 0;
};

}  // namespace mixtral
