#include "constrain/matcher.h"

#include "constrain/automaton.h"

namespace mixtral::constrain {

Matcher::Matcher(const Grammar& grammar, std::shared_ptr<const Vocabulary> vocabulary)
    : automaton_(std::make_shared<Automaton>(grammar.shared_network(), std::move(vocabulary))),
      state_(automaton_->start()) {}

void Matcher::move_on() {
  if (auto [automaton, state] = automaton_->successor(state_); automaton) {
    automaton_ = std::move(automaton);
    state_ = state;
  }
}

bool Matcher::allow(std::span<uint32_t> mask) {
  move_on();
  return automaton_->allow(ended_ ? Automaton::kDead : state_, mask);
}

bool Matcher::accept(int32_t token) {
  const Vocabulary& vocabulary = automaton_->vocabulary();
  if (ended_ || token < 0) return false;
  if (vocabulary.is_stop(token)) {
    ended_ = can_end();
    return ended_;
  }
  if (token >= vocabulary.size() || vocabulary.bytes(token).empty()) return false;
  return accept_text(vocabulary.bytes(token));
}

bool Matcher::accept_text(std::string_view text) {
  move_on();
  const uint32_t next = ended_ ? Automaton::kDead : automaton_->step(state_, text);
  if (next == Automaton::kDead) return false;
  state_ = next;
  return true;
}

bool Matcher::can_end() const { return automaton_->accepts(state_); }

bool Matcher::must_end() const { return ended_ || automaton_->is_last(state_); }

}  // namespace mixtral::constrain
