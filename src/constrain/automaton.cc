#include "constrain/automaton.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace mixtral::constrain {
namespace {

using Op = Network::Instruction::Op;

constexpr uint64_t kMostWork = 1'000'000;  // threads and nodes that one call may look at

}  // namespace

Automaton::Automaton(std::shared_ptr<const Network> network,
                     std::shared_ptr<const Vocabulary> vocabulary, size_t most_bytes)
    : network_(std::move(network)),
      vocabulary_(std::move(vocabulary)),
      most_bytes_(most_bytes),
      seen_(network_->instructions.size()),
      seen_stacks_(network_->instructions.size()) {
  add_stacks({});
  close();  // the dead state
  CHECK(entries_.size() == 1);
  begin();
  const Frame bottom{.back = kBottom, .below = 0};
  open(network_->starts[network_->root], add_stacks({&bottom, 1}));
  start_ = close();
}

uint32_t Automaton::add_stacks(std::span<const Frame> frames) {
  const auto [id, is_new] = stacks_.add(frames);
  if (is_new) {
    uint16_t depth = 0;
    for (const Frame& frame : frames)
      depth = std::max<uint16_t>(depth, static_cast<uint16_t>(depths_[frame.below] + 1));
    depths_.push_back(depth);
  }
  return id;
}

// The union of two sets of stacks. Its frames are sorted by `back`, without duplicates.
uint32_t Automaton::unite(uint32_t a, uint32_t b) {
  if (a == b) return a;
  if (a > b) std::swap(a, b);
  const auto known = united_.find({a, b});
  if (known != united_.end()) return known->second;
  const std::vector<Frame> left(stacks_[a].begin(), stacks_[a].end());
  const std::vector<Frame> right(stacks_[b].begin(), stacks_[b].end());
  std::vector<Frame> both;
  auto l = left.begin(), r = right.begin();
  while (l != left.end() || r != right.end()) {
    if (r == right.end() || (l != left.end() && l->back < r->back))
      both.push_back(*l++);
    else if (l == left.end() || r->back < l->back)
      both.push_back(*r++);
    else {
      both.push_back({l->back, unite(l->below, r->below)});
      ++l;
      ++r;
    }
  }
  spend(both.size());
  const uint32_t id = add_stacks(both);
  united_[{a, b}] = id;
  return id;
}

// Begins to make a state, and forgets what an error may have left of another.
void Automaton::begin() {
  ++round_;
  made_.clear();
  open_.clear();
  reached_.clear();
  ends_ = false;
}

// Adds an instruction, and all that is reached from it without a byte, to the state being made.
void Automaton::open(uint32_t first, uint32_t first_stacks) {
  open_.emplace_back(first, first_stacks);
  while (!open_.empty()) {
    auto [at, stacks] = open_.back();
    open_.pop_back();
    spend(1);
    const auto& instruction = network_->instructions[at];
    // Too deep to come to an end (or there is none): every thread that is left can be finished.
    if (instruction.need + depths_[stacks] > Network::kMostDepth) continue;
    if (instruction.op == Op::end) {
      const std::vector<Frame> frames(stacks_[stacks].begin(), stacks_[stacks].end());
      for (const Frame& frame : frames) {
        if (frame.back == kBottom)
          ends_ = true;
        else
          open_.emplace_back(frame.back, frame.below);
      }
      continue;
    }
    if (seen_[at] == round_) {
      stacks = unite(seen_stacks_[at], stacks);
      if (stacks == seen_stacks_[at]) continue;
    } else if (instruction.op == Op::chars) {
      reached_.push_back(at);
    }
    seen_[at] = round_;
    seen_stacks_[at] = stacks;
    switch (instruction.op) {
      case Op::split:
        for (const uint32_t target : network_->targets_of(instruction))
          open_.emplace_back(target, stacks);
        break;
      case Op::jump:
        open_.emplace_back(network_->starts[instruction.value], stacks);
        break;
      case Op::call: {
        const Frame frame{.back = instruction.next, .below = stacks};
        open_.emplace_back(network_->starts[instruction.value], add_stacks({&frame, 1}));
        break;
      }
      case Op::chars:
      case Op::end:
        break;
    }
  }
}

// Makes a state of what was opened, and of `made_`, the threads within a character.
Automaton::State Automaton::close() {
  uint8_t run = 0;
  for (const uint32_t at : reached_) {
    const auto& chars = network_->instructions[at];
    run = std::max(run, chars.run);
    made_.push_back({at, network_->classes.root(chars.value), seen_stacks_[at]});
  }
  reached_.clear();
  std::ranges::sort(made_, {}, [](const Thread& t) { return std::pair(t.at, t.place); });
  size_t kept = 0;
  for (const Thread& thread : made_) {
    if (kept > 0 && made_[kept - 1].at == thread.at && made_[kept - 1].place == thread.place)
      made_[kept - 1].stacks = unite(made_[kept - 1].stacks, thread.stacks);
    else
      made_[kept++] = thread;
  }
  made_.resize(kept);
  // Two states with the same threads may differ in whether the text may end, which a last thread
  // tells.
  const bool last = made_.empty();
  if (ends_) made_.push_back({kBottom, 0, 0});
  const auto [state, is_new] = threads_.add(made_);
  if (is_new) {
    auto entry = std::make_unique<Entry>();
    entry->next.fill(last ? kDead : kUnknown);
    entry->accepts = ends_;
    entry->last = last;
    entry->run = run;
    entries_.push_back(std::move(entry));
    // A single walk must not grow without bound either.
    if (bytes() > 4 * most_bytes_)
      throw Error(
          "the grammar is too ambiguous: its next step takes more memory than there is; "
          "write it with fewer ways to read one text");
  }
  made_.clear();
  ends_ = false;
  return state;
}

Automaton::State Automaton::compute_next(State state, uint8_t byte) {
  const CharClasses& classes = network_->classes;
  begin();
  const size_t count = threads_[state].size();
  for (size_t i = 0; i < count; ++i) {
    const Thread thread = threads_[state][i];
    if (thread.at == kBottom) continue;
    const uint16_t place = classes.step(static_cast<uint16_t>(thread.place), byte);
    if (place == CharClasses::kDead) continue;
    if (place == CharClasses::kComplete)
      open(network_->instructions[thread.at].next, thread.stacks);
    else
      made_.push_back({thread.at, place, thread.stacks});
  }
  spend(count);
  return entries_[state]->next[byte] = close();
}

void Automaton::spend(uint64_t work) {
  work_ += work;
  if (work_ > kMostWork)
    throw Error(
        "the grammar is too ambiguous: its next step takes too long; write it with fewer "
        "ways to read one text");
}

size_t Automaton::bytes() const {
  return entries_.size() * (sizeof(Entry) + 32) + threads_.bytes() + stacks_.bytes() +
         united_.size() * 64 + mask_bytes_;
}

Automaton::State Automaton::step(State state, std::string_view text) {
  const std::lock_guard lock(mutex_);
  work_ = 0;
  for (const char c : text) {
    if (state == kDead) break;
    state = next(state, static_cast<uint8_t>(c));
  }
  return state;
}

bool Automaton::accepts(State state) const {
  const std::lock_guard lock(mutex_);
  return entries_[state]->accepts;
}

bool Automaton::is_last(State state) const {
  const std::lock_guard lock(mutex_);
  return entries_[state]->last;
}

bool Automaton::allow(State state, std::span<uint32_t> mask) {
  const std::lock_guard lock(mutex_);
  work_ = 0;
  if (entries_[state]->mask.empty()) compute_mask(state);
  const std::vector<uint32_t>& allowed = entries_[state]->mask;
  uint32_t any = 0;
  for (size_t i = 0; i < mask.size(); ++i) {
    mask[i] &= i < allowed.size() ? allowed[i] : 0;
    any |= mask[i];
  }
  return any != 0;
}

void Automaton::compute_mask(State state) {
  std::vector<uint32_t> mask((static_cast<size_t>(vocabulary_->size()) + 31) / 32 + 1);
  const auto allow = [&](int32_t token) {
    mask[static_cast<size_t>(token) / 32] |= uint32_t{1} << (token % 32);
  };
  if (entries_[state]->run >= Vocabulary::kMostPlainChars)
    std::ranges::copy(vocabulary_->plain_mask(), mask.begin());
  else
    walk(vocabulary_->plain(), state, mask);
  walk(vocabulary_->rest(), state, mask);
  for (const int32_t stop : vocabulary_->stops())
    if (entries_[state]->accepts) allow(stop);
  mask_bytes_ += mask.size() * sizeof mask[0];
  entries_[state]->mask = std::move(mask);
}

void Automaton::walk(const Vocabulary::Trie& trie, State start, std::vector<uint32_t>& mask) {
  const auto allow = [&](uint32_t begin, uint32_t end) {
    for (uint32_t i = begin; i < end; ++i) {
      const int32_t token = trie.tokens[i];
      mask[static_cast<size_t>(token) / 32] |= uint32_t{1} << (token % 32);
    }
  };
  std::array<State, Vocabulary::kLongestToken + 1> states;
  states[0] = start;
  const auto count = static_cast<uint32_t>(trie.nodes.size() - 1);
  for (uint32_t i = 1; i < count;) {
    const Vocabulary::Node& node = trie.nodes[i];
    const State state = next(states[node.depth - size_t{1}], node.byte);
    if (state == kDead) {
      i = node.end;
      continue;
    }
    if (node.chars <= entries_[state]->run) {  // all that is below fits
      allow(node.first, trie.nodes[node.end].first);
      i = node.end;
      continue;
    }
    allow(node.first, node.first + node.own);
    states[node.depth] = state;
    ++i;
  }
}

std::pair<std::shared_ptr<Automaton>, Automaton::State> Automaton::successor(State state) {
  const std::lock_guard lock(mutex_);
  if (bytes() <= most_bytes_) return {};
  auto next = successor_.lock();
  if (!next) {
    next = std::make_shared<Automaton>(network_, vocabulary_, most_bytes_);
    successor_ = next;
  }
  // Nobody holds the successor's lock and waits for this one: moves go one way.
  const std::lock_guard next_lock(next->mutex_);
  std::map<uint32_t, uint32_t> known;
  next->begin();
  next->work_ = 0;
  for (const Thread& thread : threads_[state]) {
    if (thread.at == kBottom)
      next->ends_ = true;
    else
      next->made_.push_back(
          {thread.at, thread.place, next->import_stacks(*this, thread.stacks, known)});
  }
  const State moved = next->close();
  next->entries_[moved]->run = entries_[state]->run;
  return {next, moved};
}

uint32_t Automaton::import_stacks(const Automaton& other, uint32_t stacks,
                                  std::map<uint32_t, uint32_t>& known) {
  const auto found = known.find(stacks);
  if (found != known.end()) return found->second;
  std::vector<Frame> frames(other.stacks_[stacks].begin(), other.stacks_[stacks].end());
  for (Frame& frame : frames) frame.below = import_stacks(other, frame.below, known);
  return known[stacks] = add_stacks(frames);
}

}  // namespace mixtral::constrain
