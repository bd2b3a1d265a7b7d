#pragma once

#include <array>
#include <optional>
#include <span>

#include "infer/draft_model.h"
#include "infer/scheduler.h"
#include "infer/speculation.h"

namespace mixtral {

/// The speculation of an engine: drafts tokens for its sequences, and learns from what becomes of
/// them how many are worth a step's time.
class Speculator {
 public:
  struct Options {
    SpeculationOptions how;
    int64_t sequences = 1, context = 0, chunk = 256;
    int64_t rows = 0;                        // draft tokens of a step, at most
    bool pad = false;                        // the draft model's steps
    std::function<int64_t(int64_t)> padded;  // DraftBudget's
  };
  Speculator(Backend& backend, const ModelConfig& config, Options options);

  /// A sequence comes that draws so, and one has ended.
  void prepare(const GenerationOptions& options);
  void forget(RequestId id);

  /// Before a step: fills in what these sequences, all that it takes one token of, may get of draft
  /// tokens (Sequence::draft and drafted).
  void draft(std::span<Sequence* const> decoding);
  /// One token after another was drawn where a draft said what would come.
  void note_drawn(Sequence& sequence, bool as_drafted);
  /// After the step, with what was accepted.
  void end_step(const Scheduler::Step& step);

  const SpeculationCounts& counts() const { return counts_; }

 private:
  bool may_speculate(const Sequence& sequence) const;
  int64_t room(const Sequence& sequence) const;
  double chance(const Sequence& sequence) const;
  void look_up_drafts(std::span<Sequence* const> sequences, int64_t decoding);
  void run_draft_model(std::span<Sequence* const> sequences, int64_t decoding);
  double now() const;

  Options options_;
  DraftBudget budget_;
  std::optional<DraftModel> model_;
  // By Sequence::draft_kind: how many tokens of a looked-up draft's end matched.
  static constexpr size_t kKinds = 5;
  std::array<AcceptanceRate, kKinds> acceptance_;
  SpeculationCounts counts_;
  double step_begin_ = 0, drafting_seconds_ = 0;
};

}  // namespace mixtral
