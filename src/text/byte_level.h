#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mixtral {

/// The alphabet of byte-level vocabularies (GPT-2): every byte is written as a printable character,
/// so that any bytes are a text of such characters. Printable Latin-1 bytes are themselves; the
/// others are, in order, U+0100 and up.
class ByteLevelAlphabet {
 public:
  static const ByteLevelAlphabet& get();

  std::string_view character(unsigned char byte) const { return characters_[byte]; }
  /// The text in this alphabet.
  std::string write(std::string_view bytes) const;
  /// The bytes of a text in this alphabet; nothing when a character is not of it.
  std::optional<std::string> read(std::string_view text) const;

 private:
  ByteLevelAlphabet();
  std::array<std::string, 256> characters_;
  std::array<int16_t, 0x144> bytes_{};  // by code point; -1 for one that is not of the alphabet
};

}  // namespace mixtral
