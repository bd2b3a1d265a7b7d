#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "constrain/expression.h"
#include "constrain/regex.h"

namespace mixtral::constrain {

/// What texts have to be, all at once.
struct TextConditions {
  /// Languages that they are in, and that they are not in. The networks have one rule each.
  std::vector<std::shared_ptr<const Network>> matched, refused;
  uint64_t least = 0;            // characters
  std::optional<uint64_t> most;  // characters
  /// The integer that the digits write is a multiple of this.
  std::optional<uint32_t> multiple_of;
};

/// The texts that meet all of the conditions, as rules of a deterministic automaton over
/// characters. Throws Error, which names `what`, where that would have too many states.
Expression::Part add_conditions(Expression& expression, const TextConditions& conditions,
                                const CharWriter& write, const std::string& what);

/// A network of one rule that reads what `make` writes into an expression.
std::shared_ptr<const Network> network_of(const std::function<Expression::Part(Expression&)>& make);

}  // namespace mixtral::constrain
