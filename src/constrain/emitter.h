#pragma once

#include <memory>
#include <vector>

#include "constrain/expression.h"

namespace mixtral::constrain {

/// Writes an expression's rules as the instructions of a network.
class Emitter {
 public:
  using Part = Expression::Part;
  using Rule = Expression::Rule;

  explicit Emitter(const Expression& expression) : expression_(expression) {}
  std::shared_ptr<const Network> emit(Rule root);

 private:
  using Op = Network::Instruction::Op;
  enum class Inlined : uint8_t { unknown, open, yes, no };

  std::vector<Rule> reachable(Rule root) const;
  uint32_t add(Network::Instruction instruction);
  uint32_t add_split(const std::vector<uint32_t>& targets);
  uint32_t emit(Part part, uint32_t next);
  uint32_t emit_repeat(const Expression::Node& node, uint32_t next);
  void mark_loop(uint32_t body, uint32_t loop);
  bool is_inlined(Rule rule);
  int64_t weight(Part part);

  void refuse_left_recursion() const;
  std::vector<Rule> first_calls(Rule rule, const std::vector<bool>& nullable, bool& ends) const;
  void find_needs();
  bool find_needs_of(Rule rule);
  void find_runs();

  const Expression& expression_;
  std::shared_ptr<Network> network_ = std::make_shared<Network>();
  std::vector<Inlined> inlined_;
  std::vector<Rule> rules_;                           // those that are written
  std::vector<std::pair<uint32_t, uint32_t>> range_;  // by rule, its instructions
  std::vector<std::vector<Rule>> callers_;            // by rule
  uint64_t steps_ = 0;
  int64_t open_ = 0;  // rules whose weight is being found
};

}  // namespace mixtral::constrain
