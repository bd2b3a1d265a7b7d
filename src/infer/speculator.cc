#include "infer/speculator.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "infer/prompt_lookup.h"

namespace mixtral {
namespace {

constexpr double kLongMemory = 200;  // tests that count for all sequences together
constexpr double kFirstChance = 0.6, kFirstWeight = 2;
constexpr double kSequenceWeight = 3;  // tests that all sequences' rate counts for in each one's
constexpr double kLeastChance = 0.01, kMostChance = 0.98;

/// Longer matches are more often right.
size_t kind_of_match(int64_t matched) {
  return matched <= 2 ? 0 : matched == 3 ? 1 : matched <= 5 ? 2 : matched <= 9 ? 3 : 4;
}

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Speculator::Speculator(Backend& backend, const ModelConfig& config, Options options)
    : options_(std::move(options)),
      budget_({.rows = options_.rows, .adapt = options_.how.adapt, .padded = options_.padded}),
      acceptance_{AcceptanceRate(kLongMemory), AcceptanceRate(kLongMemory),
                  AcceptanceRate(kLongMemory), AcceptanceRate(kLongMemory),
                  AcceptanceRate(kLongMemory)} {
  const Mixtral* model = options_.how.draft_model;
  if (!options_.how.seconds) options_.how.seconds = steady_seconds;
  if (!model) return;
  if (model->config().vocab_size != config.vocab_size)
    throw Error(
        fmt::format("the draft model has a vocabulary of {} tokens, the model one of {}; a draft "
                    "model needs the same vocabulary",
                    model->config().vocab_size, config.vocab_size));
  model_.emplace(backend, *model,
                 DraftModel::Options{.sequences = options_.sequences,
                                     .context = options_.context,
                                     .tokens = options_.how.tokens,
                                     .chunk = options_.chunk,
                                     .pad = options_.pad});
}

double Speculator::now() const { return options_.how.seconds(); }

void Speculator::prepare(const GenerationOptions& options) {
  if (model_) model_->prepare(options);
}

void Speculator::forget(RequestId id) {
  if (model_) model_->forget(id);
}

/// Which tokens a constraint allows depends on the token before, which a draft only guesses.
bool Speculator::may_speculate(const Sequence& sequence) const {
  return !sequence.request.allow && room(sequence) > 0;
}

/// Draft tokens that its limits leave room for, besides the token that is drawn anyway.
int64_t Speculator::room(const Sequence& sequence) const {
  return std::min({options_.how.tokens, sequence.request.options.max_tokens - sequence.drawn() - 1,
                   options_.context - sequence.length()});
}

double Speculator::chance(const Sequence& sequence) const {
  const double of_all = acceptance_[sequence.draft_kind].share(kFirstChance, kFirstWeight);
  return std::clamp(sequence.acceptance.share(of_all, kSequenceWeight), kLeastChance, kMostChance);
}

void Speculator::draft(std::span<Sequence* const> decoding) {
  step_begin_ = now();
  drafting_seconds_ = 0;
  std::vector<Sequence*> sequences;
  for (Sequence* sequence : decoding) {
    sequence->draft.clear();
    sequence->drafted = sequence->accepted = 0;
    if (may_speculate(*sequence)) sequences.push_back(sequence);
  }
  if (sequences.empty()) return;
  const auto count = std::ssize(decoding);
  if (model_)
    run_draft_model(sequences, count);
  else
    look_up_drafts(sequences, count);
  for (Sequence* sequence : sequences) {
    // Nothing comes after a token that ends the text.
    const auto& stops = sequence->request.options.stop_ids;
    const auto end = std::ranges::find_if(
        sequence->draft, [&](int32_t id) { return std::ranges::find(stops, id) != stops.end(); });
    sequence->draft.erase(end, sequence->draft.end());
    sequence->drafted = std::min(sequence->drafted, static_cast<int64_t>(sequence->draft.size()));
  }
}

void Speculator::look_up_drafts(std::span<Sequence* const> sequences, int64_t decoding) {
  std::vector<DraftCandidate> candidates;
  for (Sequence* sequence : sequences) {
    LookedUp found = look_up(sequence->tokens, room(*sequence));
    sequence->draft = std::move(found.tokens);
    sequence->draft_kind = kind_of_match(found.matched);
    candidates.push_back(
        {.most = static_cast<int64_t>(sequence->draft.size()), .chance = chance(*sequence)});
  }
  const std::vector<int64_t> chosen = budget_.choose(decoding, candidates);
  for (size_t i = 0; i < sequences.size(); ++i) sequences[i]->drafted = chosen[i];
}

void Speculator::run_draft_model(std::span<Sequence* const> sequences, int64_t decoding) {
  std::vector<DraftCandidate> candidates;
  for (const Sequence* sequence : sequences)
    candidates.push_back({.most = room(*sequence), .chance = chance(*sequence)});
  const std::vector<int64_t> chosen = budget_.choose(decoding, candidates);
  const int64_t deepest = std::ranges::max(chosen);
  if (deepest == 0) return;
  const double begin = now();
  const bool only_drafted = model_->draft(sequences, chosen);
  drafting_seconds_ = now() - begin;
  if (only_drafted) budget_.note_drafting(deepest, drafting_seconds_);
  for (Sequence* sequence : sequences)
    sequence->drafted = static_cast<int64_t>(sequence->draft.size());
}

void Speculator::note_drawn(Sequence& sequence, bool as_drafted) {
  acceptance_[sequence.draft_kind].note(as_drafted);
  sequence.acceptance.note(as_drafted);
}

void Speculator::end_step(const Scheduler::Step& step) {
  int64_t accepted = 0;
  for (const Sequence* sequence : step.decode) accepted += sequence->accepted;
  counts_.drafted += step.drafted();
  counts_.accepted += accepted;
  const double seconds = now() - step_begin_;
  if (!step.prefill.empty()) return;
  const auto decoding = std::ssize(step.decode);
  budget_.note_step(decoding + step.drafted(), seconds - drafting_seconds_);
  const auto plain = budget_.step_seconds(decoding);
  if (!plain) return;
  counts_.seconds += seconds;
  counts_.plain_seconds +=
      *plain * static_cast<double>(decoding + accepted) / static_cast<double>(decoding);
}

}  // namespace mixtral
