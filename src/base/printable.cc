#include "base/printable.h"

#include <fmt/format.h>

#include <cstdint>

namespace mixtral {
namespace {

constexpr size_t kLongestQuoted = 80;

struct Character {
  uint32_t code = 0;
  size_t length = 0;  // in bytes; 0: no valid UTF-8 begins here
};

/// The character at the beginning of `text`, which is not empty.
Character first_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {lead, 1};
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return {};
  uint32_t code = lead & (0xffu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    const auto next = static_cast<unsigned char>(text[i]);
    if ((next & 0xc0) != 0x80) return {};
    code = code << 6 | (next & 0x3f);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kLeast[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return {};
  return {code, length};
}

/// Whether a character does something to a terminal, or to the order or look of what stands beside
/// it, instead of being seen. From Unicode's general categories Cc, Zl, Zp and Cf.
bool is_hidden(uint32_t code) {
  constexpr struct {
    uint32_t first, last;
  } kHidden[] = {{0x00, 0x1f},     {0x7f, 0x9f},     {0xad, 0xad},      {0x61c, 0x61c},
                 {0x180e, 0x180e}, {0x200b, 0x200f}, {0x2028, 0x202e},  {0x2060, 0x206f},
                 {0xfeff, 0xfeff}, {0xfff9, 0xfffb}, {0xe0000, 0xe0fff}};
  for (const auto& range : kHidden)
    if (code >= range.first && code <= range.last) return true;
  return false;
}

void append_escape(std::string& text, uint32_t code) {
  auto out = std::back_inserter(text);
  if (code == '\n')
    text += "\\n";
  else if (code == '\r')
    text += "\\r";
  else if (code == '\t')
    text += "\\t";
  else if (code < 0x80)
    fmt::format_to(out, "\\x{:02x}", code);
  else if (code < 0x10000)
    fmt::format_to(out, "\\u{:04x}", code);
  else
    fmt::format_to(out, "\\U{:08x}", code);
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string shown;
  shown.reserve(text.size());
  while (!text.empty()) {
    const Character c = first_character(text);
    if (c.length == 0)
      fmt::format_to(std::back_inserter(shown), "\\x{:02x}", static_cast<unsigned char>(text[0]));
    else if (is_hidden(c.code))
      append_escape(shown, c.code);
    else
      shown += text.substr(0, c.length);
    text.remove_prefix(c.length == 0 ? 1 : c.length);
  }
  return shown;
}

std::string printable(std::string_view text) {
  if (text.size() <= kLongestQuoted) return escaped(text);
  size_t end = kLongestQuoted;
  // Not inside a character, which has three more bytes at most.
  while (end > kLongestQuoted - 3 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return escaped(text.substr(0, end)) + "...";
}

}  // namespace mixtral
