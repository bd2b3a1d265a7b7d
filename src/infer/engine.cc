#include "infer/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "base/advice.h"

namespace mixtral {
namespace {

/// Prompt tokens of a step.
StepTokens step_tokens(const Backend& backend, const Engine::Options& options) {
  return StepTokens::of(backend, options.chunk, options.lone_chunk);
}

KvCache::Options cache_options(const Backend& backend, const Mixtral& model,
                               const Engine::Options& options) {
  const int64_t context = options.context > 0 ? options.context : model.context();
  const int64_t page = backend.page_tokens();
  return {.sequences = options.sequences,
          .context = context,
          .pages = (options.cache_tokens + page - 1) / page,
          .chunk = std::min(step_tokens(backend, options).alone, context),
          .page_tokens = page,
          .type = model.options().cache_type()};
}

constexpr int64_t kLeastRecordings = 8;

DecodeRows::Row row_content(const Sequence& sequence) {
  return {.tokens = sequence.tokens,
          .prompt = sequence.request.prompt.size(),
          .cache_row = sequence.cache_row,
          .adapter = sequence.request.adapter,
          .options = &sequence.request.options};
}

}  // namespace

std::string_view name(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::context:
      return "context";
  }
  return "";
}

Engine::Engine(Backend& backend, const Mixtral& model, const Options& options)
    : backend_(backend),
      model_(model),
      adapters_(options.adapters),
      padding_(options.padding != Padding::automatic ? options.padding
               : backend.runs_behind()               ? Padding::powers_of_two
                                                     : Padding::none),
      arena_(backend),
      ctx_(backend, arena_, model.options().compute, options.profiler),
      cache_(backend, model.config(), cache_options(backend, model, options)),
      draft_rows_(draft_rows(options.sequences, options.speculation.tokens)),
      rows_(ctx_, options.sequences + draft_rows_, model.config().vocab_size, cache_.context()),
      recordings_(backend, arena_,
                  static_cast<size_t>(std::max(kLeastRecordings, options.sequences))),
      most_prompt_tokens_(
          std::min(step_tokens(backend, options).alone, cache_.sequences() * cache_.context())),
      scheduler_(cache_,
                 {.chunk = step_tokens(backend, options).beside,
                  .lone_chunk = most_prompt_tokens_,
                  .most_pages = KvCache::pages_of_sequence(backend, model.config(),
                                                           cache_options(backend, model, options)),
                  // Behind a sliding window pages are given back: no beginning stays whole.
                  .share_pages = options.share_pages && model.config().sliding_window <= 0}) {
  ctx_.set_operands(model.options().operands);
  if (options.arena > 0) arena_.reserve(options.arena);
  if (cache_.context() > model.context())
    throw Error(
        fmt::format("a context of {} tokens was asked for, but the model was prepared for {}",
                    cache_.context(), model.context()));
  const int64_t least =
      KvCache::pages_of_sequence(backend, model.config(), cache_options(backend, model, options));
  if (cache_.pages() < least)
    throw Error(fmt::format(
        "the key-value cache has room for {} tokens, but one sequence of {} tokens needs {}; give "
        "the cache more room, or the sequences a shorter context",
        cache_.pages() * cache_.page_tokens(), cache_.context(), least * cache_.page_tokens()));
  if (options.speculation.tokens > 0) {
    Speculator::Options how{.how = options.speculation,
                            .sequences = cache_.sequences(),
                            .context = context(),
                            .chunk = most_prompt_tokens_,
                            .rows = draft_rows_,
                            .pad = padding_ == Padding::powers_of_two,
                            .padded = {}};
    // With a sliding window, a sequence has pages for a chunk's tokens at once, not for more.
    how.how.tokens = std::min(how.how.tokens, std::max<int64_t>(1, cache_.chunk() - 1));
    if (how.pad) how.padded = [this](int64_t rows) { return padded(rows); };
    speculator_.emplace(backend, model.config(), std::move(how));
  }
  if (!options.count_experts) return;
  make_routes();
  load_.emplace(model.config());
}

Engine::~Engine() {
  if (adapters_)
    for (const auto& [id, sequence] : sequences_) adapters_->release(sequence->request.adapter);
}

void Engine::make_routes() {
  // A step has at most so many tokens of prompts, one of each sequence, and draft tokens.
  if (!routes_)
    routes_.emplace(ctx_, model_.config(), most_prompt_tokens_ + cache_.sequences() + draft_rows_);
}

/// The rows of a step without prompts, padded.
int64_t Engine::padded(int64_t rows) const {
  if (padding_ == Padding::none) return rows;
  return std::min(static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows))),
                  cache_.sequences() + draft_rows_);
}

/// The rows that this step draws for.
int64_t Engine::rows() const { return static_cast<int64_t>(seats_.size()) + drafts_; }

/// The row of a sequence's last token (0) or of one of its draft tokens (1, ...).
int64_t Engine::row_of(const Sequence& sequence, int64_t token) const {
  return token == 0 ? sequence.seat : sequence.draft_row + token - 1;
}

void Engine::check(const Request& request) const {
  const auto length = static_cast<int64_t>(request.prompt.size());
  const int64_t room = request.options.max_tokens > 0 ? 1 : 0;
  CHECK(request.options.max_tokens >= 0 && request.best >= 0);
  if (adapters_ ? !adapters_->has(request.adapter)
                : request.adapter != kNoAdapter && request.adapter != kOwnAdapter)
    throw Error(fmt::format("there is no adapter {}", request.adapter));
  if (request.prompt.empty()) throw Error("the prompt has no tokens; give at least one");
  if (length + room > context())
    throw AdvisedError(
        fmt::format("a prompt of {} tokens does not fit a context of {} with room for {} "
                    "more; shorten it, or raise ‹context› where the model has more positions",
                    length, context(), room));
  for (const int32_t id : request.prompt)
    if (id < 0 || id >= vocabulary())
      throw Error(
          fmt::format("token id {} is outside the model's vocabulary of {}; use the model's "
                      "own tokenizer",
                      id, vocabulary()));
  for (const auto& [id, bias] : request.options.logit_bias)
    CHECK(id >= 0 && id < vocabulary(), "a bias for a token that the model does not have");
}

RequestId Engine::submit(Request request) {
  check(request);
  if (rows_.prepare(request.options, request.allow != nullptr)) {
    recordings_.clear();
    rows_moved_ = true;
  }
  if (speculator_) speculator_->prepare(request.options);
  if (request.routes || request.on_prompt_routes) make_routes();
  auto sequence = std::make_shared<Sequence>();
  sequence->id = ++last_id_;
  sequence->tokens = request.prompt;
  sequence->request = std::move(request);
  int32_t& adapter = sequence->request.adapter;
  if (adapters_ && adapters_->serial(adapter) == kNoAdapter) adapter = kNoAdapter;
  if (adapters_) adapters_->retain(adapter);
  sequence->adapter_serial = adapters_ ? adapters_->serial(adapter) : adapter;
  scheduler_.add(*sequence);
  sequences_.emplace(sequence->id, std::move(sequence));
  return last_id_;
}

void Engine::erase(RequestId id) {
  const auto found = sequences_.find(id);
  Sequence& sequence = *found->second;
  scheduler_.remove(sequence);
  if (sequence.seat >= 0) seats_[static_cast<size_t>(sequence.seat)] = nullptr;
  if (adapters_) adapters_->release(sequence.request.adapter);
  if (speculator_) speculator_->forget(id);
  sequences_.erase(found);
}

void Engine::cancel(RequestId id) {
  if (sequences_.contains(id)) erase(id);
}

bool Engine::step() {
  if (events_.empty()) compute();
  deliver();
  return !sequences_.empty();
}

void Engine::compute() {
  if (speculator_) speculator_->draft(scheduler_.decoding());
  const Scheduler::Step step = scheduler_.next();
  if (step.empty()) return;
  if (adapters_ && std::exchange(adapters_version_, adapters_->version()) != adapters_->version())
    recordings_.clear();
  try {
    take_seats(step);
    set_draft_rows(step);
    fill_masks();
    cache_.upload();
    rows_.upload();
    arena_.reset();
    if (!step.prefill.empty()) {
      prepare_routes(step, step.tokens());
      prefill(step);
    } else {
      const int64_t count = padded(rows());
      prepare_routes(step, count);
      constexpr int32_t kMixed = -2;
      const nn::TokenAdapters adapters = seat_adapters(count);
      // Where experts are streamed, what is computed depends on what the routers chose.
      if (model_.options().stream_experts)
        decode(count);
      else
        recordings_.run({count, reports_ ? 1 : 0, adapters.each ? kMixed : adapters.all},
                        [this, count] { decode(count); });
    }
    if (!seats_.empty()) rows_.read(rows());
    if (reports_) collect_routes(step);
  } catch (...) {
    // Pages that this step was to fill are kept already, and were perhaps not filled.
    scheduler_.forget_prefixes();
    scheduler_.take_back_drafts(step);
    throw;
  }
  if (speculator_) accept_drafts(step);
  scheduler_.complete(step);
  count(step);
  collect(step);
}

void Engine::count(const Scheduler::Step& step) {
  ++counted_.steps;
  counted_.drawn_rows += rows();
  if (!step.prefill.empty()) ++counted_.prompt_steps;
  for (const Scheduler::Slice& slice : step.prefill) counted_.prompt_tokens += slice.count;
}

void Engine::sit(Sequence& sequence, size_t seat) {
  sequence.seat = static_cast<int64_t>(seat);
  sequence.preempted = false;
  rows_.set(sequence.seat, row_content(sequence));
}

/// Gives the sequences that a token is drawn for the first rows, without a gap: first those that
/// decode, then those whose prompts end with this step.
void Engine::take_seats(const Scheduler::Step& step) {
  for (Sequence*& seated : seats_)
    if (seated && seated->preempted) {
      seated->seat = -1;
      seated = nullptr;
    }
  for (size_t i = 0; i < seats_.size(); ++i) {
    while (!seats_.empty() && !seats_.back()) seats_.pop_back();
    if (i >= seats_.size() || seats_[i]) continue;
    seats_[i] = seats_.back();
    seats_.pop_back();
    sit(*seats_[i], i);
  }
  const auto add = [&](Sequence& sequence) {
    seats_.push_back(&sequence);
    sit(sequence, seats_.size() - 1);
  };
  for (Sequence* sequence : step.decode)
    if (sequence->seat < 0) add(*sequence);
  for (const Scheduler::Slice& slice : step.prefill)
    if (slice.last() && slice.sequence->request.options.max_tokens > 0) add(*slice.sequence);
  if (std::exchange(rows_moved_, false))
    for (size_t i = 0; i < seats_.size(); ++i) sit(*seats_[i], i);
}

/// Gives each draft token a row behind the seats, and clears the rows after them.
void Engine::set_draft_rows(const Scheduler::Step& step) {
  drafts_ = 0;
  for (Sequence* sequence : step.decode) {
    sequence->draft_row = rows();
    for (int64_t i = 0; i < sequence->drafted; ++i)
      rows_.set_draft(rows() + i, sequence->seat, row_content(*sequence),
                      std::span(sequence->draft).first(static_cast<size_t>(i + 1)));
    drafts_ += sequence->drafted;
  }
  for (int64_t row = rows(); row < device_rows_; ++row) rows_.clear(row);
  device_rows_ = rows();
}

/// Counts the draft tokens that were drawn, up to the first that was not.
void Engine::accept_drafts(const Scheduler::Step& step) {
  for (Sequence* sequence : step.decode) {
    sequence->accepted = 0;
    for (const int32_t token : sequence->draft) {
      const bool drawn = rows_.drawn(row_of(*sequence, sequence->accepted)) == token;
      speculator_->note_drawn(*sequence, drawn);
      if (!drawn || sequence->accepted == sequence->drafted) break;
      ++sequence->accepted;
    }
  }
  speculator_->end_step(step);
}

void Engine::fill_masks() {
  for (const Sequence* sequence : seats_) {
    if (!sequence->request.allow) continue;
    TokenMask mask(static_cast<size_t>(ops::allowed_words(vocabulary())), ~uint32_t{0});
    sequence->request.allow(mask);
    rows_.set_mask(sequence->seat, mask);
  }
}

/// Gives the routers of a step over so many tokens a place to report to, where anybody asks.
void Engine::prepare_routes(const Scheduler::Step& step, int64_t tokens) {
  const auto asks = [](const Sequence& sequence) {
    return sequence.request.routes || sequence.wants_prompt_routes();
  };
  const bool asked =
      load_ || std::ranges::any_of(step.decode, [&](const Sequence* s) { return asks(*s); }) ||
      std::ranges::any_of(step.prefill, [&](const auto& slice) { return asks(*slice.sequence); });
  reports_ = asked ? routes_->prepare(tokens) : nullptr;
}

/// Reads where the step's tokens went, before they count as cached.
void Engine::collect_routes(const Scheduler::Step& step) {
  routes_->read();
  if (load_) routes_->add_to(*load_);
  int64_t token = static_cast<int64_t>(step.decode.size()) + step.drafted();
  for (const Scheduler::Slice& slice : step.prefill) {
    Sequence& sequence = *slice.sequence;
    const auto prompt = static_cast<int64_t>(sequence.request.prompt.size());
    const int64_t first = std::max(sequence.cached, sequence.routed);
    const int64_t end = std::min(sequence.cached + slice.count, prompt);
    if (sequence.wants_prompt_routes() && first < end) {
      Event event{.id = sequence.id, .first = first};
      for (int64_t position = first; position < end; ++position)
        event.routes.push_back(routes_->of(token + position - sequence.cached));
      events_.push_back(std::move(event));
      sequence.routed = end;
    }
    token += slice.count;
  }
}

void Engine::collect(const Scheduler::Step& step) {
  for (const Scheduler::Slice& slice : step.prefill)
    if (slice.sequence->pending() == 0 && slice.sequence->seat < 0)
      events_.push_back({.id = slice.sequence->id, .finish = FinishReason::length});
  for (Sequence* sequence : seats_) {
    // Those whose prompts end with this step have no draft.
    const int64_t accepted = std::exchange(sequence->accepted, 0);
    for (int64_t i = 0; i <= accepted; ++i) {
      Event event = take_token(*sequence, row_of(*sequence, i), step);
      const bool ended = event.finish.has_value();
      events_.push_back(std::move(event));
      if (ended) break;
    }
    if (accepted > 0) rows_.move(sequence->seat, row_content(*sequence));
  }
}

/// Adds what was drawn in a row to its sequence, unless it ends it.
Engine::Event Engine::take_token(Sequence& sequence, int64_t row, const Scheduler::Step& step) {
  const GenerationOptions& options = sequence.request.options;
  Event event{.id = sequence.id};
  const int32_t id = rows_.drawn(row);
  if (std::ranges::find(options.stop_ids, id) != options.stop_ids.end()) {
    event.finish = FinishReason::stop;
    return event;
  }
  event.token = {.id = id, .log_probability = rows_.log_probability(row)};
  if (sequence.request.best > 0) {
    TokenScores scores = score_drawn(row, id, sequence.request.best);
    event.token->log_probability = scores.log_probability;
    event.token->best = std::move(scores.best);
  }
  if (sequence.request.routes)
    event.token->routes =
        routes_->of(step.prefill.empty() ? row : drawn_from_[static_cast<size_t>(row)]);
  sequence.tokens.push_back(id);
  rows_.penalise(sequence.seat, row_content(sequence));
  if (sequence.drawn() >= options.max_tokens)
    event.finish = FinishReason::length;
  else if (sequence.length() > context())
    event.finish = FinishReason::context;
  return event;
}

TokenScores Engine::score_drawn(int64_t row, int32_t id, int64_t best) {
  const Tensor device = rows_.logits(row + 1)[row];
  const Buffer host(host_memory(), device.bytes());
  const Tensor values = host.tensor(device.shape(), device.dtype());
  backend_.download(device, values);
  return score_token(values, id, best);
}

void Engine::deliver() {
  while (!events_.empty()) {
    const Event event = std::move(events_.front());
    events_.pop_front();
    const auto found = sequences_.find(event.id);
    if (found == sequences_.end()) continue;                   // cancelled meanwhile
    const std::shared_ptr<Sequence> sequence = found->second;  // its functions may cancel it
    const Request& request = sequence->request;
    if (request.on_begin && !std::exchange(sequence->begun, true))
      request.on_begin(sequence->reused.value_or(0));
    if (event.logits) request.on_prompt_logits(event.first, event.logits);
    if (!event.routes.empty()) request.on_prompt_routes(event.first, event.routes);
    if (!sequences_.contains(event.id)) continue;
    Next next = Next::go_on;
    if (event.token && request.on_token) next = request.on_token(*event.token);
    if (!sequences_.contains(event.id)) continue;
    if (next != Next::go_on)
      finish(*sequence, next == Next::stop ? FinishReason::stop : FinishReason::cancelled);
    else if (event.finish)
      finish(*sequence, *event.finish);
  }
}

void Engine::finish(Sequence& sequence, FinishReason reason) {
  const std::function<void(FinishReason)> on_finish = std::move(sequence.request.on_finish);
  erase(sequence.id);
  if (on_finish) on_finish(reason);
}

Engine::Usage Engine::usage() const {
  const int64_t kept = scheduler_.kept_pages();
  return {.running = scheduler_.running(),
          .waiting = scheduler_.waiting(),
          .pages = cache_.pages(),
          .used_pages = cache_.pages() - cache_.free_pages() - kept,
          .kept_pages = kept,
          .steps = counted_.steps,
          .prompt_steps = counted_.prompt_steps,
          .prompt_tokens = counted_.prompt_tokens,
          .drawn_rows = counted_.drawn_rows,
          .preemptions = scheduler_.preemptions(),
          .lost_tokens = scheduler_.lost_tokens(),
          .reused_tokens = scheduler_.reused_tokens(),
          .speculation = speculator_ ? speculator_->counts() : SpeculationCounts()};
}

}  // namespace mixtral
