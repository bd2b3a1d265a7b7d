#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "model/adapter.h"
#include "model/loss.h"
#include "train/criterion.h"
#include "train/loss_rows.h"

namespace mixtral {

/// How preference pairs are learnt (Rafailov et al. 2023, "Direct preference optimization"). With
/// h = (log π(chosen) − log π(rejected)) − (log ρ(chosen) − log ρ(rejected)), π the policy and ρ
/// the reference, and ε the label smoothing:
///   sigmoid     −(1 − ε) log σ(βh) − ε log σ(−βh); log-probabilities are sums over the answer
///   normalized  the same with means over the answer's tokens, so that length does not count
///   ipo         (h − 1/(2β))² of such means (Azar et al. 2023)
struct PreferenceSettings {
  enum class Loss { sigmoid, normalized, ipo };

  Loss loss = Loss::sigmoid;
  double beta = 0.1;
  double label_smoothing = 0;
  Objective objective{.balance = Objective::Balance::off};  // the routers' losses of the policy
  Recompute recompute;

  /// Throws UsageError naming the flag that makes no sense.
  void validate() const;
};
/// "sigmoid", "normalized", "ipo". Throws UsageError.
PreferenceSettings::Loss parse_preference_loss(std::string_view name);

/// Log-probabilities of a pair's answers, as sums over their tokens.
struct PairLogProbabilities {
  double policy_chosen = 0, policy_rejected = 0;
  double reference_chosen = 0, reference_rejected = 0;
  int64_t chosen_tokens = 0, rejected_tokens = 0;
};
/// What the loss makes of them. Rewards are β · (log π − log ρ), as summed or averaged by the loss.
struct PairLoss {
  double loss = 0;
  double chosen_reward = 0, rejected_reward = 0;
  double chosen_slope = 0, rejected_slope = 0;  // d loss / d of the policy's summed logs

  double margin() const { return chosen_reward - rejected_reward; }
};
PairLoss pair_loss(const PreferenceSettings& settings, const PairLogProbabilities& pair);

/// What the reference is: another model; or, without one, the policy with its adapter off.
struct PreferenceModels {
  const Mixtral& policy;
  Adapter* adapter = nullptr;
  const Mixtral* reference = nullptr;
};

/// Preference training as the loop sees it: the mean loss of the pairs. Sequences 2i and 2i + 1 of
/// a batch are a pair's chosen and rejected texts; their labels are the answers' tokens.
class PreferenceCriterion : public Criterion {
 public:
  PreferenceCriterion(Context& ctx, const PreferenceModels& models,
                      const PreferenceSettings& settings);

  int64_t weight(const HostBatch& batch) const override { return batch.sequences() / 2; }
  int64_t rows() const override { return kRows; }
  /// The loss of a pair is computed on the host, in the middle of a step.
  bool recordable() const override { return false; }
  void check(const HostBatch& batch) const override;
  void begin(Context& ctx, int64_t row) override;
  using Criterion::add_gradients;
  void add_gradients(Context& ctx, const StepBatch& batch, const StepSize& step,
                     int64_t row) override;
  void add_losses(Context& ctx, const HostBatch& batch, const StepSize& step, int64_t row) override;
  void keep(Context& ctx, int64_t from, int64_t to) override;
  Tensor squared_norm(int64_t row) const override { return rows_.squared_norm(row); }
  void fetch(Context& ctx, int64_t row, Wait wait) override;
  Figures figures(const StepSize& step) const override;
  RouterFigures routers() const override { return rows_.routers(); }

  /// The pairs of the last micro-batch.
  const std::vector<PairLogProbabilities>& last_pairs() const { return pairs_; }

 private:
  static constexpr int64_t kRows = 64;
  struct Sums {
    double loss = 0, chosen = 0, rejected = 0, accuracy = 0;
  };

  /// Asks the reference about a micro-batch's pairs.
  void begin_pairs(Context& ctx, const HostBatch& host, const Batch& batch);
  void start_pairs(const HostBatch& host);
  void score_reference(Context& ctx, const Batch& batch);
  std::vector<double> sequence_sums(Context& ctx, const Batch& batch, const Tensor& losses) const;
  void take_policy(Context& ctx, const Batch& batch, const Tensor& losses, Sums& sums);
  Tensor token_scales(Context& ctx, const HostBatch& host, double share) const;

  PreferenceModels models_;
  PreferenceSettings settings_;
  LossRows rows_;
  std::vector<Sums> sums_;
  Sums fetched_;
  std::vector<PairLogProbabilities> pairs_;
};

}  // namespace mixtral
