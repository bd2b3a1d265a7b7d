#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "infer/prefix_index.h"
#include "infer/request.h"
#include "infer/speculation.h"
#include "model/kv_cache.h"

namespace mixtral {

using RequestId = int64_t;

/// A request that is not finished yet.
struct Sequence {
  RequestId id = 0;
  Request request;
  int64_t adapter_serial = kNoAdapter;  // what its pages are kept under
  std::vector<int32_t> tokens;          // the prompt, then what was drawn
  int64_t cached = 0;             // of the tokens: those whose keys and values are in the cache
  int32_t cache_row = -1;         // of the cache's table; -1: it waits for a place
  int64_t seat = -1;              // its row of DecodeRows, or -1
  bool preempted = false;         // has lost its place in the cache since it got its seat
  std::optional<int64_t> reused;  // tokens that were in the cache when it first got its place
  bool begun = false;             // on_begin was called
  size_t indexed = 0;             // of its pages: those that were offered to the prefix index
  int64_t reported = 0;           // of the prompt: positions whose logits were handed out
  int64_t routed = 0;             // of the prompt: positions whose routes were handed out
  // Speculative decoding, anew for each step:
  std::vector<int32_t> draft;  // tokens that may come next
  int64_t drafted = 0;         // of these: the first ones, which go through the model in the step
  int64_t draft_row = -1;      // the row of DecodeRows of the first of them
  int64_t accepted = 0;        // of them, by what was drawn
  size_t draft_kind = 0;       // which of the engine's acceptance rates they count for
  AcceptanceRate acceptance{12};

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  int64_t pending() const { return length() - cached; }
  int64_t drawn() const { return length() - static_cast<int64_t>(request.prompt.size()); }
  /// Whether the last token is all that is to go through the model before the next draw.
  bool decodes() const {
    return pending() == 1 && request.options.max_tokens > 0 && !wants_prompt();
  }
  /// Whether logits of its prompt are still to be handed out.
  bool wants_logits() const {
    return request.on_prompt_logits && reported < static_cast<int64_t>(request.prompt.size());
  }
  /// Whether routes of its prompt are still to be handed out.
  bool wants_prompt_routes() const {
    return request.on_prompt_routes && routed < static_cast<int64_t>(request.prompt.size());
  }
  /// Whether all of its prompt has to go through the model, cached or not.
  bool wants_prompt() const { return wants_logits() || wants_prompt_routes(); }
};

/// Decides what each step of an engine computes, and gives sequences their pages of the cache.
/// First come, first served: a request waits until a row of the cache's table and pages for all of
/// its tokens are free, and those after it wait for it. When a running sequence needs a page and
/// none is free, the pages of the youngest are taken; it waits again, and its tokens are computed
/// again later. So the oldest always goes on.
class Scheduler {
 public:
  struct Slice {
    Sequence* sequence = nullptr;
    int64_t count = 0;  // of its pending tokens, the first ones
    bool last() const { return count == sequence->pending(); }
  };
  struct Step {
    std::vector<Sequence*> decode;  // one token each, and its draft tokens
    std::vector<Slice> prefill;     // prompts, or what is to be computed again
    bool empty() const { return decode.empty() && prefill.empty(); }
    int64_t tokens() const;
    int64_t drafted() const;  // draft tokens
  };

  struct Options {
    int64_t chunk = 256;       // tokens of all prefill slices of a step, at most
    int64_t lone_chunk = 256;  // the same where no sequence decodes in the step
    int64_t most_pages = 0;    // of a sequence, KvCache::pages_of_sequence; the cache has so many
    bool share_pages = true;   // between sequences that begin with the same tokens
  };
  Scheduler(KvCache& cache, const Options& options)
      : cache_(cache), prefixes_(cache), options_(options) {}

  /// The sequence waits from now on. It must stay where it is until remove().
  void add(Sequence& sequence) { waiting_.push_back(&sequence); }
  /// Takes it out and gives back its pages.
  void remove(Sequence& sequence);

  /// What to compute next, with room in the cache for it; empty when nobody is left. Of draft
  /// tokens (Sequence::drafted) it takes those that there is room for when everything else has its
  /// pages; they are not offered to the prefix index.
  Step next();
  /// Counts a step's tokens as cached, but for the draft tokens that were not accepted, whose pages
  /// it takes back.
  void complete(const Step& step);
  /// Takes back the pages of the draft tokens of a step that failed.
  void take_back_drafts(const Step& step);
  /// The sequences that the next step has one token of, the oldest first, unless it takes their
  /// pages.
  std::vector<Sequence*> decoding() const;
  /// Drops what is kept of earlier prompts.
  void forget_prefixes() { prefixes_.clear(); }
  PrefixIndex& prefixes() { return prefixes_; }
  bool shares_pages() const { return options_.share_pages; }

  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t kept_pages() const { return prefixes_.evictable(); }  // that no sequence uses
  int64_t preemptions() const { return preemptions_; }          // so far
  int64_t lost_tokens() const { return lost_tokens_; }          // of the cache, by them
  int64_t reused_tokens() const { return reused_tokens_; }      // from kept pages, so far

 private:
  Step plan();
  int64_t pages_to_come(const Sequence& sequence) const;
  bool admit(Sequence& sequence, int64_t owed);
  bool extend(Sequence& sequence, int64_t tokens);
  int64_t extend_up_to(Sequence& sequence, int64_t most);
  void extend_by_draft(Sequence& sequence);
  void offer_pages(Sequence& sequence, int64_t tokens);
  void preempt(Sequence& sequence);

  KvCache& cache_;
  PrefixIndex prefixes_;
  Options options_;
  std::vector<Sequence*> running_;  // have a row of the cache's table; the oldest first
  std::deque<Sequence*> waiting_;   // the oldest first; all younger than the running ones
  int64_t preemptions_ = 0, lost_tokens_ = 0, reused_tokens_ = 0;
};

}  // namespace mixtral
