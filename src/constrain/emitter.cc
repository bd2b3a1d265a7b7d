#include "constrain/emitter.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "base/error.h"
#include "base/printable.h"

namespace mixtral::constrain {
namespace {

constexpr size_t kMostInstructions = 200'000;
constexpr uint64_t kMostSteps = 2'000'000;
constexpr int64_t kInlinedWeight = 24;  // instructions of a rule that is written where it is called
constexpr int64_t kHeavy = int64_t{1} << 30;
constexpr uint32_t kEnd = 0;  // the one instruction that ends every rule
constexpr int kEndless = 64;  // of Instruction::run

}  // namespace

std::shared_ptr<const Network> Emitter::emit(Rule root) {
  const size_t count = expression_.rules_.size();
  inlined_.resize(count, Inlined::unknown);
  range_.resize(count);
  callers_.resize(count);
  network_->classes = expression_.classes_;
  network_->starts.resize(count, kEnd);
  network_->root = root;
  add({.op = Op::end});
  rules_ = reachable(root);
  // Backwards: later rules are mostly what earlier ones go on with.
  std::ranges::sort(rules_, std::greater());
  for (const Rule rule : rules_) {
    range_[rule].first = static_cast<uint32_t>(network_->instructions.size());
    network_->starts[rule] = emit(expression_.rules_[rule].part, kEnd);
    range_[rule].second = static_cast<uint32_t>(network_->instructions.size());
  }
  for (const Rule rule : rules_) {
    for (uint32_t at = range_[rule].first; at < range_[rule].second; ++at) {
      const auto& instruction = network_->instructions[at];
      if (instruction.op == Op::jump || instruction.op == Op::call)
        callers_[instruction.value].push_back(rule);
    }
  }
  refuse_left_recursion();
  find_needs();
  const uint16_t need = network_->instructions[network_->starts[root]].need;
  if (need == Network::kNever)
    throw Error("no text fits: each way through the grammar contradicts itself or never ends");
  if (need + 1 > Network::kMostDepth)
    throw Error(
        fmt::format("the grammar has rules within one another to a depth of {}; at most {} "
                    "are accepted",
                    need + 1, Network::kMostDepth));
  find_runs();
  return network_;
}

std::vector<Expression::Rule> Emitter::reachable(Rule root) const {
  std::vector<bool> seen_rule(expression_.rules_.size()), seen_part(expression_.nodes_.size());
  std::vector<Rule> rules;
  std::vector<Part> parts;
  const auto visit = [&](Rule rule) {
    if (seen_rule[rule]) return;
    seen_rule[rule] = true;
    rules.push_back(rule);
    parts.push_back(expression_.rules_[rule].part);
  };
  visit(root);
  while (!parts.empty()) {
    const Part part = parts.back();
    parts.pop_back();
    if (seen_part[part]) continue;
    seen_part[part] = true;
    const auto& node = expression_.nodes_[part];
    parts.insert(parts.end(), node.parts.begin(), node.parts.end());
    if (node.kind == Expression::Kind::call) visit(node.value);
  }
  return rules;
}

uint32_t Emitter::add(Network::Instruction instruction) {
  if (network_->instructions.size() >= kMostInstructions)
    throw Error(
        fmt::format("the grammar takes more than {} instructions; use smaller counts of "
                    "repetition, shorter texts or fewer rules",
                    kMostInstructions));
  network_->instructions.push_back(instruction);
  return static_cast<uint32_t>(network_->instructions.size() - 1);
}

uint32_t Emitter::add_split(const std::vector<uint32_t>& targets) {
  const auto first = static_cast<uint32_t>(network_->targets.size());
  if (first + targets.size() > 4 * kMostInstructions)
    throw Error("the grammar has too many alternatives; use fewer");
  network_->targets.insert(network_->targets.end(), targets.begin(), targets.end());
  return add({.op = Op::split, .value = first, .next = static_cast<uint32_t>(targets.size())});
}

uint32_t Emitter::emit(Part part, uint32_t next) {
  if (++steps_ > kMostSteps)
    throw Error(
        "the grammar has too many parts within one another; use smaller counts of "
        "repetition");
  const auto& node = expression_.nodes_[part];
  switch (node.kind) {
    case Expression::Kind::empty:
      return next;
    case Expression::Kind::never:
      return add_split({});
    case Expression::Kind::chars:
      return add({.op = Op::chars, .value = node.value, .next = next});
    case Expression::Kind::sequence:
      for (auto i = node.parts.rbegin(); i != node.parts.rend(); ++i) next = emit(*i, next);
      return next;
    case Expression::Kind::choice: {
      std::vector<uint32_t> targets;
      targets.reserve(node.parts.size());
      for (const Part alternative : node.parts) targets.push_back(emit(alternative, next));
      return add_split(targets);
    }
    case Expression::Kind::repeat:
      return emit_repeat(node, next);
    case Expression::Kind::call:
      if (is_inlined(node.value)) return emit(expression_.rules_[node.value].part, next);
      if (next == kEnd) return add({.op = Op::jump, .value = node.value});
      return add({.op = Op::call, .value = node.value, .next = next});
  }
  CHECK(false);
}

uint32_t Emitter::emit_repeat(const Expression::Node& node, uint32_t next) {
  const Part part = node.parts[0];
  uint32_t at = next;
  if (node.most) {
    for (uint64_t i = node.least; i < *node.most; ++i) {
      const uint32_t body = emit(part, at);
      at = add_split({body, next});
    }
  } else {
    at = add_split({kEnd, next});  // the body is put in when it is known
    const uint32_t body = emit(part, at);
    network_->targets[network_->instructions[at].value] = body;
    mark_loop(body, at);
  }
  for (uint64_t i = 0; i < node.least; ++i) at = emit(part, at);
  return at;
}

void Emitter::mark_loop(uint32_t body, uint32_t loop) {
  const auto mark = [&](uint32_t at) {
    auto& chars = network_->instructions[at];
    if (chars.op == Op::chars && chars.next == loop && network_->classes.covers_plain(chars.value))
      chars.run = kEndless;
  };
  const auto& head = network_->instructions[body];
  mark(body);
  if (head.op == Op::split)
    for (const uint32_t target : network_->targets_of(head)) mark(target);
}

bool Emitter::is_inlined(Rule rule) {
  if (inlined_[rule] == Inlined::unknown && open_ < kInlinedWeight) {
    inlined_[rule] = Inlined::open;  // what is met again while it is open is recursive
    ++open_;
    const bool light = weight(expression_.rules_[rule].part) <= kInlinedWeight;
    --open_;
    inlined_[rule] = light ? Inlined::yes : Inlined::no;
  }
  return inlined_[rule] == Inlined::yes;
}

int64_t Emitter::weight(Part part) {
  const auto& node = expression_.nodes_[part];
  if (node.kind == Expression::Kind::call)
    return is_inlined(node.value) ? weight(expression_.rules_[node.value].part) : kHeavy;
  int64_t sum = 1;
  for (const Part inner : node.parts) {
    sum += weight(inner);
    if (sum > kInlinedWeight) return kHeavy;
  }
  if (node.kind == Expression::Kind::repeat)
    sum *= static_cast<int64_t>(std::min<uint64_t>(
        kInlinedWeight + 1, std::max<uint64_t>(1, node.most.value_or(node.least + 1))));
  return sum;
}

// The rules that `rule` may begin with; `ends`: whether it reaches its end without a character.
std::vector<Expression::Rule> Emitter::first_calls(Rule rule, const std::vector<bool>& nullable,
                                                   bool& ends) const {
  std::vector<Rule> calls;
  std::vector<uint32_t> open{network_->starts[rule]};
  std::unordered_set<uint32_t> seen;
  ends = false;
  while (!open.empty()) {
    const uint32_t at = open.back();
    open.pop_back();
    const auto& instruction = network_->instructions[at];
    if (instruction.op == Op::chars || !seen.insert(at).second) continue;
    if (instruction.op == Op::end) ends = true;
    if (instruction.op == Op::split)
      for (const uint32_t target : network_->targets_of(instruction)) open.push_back(target);
    if (instruction.op == Op::call || instruction.op == Op::jump) {
      calls.push_back(instruction.value);
      if (!nullable[instruction.value]) continue;
      if (instruction.op == Op::jump)
        ends = true;
      else
        open.push_back(instruction.next);
    }
  }
  return calls;
}

void Emitter::refuse_left_recursion() const {
  const size_t count = network_->starts.size();
  std::vector<bool> nullable(count);
  // A rule's answer changes at most once, and then its callers are asked again.
  std::vector<Rule> work = rules_;
  while (!work.empty()) {
    const Rule rule = work.back();
    work.pop_back();
    bool ends = false;
    if (nullable[rule]) continue;
    first_calls(rule, nullable, ends);
    if (!ends) continue;
    nullable[rule] = true;
    work.insert(work.end(), callers_[rule].begin(), callers_[rule].end());
  }
  enum class Mark : uint8_t { unseen, open, done };
  std::vector<Mark> marks(count, Mark::unseen);
  struct Visit {
    Rule rule;
    std::vector<Rule> calls;
    size_t next = 0;
  };
  for (const Rule start : rules_) {
    if (marks[start] != Mark::unseen) continue;
    std::vector<Visit> path;
    const auto enter = [&](Rule rule) {
      bool ends = false;
      marks[rule] = Mark::open;
      path.push_back({rule, first_calls(rule, nullable, ends)});
    };
    enter(start);
    while (!path.empty()) {
      Visit& visit = path.back();
      if (visit.next == visit.calls.size()) {
        marks[visit.rule] = Mark::done;
        path.pop_back();
        continue;
      }
      const Rule next = visit.calls[visit.next++];
      if (marks[next] == Mark::open)
        throw Error(
            fmt::format("{} begins with itself (left recursion); put a character first, or "
                        "repeat with *",
                        printable(expression_.rules_[next].name)));
      if (marks[next] == Mark::unseen) enter(next);
    }
  }
}

void Emitter::find_needs() {
  for (auto& instruction : network_->instructions) instruction.need = Network::kNever;
  network_->instructions[kEnd].need = 0;
  std::vector<Rule> work = rules_;
  std::ranges::sort(work);  // the last, which is taken first, calls those before it least
  std::vector<bool> waits(network_->starts.size());
  for (const Rule rule : work) waits[rule] = true;
  while (!work.empty()) {
    const Rule rule = work.back();
    work.pop_back();
    waits[rule] = false;
    if (!find_needs_of(rule)) continue;
    for (const Rule caller : callers_[rule]) {
      if (waits[caller]) continue;
      waits[caller] = true;
      work.push_back(caller);
    }
  }
}

// Whether the need of the rule's start changed. In the order of instructions what follows one comes
// before it, but for loops, whose bodies need no less than what is behind them.
bool Emitter::find_needs_of(Rule rule) {
  auto& code = network_->instructions;
  const auto start_need = [&](Rule of) { return code[network_->starts[of]].need; };
  const uint16_t before = start_need(rule);
  const auto find = [&](const Network::Instruction& i) -> uint16_t {
    switch (i.op) {
      case Op::chars:
        return code[i.next].need;
      case Op::split: {
        uint16_t least = Network::kNever;
        for (const uint32_t target : network_->targets_of(i))
          least = std::min(least, code[target].need);
        return least;
      }
      case Op::jump:
        return start_need(i.value);
      case Op::call: {
        const uint16_t inner = start_need(i.value);
        if (inner >= Network::kNever - 1) return Network::kNever;
        return std::max<uint16_t>(inner + 1, code[i.next].need);
      }
      case Op::end:
        return 0;
    }
    return Network::kNever;
  };
  for (uint32_t at = range_[rule].first; at < range_[rule].second; ++at)
    code[at].need = find(code[at]);
  return start_need(rule) != before;
}

// Finds less than there is where loops are within loops, which only costs time.
void Emitter::find_runs() {
  auto& code = network_->instructions;
  for (const Rule rule : rules_) {
    const auto& head = code[network_->starts[rule]];
    const auto mark = [&](uint32_t at) {
      auto& chars = code[at];
      if (chars.op != Op::chars || !network_->classes.covers_plain(chars.value)) return;
      const auto& next = code[chars.next];
      if (next.op == Op::jump && next.value == rule) chars.run = kEndless;
    };
    mark(network_->starts[rule]);
    if (head.op == Op::split)
      for (const uint32_t target : network_->targets_of(head)) mark(target);
  }
  for (auto& i : code) {
    if (i.op == Op::chars && i.run < kEndless && network_->classes.covers_plain(i.value))
      i.run = static_cast<uint8_t>(std::min(kEndless, 1 + code[i.next].run));
    if (i.op == Op::split)
      for (const uint32_t target : network_->targets_of(i))
        i.run = std::max(i.run, code[target].run);
    if (i.op == Op::jump) i.run = code[network_->starts[i.value]].run;
  }
}

}  // namespace mixtral::constrain
