#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

namespace mixtral {

class Mixtral;

/// Speculative decoding (Leviathan et al. 2023; Chen et al. 2023): draft tokens go through the
/// model together with the token that they may follow, and those are accepted that are drawn
/// anyway. A draw depends on seed and position, so the tokens are those of an engine without it.
struct SpeculationOptions {
  int64_t tokens = 0;  // draft tokens of a sequence in a step, at most; 0: no speculation
  /// Drafts them, on the same backend, with the same vocabulary; must outlive the engine. Null:
  /// they are looked up in the sequence's own tokens (infer/prompt_lookup.h).
  const Mixtral* draft_model = nullptr;
  bool adapt = true;                // take fewer where time is lost by them (DraftBudget)
  std::function<double()> seconds;  // a clock; empty: the steady clock
};

/// Draft tokens that a step over so many sequences takes in all, at most, of `tokens` each: with
/// many sequences, a step has enough rows without.
int64_t draft_rows(int64_t sequences, int64_t tokens);

/// What came of it so far.
struct SpeculationCounts {
  int64_t drafted = 0;   // draft tokens that went through the model
  int64_t accepted = 0;  // of these
  // Steps without prompts whose time without draft tokens is known: their time, and what as many
  // tokens would have taken without.
  double seconds = 0, plain_seconds = 0;

  double gain() const { return seconds > 0 ? plain_seconds / seconds : 1; }
  SpeculationCounts& operator+=(const SpeculationCounts& more);
};

/// How often draft tokens are accepted, the later ones counting more.
class AcceptanceRate {
 public:
  /// `memory`: how many tests count, about.
  explicit AcceptanceRate(double memory) : keep_(1 - 1 / memory) {}
  void note(bool accepted);
  /// The share of accepted tokens. `prior` counts as the share of `weight` further tests.
  double share(double prior, double weight) const {
    return (accepted_ + weight * prior) / (tested_ + weight);
  }

 private:
  double keep_, tested_ = 0, accepted_ = 0;
};

/// How long work of each size takes: the median of the last few times, and straight lines between
/// the sizes that were measured.
class SizeTimes {
 public:
  void note(int64_t size, double seconds);
  /// Nothing: no size was measured. Above the largest measured size, its time.
  std::optional<double> seconds(int64_t size) const;
  /// Whether this size was measured among the last `notes` notes.
  bool is_fresh(int64_t size, int64_t notes) const;

 private:
  static constexpr size_t kKept = 5;
  struct Times {
    int64_t noted = 0, last = 0;
    std::vector<double> latest;
    double median = 0;
  };
  std::map<int64_t, Times> sizes_;
  int64_t notes_ = 0;
};

/// A sequence that may take draft tokens.
struct DraftCandidate {
  int64_t most = 0;   // so many
  double chance = 0;  // that one is accepted, if those before it are
};

/// Decides how many draft tokens a step takes: as many as let most tokens be accepted in a second,
/// by the times that were measured and the chances that are estimated. A further row costs little
/// where its experts are read for other rows anyway, and much where it needs further experts. Where
/// draft tokens lose, they are tried now and then, more and more seldom. The budget decides what is
/// computed, never which tokens are drawn.
class DraftBudget {
 public:
  struct Options {
    int64_t rows = 0;   // draft tokens of a step, at most
    bool adapt = true;  // or always as many as there are
    /// To how many rows a step of so many is padded; empty: none.
    std::function<int64_t(int64_t)> padded;
  };
  explicit DraftBudget(Options options) : options_(std::move(options)) {}

  /// How many tokens each candidate takes, where `decoding` sequences, the candidates among them,
  /// take a row each anyway.
  std::vector<int64_t> choose(int64_t decoding, std::span<const DraftCandidate> candidates);

  /// A step without prompts over so many rows.
  void note_step(int64_t rows, double seconds) { steps_.note(padded(rows), seconds); }
  /// The time in which a draft model made drafts of so many tokens.
  void note_drafting(int64_t tokens, double seconds) { drafting_.note(tokens, seconds); }
  /// What a step over so many rows takes; nothing where that was not measured.
  std::optional<double> step_seconds(int64_t rows) const;

 private:
  int64_t padded(int64_t rows) const;

  Options options_;
  SizeTimes steps_, drafting_;
  int64_t lost_ = 0;  // steps without draft tokens since the last with some
  int64_t wait_ = 0;  // after so many, it tries again
};

}  // namespace mixtral
