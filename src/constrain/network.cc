#include "constrain/network.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace mixtral::constrain {
namespace {

constexpr size_t kMostPlaces = 20'000;  // 512 bytes each

CharSet range_of(int32_t first, int32_t last) { return CharSet({{first, last}}); }

}  // namespace

uint32_t CharClasses::add(const CharSet& set) {
  const auto [known, is_new] = ids_.try_emplace(set, size());
  if (!is_new) return known->second;
  Row row{};
  for (const CharRange& range : set.ranges())
    for (int32_t code = range.first; code <= std::min(range.last, 0x7F); ++code)
      row[static_cast<size_t>(code)] = kComplete;
  // A lead byte covers a range of characters; the bytes behind it count from `base` on.
  const auto lead = [&](int32_t byte, int32_t base, int bytes, int32_t least) {
    const int32_t last = base + (1 << (6 * bytes)) - 1;
    const CharSet part = set & range_of(std::max(base, least), last);
    if (!part.empty()) row[static_cast<size_t>(byte)] = tail(part, base, bytes);
  };
  for (int32_t byte = 0xC2; byte <= 0xDF; ++byte) lead(byte, (byte - 0xC0) << 6, 1, 0x80);
  for (int32_t byte = 0xE0; byte <= 0xEF; ++byte) lead(byte, (byte - 0xE0) << 12, 2, 0x800);
  for (int32_t byte = 0xF0; byte <= 0xF4; ++byte) lead(byte, (byte - 0xF0) << 18, 3, 0x10000);
  sets_.push_back(set);
  roots_.push_back(add_row(row));
  covers_plain_.push_back(set.covers(plain_chars()));
  return known->second;
}

uint16_t CharClasses::tail(const CharSet& set, int32_t base, int bytes) {
  Row row{};
  const int32_t width = 1 << (6 * (bytes - 1));
  // Most parts of a range are the whole of what a byte covers, and all of these are alike.
  uint16_t whole = kDead;
  for (int32_t i = 0; i < 64; ++i) {
    const int32_t first = base + i * width;
    const CharSet wanted = range_of(first, first + width - 1);
    const CharSet part = set & wanted;
    if (part.empty()) continue;
    uint16_t& place = row[0x80 + static_cast<size_t>(i)];
    if (bytes == 1) {
      place = kComplete;
    } else if (part.ranges().size() == 1 && part == wanted &&
               part.ranges()[0].last == first + width - 1) {
      if (whole == kDead) whole = tail(part, first, bytes - 1);
      place = whole;
    } else {
      place = tail(part, first, bytes - 1);
    }
  }
  return add_row(row);
}

uint16_t CharClasses::add_row(const Row& row) {
  const std::string key(reinterpret_cast<const char*>(row.data()), sizeof row);
  const auto [known, is_new] = row_ids_.try_emplace(key, static_cast<uint16_t>(rows_.size()));
  if (is_new) {
    if (rows_.size() >= kMostPlaces)
      throw Error("the character classes are too many; use fewer different ones");
    rows_.push_back(row);
  }
  return known->second;
}

}  // namespace mixtral::constrain
