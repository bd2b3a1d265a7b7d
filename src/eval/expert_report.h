#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "data/batches.h"
#include "eval/token_kinds.h"
#include "model/mixtral.h"

namespace mixtral {

/// Positions in a sequence by which an expert's tokens are told apart: 0, 1–3, 4–15, 16–63, 64–255,
/// 256–1023, 1024 and later.
inline constexpr size_t kPositionRanges = 7;
size_t position_range(int64_t position);
std::string position_range_name(size_t range);  // "4–15"

/// −Σ p log p of counts or shares, in nats. Their sum need not be 1.
double entropy_of(std::span<const double> amounts);
/// The experts that took nothing.
std::vector<int64_t> dead_experts(std::span<const double> load);

/// Where the tokens of one sequence went in one layer.
struct LayerRoute {
  std::span<const double> logits;   // [N, E]
  std::span<const int32_t> expert;  // [N, k], the heaviest first
};

/// What a model's routers do with tokens, counted token by token.
///
/// A lift says how much more often than everywhere something is found among an expert's tokens:
/// share of the kind among the expert's tokens / share of the kind among all tokens. 1 is an expert
/// that does not care; k of E experts see each token, so E / k is the most there can be for an
/// expert of average load.
class ExpertReport {
 public:
  /// The first tokens that were looked at, for showing them.
  struct Sample {
    std::vector<int32_t> ids;
    std::vector<uint8_t> starts;               // [N]: whether a sequence begins here
    std::vector<std::vector<int32_t>> expert;  // [L] of [N, k]
    std::vector<std::vector<float>> weight;    // [L] of [N, k]: their weights in the sum
  };
  struct TypicalToken {
    int32_t id = 0;
    int64_t count = 0;  // how often the expert took it
    double lift = 0;
  };

  ExpertReport(int64_t layers, int64_t experts, int64_t experts_per_token,
               int64_t sample_tokens = 0);

  /// Adds one sequence of N tokens, whose first has position 0. `kinds` [N] may be empty, where
  /// there is no text. `routes`: one for each layer.
  void add(std::span<const int32_t> ids, std::span<const TokenKind> kinds,
           std::span<const LayerRoute> routes);

  int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t experts() const { return experts_; }
  int64_t experts_per_token() const { return per_token_; }
  int64_t tokens() const { return tokens_; }
  bool has_kinds() const { return kind_totals_ != std::array<int64_t, kTokenKinds>{}; }
  const Sample& sample() const { return sample_; }

  /// [E]: shares of a layer's assignments; they sum to 1.
  std::vector<double> load(int64_t layer) const;
  /// [E]: shares of the tokens whose heaviest expert it is.
  std::vector<double> first_choice(int64_t layer) const;
  /// Mean entropy of a token's probabilities over all experts, in nats: 0 where the router is sure
  /// of one expert, log E where it does not care.
  double token_entropy(int64_t layer) const;
  /// Entropy of load(layer), in nats: log E is an even split.
  double load_entropy(int64_t layer) const { return entropy_of(load(layer)); }
  std::vector<int64_t> dead(int64_t layer) const { return dead_experts(load(layer)); }

  /// Of the tokens that expert a took, the share that b took as well.
  double together(int64_t layer, int64_t a, int64_t b) const;
  /// How many tokens of a kind, or at such positions, there were.
  int64_t count(TokenKind kind) const { return kind_totals_[static_cast<size_t>(kind)]; }
  int64_t count_at(size_t range) const { return range_totals_[range]; }
  /// Lifts (see above); no number where there are no such tokens, or the expert took none.
  double kind_lift(int64_t layer, int64_t expert, TokenKind kind) const;
  double position_lift(int64_t layer, int64_t expert, size_t range) const;
  /// At most `most` tokens that the expert takes more often than others do, by what they add to the
  /// divergence of its tokens from all (count · log lift). Those that it took once say nothing.
  std::vector<TypicalToken> typical_tokens(int64_t layer, int64_t expert, size_t most) const;

 private:
  struct Expert {
    int64_t taken = 0, first = 0;
    std::array<int64_t, kTokenKinds> kinds{};
    std::array<int64_t, kPositionRanges> ranges{};
    std::vector<int64_t> together;  // [E]
    std::unordered_map<int32_t, int64_t> ids;
  };
  struct Layer {
    std::vector<Expert> experts;  // [E]
    double entropy = 0;           // Σ over tokens
  };

  const Expert& at(int64_t layer, int64_t expert) const {
    return layers_[static_cast<size_t>(layer)].experts[static_cast<size_t>(expert)];
  }
  double lift(int64_t part, int64_t taken, int64_t whole) const;
  void add_to_sample(std::span<const int32_t> ids, std::span<const LayerRoute> routes);

  int64_t experts_, per_token_, sample_tokens_, tokens_ = 0;
  std::vector<Layer> layers_;
  std::array<int64_t, kTokenKinds> kind_totals_{};
  std::array<int64_t, kPositionRanges> range_totals_{};
  std::unordered_map<int32_t, int64_t> ids_;
  Sample sample_;
};

/// Sends tokens through the model and adds where they went. `kinds` as classify_tokens has them, or
/// empty; one for each token of the batch.
void add_routes(Context& ctx, const Mixtral& model, const HostBatch& batch,
                std::span<const TokenKind> kinds, ExpertReport& report);

struct ExpertReportOptions {
  int64_t tokens = 0;  // look at no more than about so many; 0: all
  int64_t sample_tokens = 0;
};
/// A report on what `batches` (not endless) gives. `tokenizer` may be null: then nothing is said of
/// kinds. `progress` is told how many tokens are done. Throws Error when there is no token.
ExpertReport report_experts(Context& ctx, const Mixtral& model, Batches& batches,
                            const Tokenizer* tokenizer, const ExpertReportOptions& options,
                            const std::function<void(int64_t)>& progress = {});

}  // namespace mixtral
