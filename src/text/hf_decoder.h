#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/json.h"

namespace mixtral {

/// How a tokenizer.json turns pieces back into text. Every decoder that is read here works piece by
/// piece, but for the first piece of a text, so that text can be shown token by token.
class HfDecoder {
 public:
  HfDecoder() = default;
  /// Reads the field "decoder": null, or one of ByteLevel, Metaspace, Replace, ByteFallback, Fuse,
  /// Strip and a Sequence of them. Throws Error naming any other, and for what does not work piece
  /// by piece.
  explicit HfDecoder(const Json& json);

  /// The bytes that a piece adds in the middle of a text.
  std::string middle(const std::string& piece) const;
  /// The bytes that it adds at the beginning of a text.
  std::string start(const std::string& piece) const;

 private:
  void read(const Json& json);

  using Step = std::function<void(std::string&)>;
  std::vector<Step> steps_;
  std::string stripped_;    // what the first bytes of a text lose; empty: nothing
  std::string first_only_;  // what the first piece loses wherever it stands; empty: nothing
  bool fused_ = false, spaces_between_ = false;
};

}  // namespace mixtral
