#include "text/utf8.h"

#include <algorithm>

namespace mixtral {
namespace {

unsigned char byte_at(std::string_view text, size_t i) {
  return static_cast<unsigned char>(text[i]);
}

/// The length that a lead byte announces, 0 for a byte that cannot lead.
size_t announced_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;  // a continuation byte, or an overlong form of an ASCII character
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

/// How many bytes of `text`, up to what its lead byte announces, could be one character. The second
/// byte is where overlong forms, surrogates and code points above U+10FFFF show.
size_t plausible_bytes(std::string_view text, size_t announced) {
  size_t count = 1;
  while (count < announced && count < text.size()) {
    const unsigned char byte = byte_at(text, count);
    unsigned char low = 0x80, high = 0xBF;
    if (count == 1) {
      switch (byte_at(text, 0)) {
        case 0xE0:
          low = 0xA0;
          break;
        case 0xED:
          high = 0x9F;
          break;
        case 0xF0:
          low = 0x90;
          break;
        case 0xF4:
          high = 0x8F;
          break;
        default:
          break;
      }
    }
    if (byte < low || byte > high) break;
    ++count;
  }
  return count;
}

}  // namespace

size_t utf8_length(std::string_view text) {
  if (text.empty()) return 0;
  const size_t announced = announced_length(byte_at(text, 0));
  if (announced <= 1) return announced;
  return plausible_bytes(text, announced) == announced ? announced : 0;
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

size_t incomplete_utf8_tail(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const std::string_view tail = text.substr(text.size() - back);
    const size_t announced = announced_length(byte_at(tail, 0));
    if (announced == 0) continue;  // a continuation byte: its lead is further back
    return announced > back && plausible_bytes(tail, announced) == back ? back : 0;
  }
  return 0;
}

std::string to_valid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0) {
      valid += "\uFFFD";
      text.remove_prefix(1);
    } else {
      valid += text.substr(0, length);
      text.remove_prefix(length);
    }
  }
  return valid;
}

}  // namespace mixtral
