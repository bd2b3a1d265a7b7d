#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "constrain/interned_lists.h"
#include "constrain/network.h"
#include "constrain/vocabulary.h"

namespace mixtral::constrain {

/// The deterministic automaton of a network, made as far as texts need it, with the mask of each
/// state once it was asked for.
///
/// A state is a set of threads: a place in the network, and the stacks of calls that may have led
/// to it. All stacks that differ only further down are one graph (as in Tomita's parser), kept once
/// each, so that a state holds each place once however ambiguous the grammar is. A step by a byte
/// is one look into a table from the second time on; states that are alike but for their way share
/// everything. So masks in a list of objects, say, are computed for its first item only.
///
/// The mask of a new state is a walk over the vocabulary's tries. Where any plain character may
/// follow (in most strings), all plain tokens are allowed without a walk.
///
/// It holds all that was computed until that has grown to `most_bytes`; then its users move to a
/// successor that begins afresh. Each function locks.
class Automaton {
 public:
  using State = uint32_t;
  static constexpr State kDead = 0;
  static constexpr size_t kMostBytes = size_t{24} << 20;

  Automaton(std::shared_ptr<const Network> network, std::shared_ptr<const Vocabulary> vocabulary,
            size_t most_bytes = kMostBytes);

  State start() const { return start_; }
  /// The state after `text`, or kDead.
  State step(State state, std::string_view text);
  bool accepts(State state) const;
  /// Whether nothing can follow.
  bool is_last(State state) const;
  /// Clears the bits of the tokens that may not follow; returns whether any is left.
  bool allow(State state, std::span<uint32_t> mask);

  const Vocabulary& vocabulary() const { return *vocabulary_; }
  /// Where the table is full: the automaton that goes on, and the state there; else null.
  std::pair<std::shared_ptr<Automaton>, State> successor(State state);

 private:
  // A frame of a stack: where the call goes on, and the stacks below. Lists of them stand for sets
  // of stacks; list 0 is empty.
  struct Frame {
    uint32_t back = 0, below = 0;
  };
  struct Thread {
    uint32_t at = 0;     // an instruction of kind `chars`
    uint32_t place = 0;  // of its class: the root, or within a character
    uint32_t stacks = 0;
  };
  struct Entry {
    std::array<State, 256> next;
    std::vector<uint32_t> mask;
    bool accepts = false, last = false;
    uint8_t run = 0;
  };
  static constexpr State kUnknown = 0xFFFFFFFF;
  static constexpr uint32_t kBottom = 0xFFFFFFFF;  // Frame::back of the root rule

  State next(State state, uint8_t byte) {
    const State known = entries_[state]->next[byte];
    return known != kUnknown ? known : compute_next(state, byte);
  }
  State compute_next(State state, uint8_t byte);
  void begin();
  void open(uint32_t at, uint32_t stacks);
  State close();
  uint32_t add_stacks(std::span<const Frame> frames);
  uint32_t unite(uint32_t a, uint32_t b);
  uint32_t import_stacks(const Automaton& other, uint32_t stacks,
                         std::map<uint32_t, uint32_t>& known);
  void compute_mask(State state);
  void walk(const Vocabulary::Trie& trie, State state, std::vector<uint32_t>& mask);
  void spend(uint64_t work);
  size_t bytes() const;

  const std::shared_ptr<const Network> network_;
  const std::shared_ptr<const Vocabulary> vocabulary_;
  const size_t most_bytes_;
  mutable std::mutex mutex_;
  std::weak_ptr<Automaton> successor_;  // held by its users

  InternedLists<Frame> stacks_;
  std::vector<uint16_t> depths_;  // by list of frames
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> united_;
  InternedLists<Thread> threads_;  // by state
  std::vector<std::unique_ptr<Entry>> entries_;
  State start_ = kDead;
  size_t mask_bytes_ = 0;
  uint64_t work_ = 0;  // of the call under way

  // Of the state that is being made.
  std::vector<Thread> made_;
  std::vector<std::pair<uint32_t, uint32_t>> open_;  // instruction, stacks
  std::vector<uint32_t> seen_, seen_stacks_;         // by instruction: the round, and the stacks
  uint32_t round_ = 0;
  std::vector<uint32_t> reached_;
  bool ends_ = false;
};

}  // namespace mixtral::constrain
