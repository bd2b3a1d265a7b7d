#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "model/batch.h"
#include "model/block.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/stored_formats.h"

namespace mixtral {

/// Which blocks keep nothing but their input for the backward pass, and run their forward pass
/// again there: none, or all but the last `kept`. It saves most of the activations' memory, for a
/// third more arithmetic in the blocks concerned.
struct Recompute {
  bool on = false;
  int64_t kept = 0;

  Recompute() = default;
  /// From a bool, so that a plain --recompute reads as one.
  Recompute(bool recompute, int64_t kept_blocks = 0) : on(recompute), kept(kept_blocks) {}
  bool applies(int64_t layer, int64_t layers) const { return on && layer < layers - kept; }
};

/// A Mixtral model (Jiang et al. 2024, "Mixtral of experts"): token embedding, L blocks, a final
/// norm, and a vocabulary head. The same forward pass trains, scores, prefills and decodes.
class Mixtral {
 public:
  struct Options {
    Dtype weights = Dtype::f32;  // how parameters are stored
    Dtype compute = Dtype::f32;  // the type of activations
    int64_t context = 0;         // positions to prepare for; 0: the configuration's maximum
    bool trainable = false;      // whether parameters get gradients
    int64_t trained_layers = 0;  // of a trainable model: only the last so many blocks; 0: all of it
    bool train_router = true;    // of a trainable model: the routers, too
    Dtype rope_frequencies = Dtype::f32;  // see ops::fill_rope_table
    /// The format of attention's and the experts' projections, where it is not `weights`. Such a
    /// model is not trainable.
    std::optional<ops::WeightFormat> quantization = {};
    /// Formats of single parameters, where `quantization` is not given. Such a model is not
    /// trainable, either.
    ParameterFormats formats = {};
    ops::Operands operands = ops::Operands::exact;  // of the products where text is generated
    /// How keys and values are cached, where it is not `compute`.
    std::optional<ops::CacheType> cache = {};
    /// The experts' weights get no memory: an ExpertCache reads them while they are needed. Of a
    /// model that is not trainable.
    bool stream_experts = false;
    /// Nothing but products reads the projections' weights once they are loaded, so that they may
    /// stand in the layout that the backend prefers. Of a model that is not trainable.
    bool fixed_weights = false;
    bool planned = false;  // only what it allocates counts: nothing is computed for it

    ops::CacheType cache_type() const { return cache ? *cache : ops::cache_type_of(compute); }
  };

  /// What backward needs. Everything but the blocks' inputs can be dropped and recomputed. Of
  /// blocks that backward does not reach, because neither they nor what is below them is trained,
  /// nothing is kept.
  struct Saved {
    std::vector<Tensor> inputs;        // L of [N, D]: what each block was given
    std::vector<Block::Saved> blocks;  // L; nothing in those that are recomputed
    Tensor last;                       // [N, D]: the last block's output
    Tensor rstd;                       // [N]
    Recompute recompute;               // set by the caller
  };

  /// Per-layer router figures of one forward pass.
  struct RouterReports {
    Tensor load;        // [L, E] statistics
    Tensor importance;  // [L, E]
    Tensor z;           // [L]
    Tensor entropy;     // [L]
    // Each token's own, in inference only; both, or empty (allocate_token_routes).
    Tensor logits;  // [L, N, E] statistics
    Tensor expert;  // [L, N, k] i32, the heaviest first
  };

  /// Allocates the parameters (undefined: load or initialise them next) on `backend`.
  Mixtral(Backend& backend, const ModelConfig& config, const Options& options);

  const ModelConfig& config() const { return config_; }
  const Options& options() const { return options_; }
  int64_t context() const { return context_; }

  /// Hidden states [N, D] after the final norm, in the context's arena. With a cache, the batch's
  /// rows and positions say where its tokens stand, and the cache has room for them (see KvCache).
  /// `saved` and `reports` may be null. Of a batch with `last`, in inference, only those tokens'
  /// [n, D].
  Tensor forward(Context& ctx, const Batch& batch, const KvCache* cache, Saved* saved,
                 const RouterReports* reports) const;
  /// d [N, D]: the gradient of forward's result, consumed. `losses`: dprobability [L, E] (or empty)
  /// and the z-loss's scale for each layer.
  void backward(Context& ctx, const Batch& batch, const Tensor& d, const Saved& saved,
                const nn::RouterGradient& losses) const;

  /// logits [n, V] (statistics' type) of hidden states [n, D], whose tokens use these adapters.
  void logits(Context& ctx, const Tensor& hidden, const Tensor& logits,
              const nn::TokenAdapters& adapters = {}) const;
  const nn::Projection& head() const { return *head_; }
  std::unique_ptr<nn::Projection>& head_projection() { return head_; }

  /// The lowest block that backward must reach: 0, unless only higher ones are trained; L where
  /// only what comes after the blocks is.
  int64_t first_trained_block() const;

  RouterReports allocate_reports(Context& ctx) const;
  /// Makes the reports hold where each of `tokens` tokens went, too.
  void allocate_token_routes(Context& ctx, int64_t tokens, RouterReports& reports) const;

  /// Every parameter, in the order of the layers: the only enumeration there is.
  void for_each_parameter(const nn::ParameterVisitor& visit);
  nn::ParameterSource parameters() {
    return [this](const nn::ParameterVisitor& visit) { for_each_parameter(visit); };
  }
  const nn::ParameterStore& store() const { return *store_; }
  std::vector<Block>& blocks() { return blocks_; }
  const std::vector<Block>& blocks() const { return blocks_; }

 private:
  ModelConfig config_;
  Options options_;
  int64_t context_;
  std::shared_ptr<nn::Parameter> embedding_;  // [V, D]
  std::vector<Block> blocks_;
  nn::Parameter final_norm_;  // [D]
  std::unique_ptr<nn::Projection> head_;
  Buffer rope_;
  std::unique_ptr<nn::ParameterStore> store_;
};

}  // namespace mixtral
