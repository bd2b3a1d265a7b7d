#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/json.h"

namespace mixtral {

/// What a tokenizer.json does to text before it is split, step by step. Each step never throws but
/// for a pattern that takes too long.
class HfNormalizer {
 public:
  HfNormalizer() = default;
  /// Reads the field "normalizer": null, or one of NFC, NFD, NFKC, NFKD, Lowercase, Strip,
  /// StripAccents, Replace, Prepend, ByteLevel and a Sequence of them. Throws Error naming any
  /// other.
  explicit HfNormalizer(const Json& json) { read(json); }

  bool empty() const { return steps_.empty(); }
  std::string normalize(std::string text) const;

 private:
  void read(const Json& json);
  std::vector<std::function<void(std::string&)>> steps_;
};

}  // namespace mixtral
