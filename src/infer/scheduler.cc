#include "infer/scheduler.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace mixtral {

int64_t Scheduler::Step::tokens() const {
  int64_t count = static_cast<int64_t>(decode.size()) + drafted();
  for (const Slice& slice : prefill) count += slice.count;
  return count;
}

int64_t Scheduler::Step::drafted() const {
  int64_t count = 0;
  for (const Sequence* sequence : decode) count += sequence->drafted;
  return count;
}

std::vector<Sequence*> Scheduler::decoding() const {
  std::vector<Sequence*> decoding;
  std::ranges::copy_if(running_, std::back_inserter(decoding),
                       [](const Sequence* sequence) { return sequence->decodes(); });
  return decoding;
}

void Scheduler::remove(Sequence& sequence) {
  if (sequence.cache_row < 0) {
    waiting_.erase(std::ranges::find(waiting_, &sequence));
    return;
  }
  cache_.close(sequence.cache_row);
  sequence.cache_row = -1;
  running_.erase(std::ranges::find(running_, &sequence));
}

void Scheduler::preempt(Sequence& sequence) {
  remove(sequence);
  lost_tokens_ += sequence.cached;
  sequence.cached = 0;
  sequence.indexed = 0;
  sequence.draft.clear();
  sequence.drafted = 0;
  sequence.preempted = true;
  waiting_.push_front(&sequence);
  ++preemptions_;
}

Scheduler::Step Scheduler::next() {
  while (true) {
    Step step = plan();
    if (!step.empty() || running_.empty()) return step;
    preempt(*running_.back());  // prompts alone hold all pages, and none of them can go on
  }
}

Scheduler::Step Scheduler::plan() {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (!sequence.decodes()) continue;
    // The youngest goes first, which may be this one itself.
    while (i < running_.size() && !extend(sequence, sequence.length())) preempt(*running_.back());
  }
  Step step;
  const bool decodes = std::ranges::any_of(running_, &Sequence::decodes);
  int64_t budget = decodes ? options_.chunk : options_.lone_chunk;
  const auto take = [&](Sequence& sequence) {
    if (sequence.decodes()) {
      if (extend(sequence, sequence.length())) step.decode.push_back(&sequence);
    } else if (const int64_t count = extend_up_to(sequence, budget); count > 0) {
      step.prefill.push_back({&sequence, count});
      budget -= count;
    }
  };
  for (Sequence* sequence : running_) take(*sequence);
  if (budget > 0 && !waiting_.empty()) {
    int64_t owed = 0;  // pages that running sequences still need for their tokens
    for (const Sequence* sequence : running_) owed += pages_to_come(*sequence);
    while (budget > 0 && !waiting_.empty() && admit(*waiting_.front(), owed)) {
      running_.push_back(waiting_.front());
      waiting_.pop_front();
      take(*running_.back());
      owed += pages_to_come(*running_.back());
    }
  }
  for (Sequence* sequence : step.decode) extend_by_draft(*sequence);
  return step;
}

void Scheduler::complete(const Step& step) {
  for (Sequence* sequence : step.decode) {
    sequence->cached += 1 + sequence->accepted;
    CHECK(cache_.truncate(sequence->cache_row, sequence->cached));
  }
  for (const Slice& slice : step.prefill) slice.sequence->cached += slice.count;
}

void Scheduler::take_back_drafts(const Step& step) {
  for (Sequence* sequence : step.decode) {
    sequence->drafted = 0;
    CHECK(cache_.truncate(sequence->cache_row, sequence->length()));
  }
}

/// Pages that a running sequence still needs for the tokens that it has.
int64_t Scheduler::pages_to_come(const Sequence& sequence) const {
  return std::min(cache_.pages_to_extend(sequence.cache_row, sequence.length()),
                  options_.most_pages);
}

/// Opens a row of the cache for a sequence, where there are pages for all of its tokens beside the
/// `owed` ones.
bool Scheduler::admit(Sequence& sequence, int64_t owed) {
  if (cache_.free_sequences() == 0) return false;
  std::vector<int32_t> shared;
  if (options_.share_pages && !sequence.wants_prompt())
    // At least the last token goes through the model: its logits are wanted.
    shared = prefixes_.find(std::span(sequence.tokens).first(sequence.tokens.size() - 1),
                            sequence.adapter_serial);
  const int32_t row = cache_.open(shared);
  const int64_t needed =
      owed + std::min(cache_.pages_to_extend(row, sequence.length()), options_.most_pages);
  if (needed > cache_.free_pages() && needed > cache_.free_pages() + prefixes_.evictable()) {
    cache_.close(row);
    return false;
  }
  sequence.cache_row = row;
  sequence.cached = static_cast<int64_t>(shared.size()) * cache_.page_tokens();
  sequence.indexed = shared.size();
  reused_tokens_ += sequence.cached;
  if (!sequence.reused) sequence.reused = sequence.cached;
  return true;
}

bool Scheduler::extend(Sequence& sequence, int64_t tokens) {
  while (!cache_.extend(sequence.cache_row, tokens))
    if (!prefixes_.evict()) return false;
  offer_pages(sequence, tokens);
  return true;
}

int64_t Scheduler::extend_up_to(Sequence& sequence, int64_t most) {
  const int64_t size = cache_.page_tokens();
  int64_t count = std::min(most, sequence.pending());
  // A page less each time.
  while (count > 0 && !extend(sequence, sequence.cached + count))
    count = (sequence.cached + count - 1) / size * size - sequence.cached;
  return std::max<int64_t>(count, 0);
}

/// Makes room for as many of its draft tokens as possible without another sequence's loss.
void Scheduler::extend_by_draft(Sequence& sequence) {
  for (; sequence.drafted > 0; --sequence.drafted) {
    const int64_t tokens = sequence.length() + sequence.drafted;
    do {
      if (cache_.extend(sequence.cache_row, tokens, sequence.cached)) return;
    } while (prefixes_.evict());
  }
}

void Scheduler::offer_pages(Sequence& sequence, int64_t tokens) {
  // Pages are kept as soon as it is decided that they are filled: whoever uses them in the same
  // step reads them after they are written, layer by layer.
  const auto full = static_cast<size_t>(tokens / cache_.page_tokens());
  if (!options_.share_pages || full <= sequence.indexed) return;
  const auto whole =
      std::span(sequence.tokens).first(full * static_cast<size_t>(cache_.page_tokens()));
  const size_t kept = prefixes_.add(whole, sequence.adapter_serial,
                                    cache_.pages_of(sequence.cache_row).first(full));
  // Where another sequence's pages with the same tokens are kept, no more of this one's are.
  sequence.indexed = kept == full ? full : std::numeric_limits<size_t>::max();
}

}  // namespace mixtral
