#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "infer/decode_rows.h"
#include "infer/scheduler.h"
#include "model/mixtral.h"
#include "ops/recordings.h"

namespace mixtral {

/// A second, smaller model that drafts tokens for an engine's sequences (Leviathan et al. 2023). It
/// draws as the sequence does, with the same settings at the same positions: so a draft token is
/// accepted where both models' distributions order and weigh the likely tokens alike. It has
/// its own key-value cache.
class DraftModel {
 public:
  struct Options {
    int64_t sequences = 1, context = 0;
    int64_t tokens = 4;  // of a draft, at most
    int64_t chunk =
        256;           // tokens that it reads in one call to catch up with its sequences, at most
    bool pad = false;  // steps to powers of two of rows, so that few shapes need a recording
  };
  /// `model` must outlive this. Throws Error when it was prepared for fewer positions.
  DraftModel(Backend& backend, const Mixtral& model, const Options& options);

  /// Prepares for a sequence, as DecodeRows::prepare.
  void prepare(const GenerationOptions& options);
  /// Fills in Sequence::draft with up to most[i] tokens, none where the draft model is still
  /// reading what the sequence has. Returns whether all it had to read was drawn since the last
  /// call.
  bool draft(std::span<Sequence* const> sequences, std::span<const int64_t> most);
  /// The sequence has ended.
  void forget(RequestId id);

  int64_t used_pages() const { return cache_.pages() - cache_.free_pages(); }

 private:
  struct State {
    int32_t cache_row = -1;
    std::vector<int32_t> tokens;  // whose keys and values are in the cache
  };
  /// A sequence in a call.
  struct Seat {
    Sequence* sequence = nullptr;
    State* state = nullptr;
    int64_t most = 0;
    int64_t pending = 0;  // of its tokens, those that are not in the cache
  };

  bool make_drafts(std::span<Sequence* const> sequences, std::span<const int64_t> most);
  State& state_of(RequestId id, std::span<Sequence* const> sequences);
  void rewind(State& state, const Sequence& sequence);
  bool catch_up(std::vector<Seat>& seats);
  void place(std::span<const Seat> seats);
  void run(int64_t rows);
  void forward(int64_t rows);

  Backend& backend_;
  const Mixtral& model_;
  Options options_;
  Arena arena_;
  Context ctx_;
  KvCache cache_;
  DecodeRows rows_;
  Recordings recordings_;
  std::map<RequestId, State> states_;
  int64_t taken_rows_ = 0;  // of the last call; rows from here on are padding
};

}  // namespace mixtral
