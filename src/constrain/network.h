#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "constrain/char_set.h"

namespace mixtral::constrain {

/// Sets of characters as automata over the bytes of UTF-8. All sets of a network share one table of
/// places, so that equal tails ("two more bytes, any") are one place.
class CharClasses {
 public:
  static constexpr uint16_t kDead = 0, kComplete = 1;

  /// The number of a set; equal sets have one. Throws Error when there are too many.
  uint32_t add(const CharSet& set);
  const CharSet& set(uint32_t id) const { return sets_[id]; }
  uint32_t size() const { return static_cast<uint32_t>(sets_.size()); }
  /// The place before the first byte of a character.
  uint16_t root(uint32_t id) const { return roots_[id]; }
  /// Whether all plain characters are in the set.
  bool covers_plain(uint32_t id) const { return covers_plain_[id]; }
  /// The place after a byte: kDead, kComplete at the character's end, or one within it.
  uint16_t step(uint16_t place, uint8_t byte) const { return rows_[place][byte]; }

 private:
  using Row = std::array<uint16_t, 256>;
  uint16_t add_row(const Row& row);
  uint16_t tail(const CharSet& set, int32_t base, int bytes);

  std::map<CharSet, uint32_t> ids_;
  std::vector<CharSet> sets_;
  std::vector<uint16_t> roots_;
  std::vector<bool> covers_plain_;
  std::vector<Row> rows_{Row{}, Row{}};
  std::unordered_map<std::string, uint16_t> row_ids_;
};

/// A compiled grammar: rules made of instructions, where a rule may call another and go on behind
/// the call. A text is in the language when some way through the root rule reads all of it.
/// Immutable.
class Network {
 public:
  static constexpr uint16_t kNever = 0xFFFF;   // as `need`: there is no way to the end
  static constexpr uint16_t kMostDepth = 256;  // of calls within one another

  struct Instruction {
    enum class Op : uint8_t {
      chars,  // reads a character of class `value`, then `next`
      split,  // any of `next` targets from targets[value] on
      jump,   // rule `value`, whose end is this rule's end
      call,   // rule `value`, then `next`
      end,    // of the rule
    };
    Op op = Op::end;
    uint8_t run = 0;    // so many plain characters (64: any number) can be read from here on
    uint16_t need = 0;  // the least depth of calls on a way from here to the rule's end
    uint32_t value = 0, next = 0;
  };

  std::vector<Instruction> instructions;
  std::vector<uint32_t> targets;
  std::vector<uint32_t> starts;  // by rule, its first instruction
  uint32_t root = 0;             // a rule
  CharClasses classes;

  std::span<const uint32_t> targets_of(const Instruction& split) const {
    return std::span(targets).subspan(split.value, split.next);
  }
};

}  // namespace mixtral::constrain
