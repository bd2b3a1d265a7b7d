#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "infer/decode_rows.h"
#include "infer/inference_plan.h"
#include "infer/request.h"
#include "infer/scheduler.h"
#include "infer/speculator.h"
#include "infer/step_routes.h"
#include "infer/token_scores.h"
#include "model/adapter_set.h"
#include "model/mixtral.h"
#include "ops/recordings.h"

namespace mixtral {

/// Generates from one model, many sequences at once, which join and leave at every step. A step is
/// one forward pass over a token of each sequence that is past its prompt and some tokens of the
/// prompts that are not read yet (Yu et al. 2022, "Orca"; Agrawal et al. 2023, "Sarathi"). Keys and
/// values stand in pages; requests that begin with the same tokens share them.
///
/// What is drawn depends on the request alone. In f32 on `cpu` and `ref` this holds to the bit,
/// whatever else the engine does, speculation included.
///
/// One thread at a time may use an engine, since it uses its backend.
class Engine {
 public:
  /// To how many rows a step without prompts is padded, so that few shapes need a recording.
  enum class Padding { automatic, none, powers_of_two };

  struct Options {
    int64_t context = 0;    // tokens of a sequence, at most; 0: as many as the model has room for
    int64_t sequences = 1;  // that are under way at once; others wait
    int64_t cache_tokens = 0;  // room of the cache for all sequences; 0: for all whole contexts
    int64_t chunk = 0;         // prompt tokens of a step, at most; 0: what suits the device
    int64_t lone_chunk = 0;    // the same where no sequence decodes; 0: as chunk
    int64_t arena = 0;         // bytes of activations to reserve at once; else as steps need them
    bool share_pages = true;   // between requests that begin with the same tokens
    Padding padding = Padding::automatic;  // powers_of_two where recordings save time
    bool count_experts = false;            // keep an ExpertLoad
    /// Given every op of every step; must outlive the engine. Null: nobody asks.
    Profiler* profiler = nullptr;
    /// The model's, which requests may name; must outlive the engine. They may come and go between
    /// steps. Null: there is at most the model's own.
    AdapterSet* adapters = nullptr;
    SpeculationOptions speculation = {};
  };

  /// Sequences and pages now.
  struct Usage {
    int64_t running = 0, waiting = 0;  // sequences
    int64_t pages = 0;                 // of the cache
    int64_t used_pages = 0;            // of these: by running sequences
    int64_t kept_pages = 0;            // by none, but kept for requests to come while there is room
    // So far:
    int64_t steps = 0;          // that were computed
    int64_t prompt_steps = 0;   // of these: with tokens of prompts
    int64_t prompt_tokens = 0;  // in them, with what was computed again
    int64_t drawn_rows = 0;     // of all steps: rows that tokens were drawn for
    int64_t preemptions = 0;    // times that a sequence lost its pages
    int64_t lost_tokens = 0;    // that stood in them
    int64_t reused_tokens = 0;  // of prompts: taken from pages that were there already
    SpeculationCounts speculation;
  };

  /// Throws Error when the model was prepared for fewer positions than `context`, the cache has no
  /// room for one sequence, or a draft model does not fit.
  Engine(Backend& backend, const Mixtral& model, const Options& options);
  Engine(Backend& backend, const Mixtral& model) : Engine(backend, model, Options()) {}
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();

  int64_t context() const { return cache_.context(); }
  int64_t sequences() const { return cache_.sequences(); }
  int64_t vocabulary() const { return model_.config().vocab_size; }

  /// Queues a request. Throws Error when its prompt is empty, has tokens that the model does not
  /// have, or leaves no room in the context, or when there is no such adapter. The adapter stays,
  /// though it be removed, until the request has ended.
  RequestId submit(Request request);
  /// Ends a request. Its pages are free when this returns, and none of its functions is called any
  /// more. Does nothing when it has ended already.
  void cancel(RequestId id);

  /// Computes one step and calls the requests' functions. Returns whether any request is left. When
  /// a function throws, its request has to be cancelled; the others are not affected.
  bool step();
  /// Steps until no request is left.
  void run() {
    while (step()) {
    }
  }

  /// Whether a request is queued or under way.
  bool has(RequestId id) const { return sequences_.contains(id); }
  Usage usage() const;
  /// Gives back the pages that are kept for requests to come.
  void forget_prefixes() { scheduler_.forget_prefixes(); }
  /// The cache and what it keeps of earlier prompts, to be saved and restored (infer/kept_pages.h).
  KvCache& cache() { return cache_; }
  PrefixIndex& prefixes() { return scheduler_.prefixes(); }
  /// Whether it keeps anything of earlier prompts.
  bool keeps_prefixes() const { return scheduler_.shares_pages(); }
  bool speculates() const { return speculator_.has_value(); }
  /// Under what the model's own prompts are kept: PrefixIndex's number of an adapter.
  int64_t own_serial() const { return adapters_ ? adapters_->serial(kOwnAdapter) : kOwnAdapter; }
  /// What the experts have taken so far; null without Options::count_experts.
  const ExpertLoad* expert_load() const { return load_ ? &*load_ : nullptr; }
  int64_t replayed() const { return recordings_.replayed(); }  // steps that were replays

 private:
  /// What a request's functions are to be told.
  struct Event {
    RequestId id = 0;
    std::optional<GeneratedToken> token;
    std::optional<FinishReason> finish;
    int64_t first = 0;  // of the prompt's logits or routes
    Buffer logits_buffer;
    Tensor logits;
    std::vector<TokenRoutes> routes;
  };

  void check(const Request& request) const;
  int64_t padded(int64_t rows) const;
  int64_t rows() const;
  int64_t row_of(const Sequence& sequence, int64_t token) const;
  void set_draft_rows(const Scheduler::Step& step);
  void accept_drafts(const Scheduler::Step& step);
  nn::TokenAdapters seat_adapters(int64_t rows) const;
  void compute();
  void take_seats(const Scheduler::Step& step);
  void sit(Sequence& sequence, size_t seat);
  void fill_masks();
  void decode(int64_t rows);
  void prefill(const Scheduler::Step& step);
  void report_prompt_logits(const Scheduler::Slice& slice, const Tensor& hidden);
  void make_routes();
  void prepare_routes(const Scheduler::Step& step, int64_t tokens);
  void collect_routes(const Scheduler::Step& step);
  void count(const Scheduler::Step& step);
  void collect(const Scheduler::Step& step);
  Event take_token(Sequence& sequence, int64_t row, const Scheduler::Step& step);
  TokenScores score_drawn(int64_t row, int32_t id, int64_t best);
  void deliver();
  void finish(Sequence& sequence, FinishReason reason);
  void erase(RequestId id);

  Backend& backend_;
  const Mixtral& model_;
  AdapterSet* adapters_;
  int64_t adapters_version_ = 0;  // that the recordings were made with
  Padding padding_;
  Arena arena_;
  Context ctx_;
  KvCache cache_;
  int64_t draft_rows_;  // draft tokens of a step, at most
  DecodeRows rows_;
  Recordings recordings_;
  int64_t most_prompt_tokens_;  // of a step
  Scheduler scheduler_;
  std::optional<Speculator> speculator_;
  std::unordered_map<RequestId, std::shared_ptr<Sequence>> sequences_;
  std::optional<StepRoutes> routes_;  // made when first asked for
  std::optional<ExpertLoad> load_;
  const Mixtral::RouterReports* reports_ = nullptr;  // of this step; null: nobody asks
  std::vector<int32_t>
      drawn_from_;                // [rows]: which token of a step with prompts gave each its logits
  std::vector<Sequence*> seats_;  // which sequence has which of the rows; null: none
  int64_t drafts_ = 0;            // rows behind the seats that draft tokens have in this step
  int64_t device_rows_ = 0;       // rows on the device from here on are padding
  bool rows_moved_ = false;       // the device has lost what stood in the rows
  std::deque<Event> events_;      // that are still to be told
  Usage counted_;                 // its counts of steps
  RequestId last_id_ = 0;
};

}  // namespace mixtral
