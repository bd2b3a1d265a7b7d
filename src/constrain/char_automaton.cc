#include "constrain/char_automaton.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/error.h"

namespace mixtral::constrain {
namespace {

using Op = Network::Instruction::Op;

constexpr size_t kMostStates = 20'000;
constexpr uint64_t kMostCharWork = 30'000'000;

// Cuts the alphabet into the largest sets that every class contains whole or not at all.
std::vector<CharSet> cut_alphabet(const std::vector<CharSet>& sets) {
  std::vector<int32_t> cuts{0};
  for (const CharSet& set : sets)
    for (const CharRange& range : set.ranges()) {
      cuts.push_back(range.first);
      cuts.push_back(range.last + 1);
    }
  std::ranges::sort(cuts);
  cuts.erase(std::ranges::unique(cuts).begin(), cuts.end());
  std::map<std::vector<bool>, std::vector<CharRange>> alike;
  for (size_t i = 0; i < cuts.size(); ++i) {
    const int32_t last = i + 1 < cuts.size() ? cuts[i + 1] - 1 : 0x10FFFF;
    if (cuts[i] > last) continue;
    std::vector<bool> in;
    in.reserve(sets.size());
    for (const CharSet& set : sets) in.push_back(set.contains(cuts[i]));
    alike[in].push_back({cuts[i], last});
  }
  std::vector<CharSet> atoms;
  atoms.reserve(alike.size());
  for (auto& [in, ranges] : alike) atoms.emplace_back(std::move(ranges));
  std::erase_if(atoms, [](const CharSet& atom) { return atom.empty(); });
  return atoms;
}

/// One network, followed by sets of its instructions.
class Follower {
 public:
  Follower(const Network& network, const std::vector<CharSet>& atoms) : network_(network) {
    for (uint32_t id = 0; id < network.classes.size(); ++id)
      for (const CharSet& atom : atoms)
        reads_.push_back(network.classes.set(id).contains(atom.ranges()[0].first));
    atoms_ = atoms.size();
  }
  // The instruction 0 in a set, which ends the rule, says that the text may end.
  std::vector<uint32_t> start() { return closure({network_.starts[network_.root]}); }
  std::vector<uint32_t> step(std::span<const uint32_t> from, size_t atom) {
    std::vector<uint32_t> next;
    for (const uint32_t at : from) {
      const auto& i = network_.instructions[at];
      if (i.op == Op::chars && reads_[i.value * atoms_ + atom]) next.push_back(i.next);
    }
    return closure(std::move(next));
  }

 private:
  std::vector<uint32_t> closure(std::vector<uint32_t> open) {
    std::vector<uint32_t> reached, seen;
    while (!open.empty()) {
      const uint32_t at = open.back();
      open.pop_back();
      const auto& i = network_.instructions[at];
      CHECK(i.op != Op::call && i.op != Op::jump);
      if (i.op != Op::split) {
        reached.push_back(at);
      } else if (!std::ranges::count(seen, at)) {
        seen.push_back(at);
        for (const uint32_t target : network_.targets_of(i)) open.push_back(target);
      }
    }
    std::ranges::sort(reached);
    reached.erase(std::ranges::unique(reached).begin(), reached.end());
    return reached;
  }

  const Network& network_;
  std::vector<bool> reads_;  // by class and atom
  size_t atoms_ = 0;
};

class Product {
 public:
  Product(const TextConditions& conditions, const std::string& what)
      : conditions_(conditions), what_(what) {
    std::vector<CharSet> sets;
    for (const auto* networks : {&conditions.matched, &conditions.refused})
      for (const auto& network : *networks)
        for (uint32_t id = 0; id < network->classes.size(); ++id)
          sets.push_back(network->classes.set(id));
    if (conditions.multiple_of)
      for (char c = '0'; c <= '9'; ++c) sets.push_back(CharSet::one(c));
    atoms_ = cut_alphabet(sets);
    for (const auto* networks : {&conditions.matched, &conditions.refused})
      for (const auto& network : *networks) followers_.emplace_back(*network, atoms_);
  }

  Expression::Part write(Expression& expression, const CharWriter& write) {
    State start;
    for (Follower& follower : followers_) start.sets.push_back(follower.start());
    add(std::move(start));
    for (size_t i = 0; i < states_.size(); ++i) follow(i);
    const std::vector<bool> useful = find_useful();
    if (!useful[0]) return expression.never();
    std::vector<Expression::Rule> rules;
    rules.reserve(states_.size());
    for (size_t i = 0; i < states_.size(); ++i) rules.push_back(expression.add_rule(what_));
    for (size_t i = 0; i < states_.size(); ++i) {
      std::vector<Expression::Part> choices;
      for (const auto& [target, atoms] : edges_[i]) {
        if (!useful[target]) continue;
        std::vector<CharRange> ranges;
        for (const size_t atom : atoms)
          ranges.insert(ranges.end(), atoms_[atom].ranges().begin(), atoms_[atom].ranges().end());
        choices.push_back(expression.sequence(
            {write(CharSet(std::move(ranges))), expression.call(rules[target])}));
      }
      if (accepts(*states_[i])) choices.push_back(expression.empty());
      expression.define(rules[i], expression.choice(std::move(choices)));
    }
    return expression.call(rules[0]);
  }

 private:
  struct State {
    std::vector<std::vector<uint32_t>> sets;  // by follower
    uint64_t count = 0;                       // characters, as far as they matter
    uint32_t residue = 0;
    friend auto operator<=>(const State&, const State&) = default;
  };

  size_t add(State state) {
    const auto [known, is_new] = ids_.try_emplace(std::move(state), states_.size());
    if (is_new) {
      if (states_.size() >= kMostStates)
        throw Error(
            fmt::format("{}: these conditions together take more than {} states; use "
                        "smaller lengths or a simpler pattern",
                        what_, kMostStates));
      states_.push_back(&known->first);
      edges_.emplace_back();
    }
    return known->second;
  }

  void follow(size_t index) {
    const State from = *states_[index];
    if (conditions_.most && from.count == *conditions_.most) return;
    for (size_t atom = 0; atom < atoms_.size(); ++atom) {
      State to;
      bool dead = false;
      for (size_t f = 0; f < followers_.size() && !dead; ++f) {
        work_ += 1 + from.sets[f].size();
        to.sets.push_back(followers_[f].step(from.sets[f], atom));
        dead = f < conditions_.matched.size() && to.sets.back().empty();
      }
      if (work_ > kMostCharWork)
        throw Error(
            fmt::format("{}: these conditions together take too long to combine; use "
                        "smaller lengths or a simpler pattern",
                        what_));
      if (dead) continue;
      to.count = conditions_.most ? from.count + 1 : std::min(from.count + 1, conditions_.least);
      if (conditions_.multiple_of) {
        const int32_t c = atoms_[atom].ranges()[0].first;
        to.residue = from.residue;
        if (c >= '0' && c <= '9')
          to.residue =
              (from.residue * 10 + static_cast<uint32_t>(c - '0')) % *conditions_.multiple_of;
      }
      const size_t target = add(std::move(to));  // before edges_ is looked into, which it grows
      edges_[index][target].push_back(atom);
    }
  }

  bool accepts(const State& state) const {
    if (state.count < conditions_.least || state.residue != 0) return false;
    for (size_t f = 0; f < state.sets.size(); ++f) {
      const bool matches = !state.sets[f].empty() && state.sets[f][0] == 0;
      if (matches != (f < conditions_.matched.size())) return false;
    }
    return true;
  }

  // The states from which a text can still come to an end.
  std::vector<bool> find_useful() const {
    std::vector<std::vector<size_t>> before(states_.size());
    for (size_t i = 0; i < states_.size(); ++i)
      for (const auto& [target, atoms] : edges_[i]) before[target].push_back(i);
    std::vector<bool> useful(states_.size());
    std::vector<size_t> open;
    for (size_t i = 0; i < states_.size(); ++i)
      if (accepts(*states_[i])) open.push_back(i);
    while (!open.empty()) {
      const size_t state = open.back();
      open.pop_back();
      if (useful[state]) continue;
      useful[state] = true;
      open.insert(open.end(), before[state].begin(), before[state].end());
    }
    return useful;
  }

  const TextConditions& conditions_;
  const std::string& what_;
  std::vector<CharSet> atoms_;
  std::vector<Follower> followers_;
  std::map<State, size_t> ids_;
  std::vector<const State*> states_;
  std::vector<std::map<size_t, std::vector<size_t>>> edges_;  // by state and target, the atoms
  uint64_t work_ = 0;
};

}  // namespace

Expression::Part add_conditions(Expression& expression, const TextConditions& conditions,
                                const CharWriter& write, const std::string& what) {
  return Product(conditions, what).write(expression, write);
}

std::shared_ptr<const Network> network_of(
    const std::function<Expression::Part(Expression&)>& make) {
  Expression expression;
  const auto root = expression.add_rule("the text");
  expression.define(root, make(expression));
  return expression.compile(root);
}

}  // namespace mixtral::constrain
