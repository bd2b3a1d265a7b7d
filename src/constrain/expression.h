#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "constrain/network.h"

namespace mixtral::constrain {

/// Builds a network out of parts: characters, sequences, choices, repetitions and calls of rules.
/// Each function returns the number of a part. Parts may be used many times. Throws Error when
/// there are too many.
class Expression {
 public:
  using Part = uint32_t;
  using Rule = uint32_t;

  Expression();

  Part empty() const { return 0; }  // the empty text
  Part never() const { return 1; }  // no text
  Part chars(const CharSet& set);
  /// The text itself, valid UTF-8.
  Part text(std::string_view text);
  /// Any of the texts, which share their beginnings.
  Part words(const std::vector<std::string>& texts);
  Part sequence(std::vector<Part> parts);
  Part choice(std::vector<Part> parts);
  /// `part` from `least` to `most` times; without `most`, any number of times from `least` on.
  Part repeat(Part part, uint64_t least, std::optional<uint64_t> most = {});
  Part optional(Part part) { return repeat(part, 0, 1); }

  /// A rule by the name that errors call it by. It has to be defined before compile().
  Rule add_rule(std::string name);
  void define(Rule rule, Part part) { rules_[rule].part = part; }
  Part call(Rule rule);

  /// Throws Error: naming a rule that begins with itself; where no text fits; where the network
  /// would be too large or recursion needs too great a depth.
  std::shared_ptr<const Network> compile(Rule root);

 private:
  friend class Emitter;
  enum class Kind : uint8_t { empty, never, chars, sequence, choice, repeat, call };
  struct Node {
    Kind kind = Kind::empty;
    uint32_t value = 0;  // of chars the class, of call the rule
    uint64_t least = 0;
    std::optional<uint64_t> most;
    std::vector<Part> parts;
  };
  struct RuleEntry {
    std::string name;
    Part part = 1;
  };
  Part add(Node node);
  Part words(const std::vector<std::u32string>& texts, size_t begin, size_t end, size_t at,
             int depth);

  std::vector<Node> nodes_;
  std::vector<RuleEntry> rules_;
  std::map<uint32_t, Part> chars_;  // by class
  std::map<Rule, Part> calls_;
  uint64_t size_ = 0;
  CharClasses classes_;
};

}  // namespace mixtral::constrain
