#include "text/byte_level.h"

#include "text/unicode.h"

namespace mixtral {

const ByteLevelAlphabet& ByteLevelAlphabet::get() {
  static const ByteLevelAlphabet alphabet;
  return alphabet;
}

ByteLevelAlphabet::ByteLevelAlphabet() {
  bytes_.fill(-1);
  int32_t next = 0x100;
  for (int32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    const int32_t code = printable ? byte : next++;
    bytes_[static_cast<size_t>(code)] = static_cast<int16_t>(byte);
    append_utf8(code, characters_[static_cast<size_t>(byte)]);
  }
}

std::string ByteLevelAlphabet::write(std::string_view bytes) const {
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const char c : bytes) text += characters_[static_cast<unsigned char>(c)];
  return text;
}

std::optional<std::string> ByteLevelAlphabet::read(std::string_view text) const {
  std::string bytes;
  while (!text.empty()) {
    const Character c = first_character(text);
    if (c.code < 0 || c.code >= static_cast<int32_t>(bytes_.size())) return std::nullopt;
    const int16_t byte = bytes_[static_cast<size_t>(c.code)];
    if (byte < 0) return std::nullopt;
    bytes += static_cast<char>(byte);
    text.remove_prefix(c.length);
  }
  return bytes;
}

}  // namespace mixtral
