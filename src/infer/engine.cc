#include "infer/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

namespace mixtral {
namespace {

KvCache::Options cache_options(const Backend& backend, const Mixtral& model,
                               const Engine::Options& options) {
  const int64_t context = options.context > 0 ? options.context : model.context();
  const int64_t page = backend.page_tokens();
  return {.sequences = options.sequences,
          .context = context,
          .pages = (options.cache_tokens + page - 1) / page,
          .chunk = std::min(options.chunk, context),
          .page_tokens = page,
          .dtype = model.options().compute};
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
      padding_(options.padding != Padding::automatic ? options.padding
               : backend.runs_behind()               ? Padding::powers_of_two
                                                     : Padding::none),
      arena_(backend),
      ctx_(backend, arena_, model.options().compute),
      cache_(backend, model.config(), cache_options(backend, model, options)),
      rows_(ctx_, options.sequences, model.config().vocab_size, cache_.context()),
      recordings_(backend, arena_, static_cast<size_t>(options.sequences)),
      scheduler_(cache_,
                 {.chunk = cache_.chunk(),
                  .most_pages = KvCache::pages_of_sequence(backend, model.config(),
                                                           cache_options(backend, model, options)),
                  // Behind a sliding window pages are given back: no beginning stays whole.
                  .share_pages = options.share_pages && model.config().sliding_window <= 0}) {
  ctx_.set_operands(model.options().operands);
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
  if (!options.count_experts) return;
  make_routes();
  load_.emplace(model.config());
}

void Engine::make_routes() {
  // A step has at most a chunk of prompts' tokens and one token of each sequence.
  if (!routes_) routes_.emplace(ctx_, model_.config(), cache_.chunk() + cache_.sequences());
}

void Engine::check(const Request& request) const {
  const auto length = static_cast<int64_t>(request.prompt.size());
  const int64_t room = request.options.max_tokens > 0 ? 1 : 0;
  CHECK(request.options.max_tokens >= 0 && request.best >= 0);
  CHECK(request.adapter == kNoAdapter, "there are no adapters to choose from");
  if (request.prompt.empty()) throw Error("the prompt has no tokens; give at least one");
  if (length + room > context())
    throw Error(
        fmt::format("a prompt of {} tokens does not fit a context of {} with room for {} "
                    "more; shorten it, or raise --context where the model has more positions",
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
  if (request.routes || request.on_prompt_routes) make_routes();
  auto sequence = std::make_shared<Sequence>();
  sequence->id = ++last_id_;
  sequence->tokens = request.prompt;
  sequence->request = std::move(request);
  scheduler_.add(*sequence);
  sequences_.emplace(sequence->id, std::move(sequence));
  return last_id_;
}

void Engine::erase(RequestId id) {
  const auto found = sequences_.find(id);
  Sequence& sequence = *found->second;
  scheduler_.remove(sequence);
  if (sequence.seat >= 0) seats_[static_cast<size_t>(sequence.seat)] = nullptr;
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
  const Scheduler::Step step = scheduler_.next();
  if (step.empty()) return;
  try {
    take_seats(step);
    fill_masks();
    cache_.upload();
    rows_.upload();
    arena_.reset();
    if (!step.prefill.empty()) {
      prepare_routes(step, step.tokens());
      prefill(step);
    } else {
      const auto count = static_cast<uint64_t>(seats_.size());
      const auto rows = static_cast<int64_t>(
          padding_ == Padding::none
              ? count
              : std::min(std::bit_ceil(count), static_cast<uint64_t>(cache_.sequences())));
      prepare_routes(step, rows);
      recordings_.run({rows, reports_ ? 1 : 0}, [this, rows] { decode(rows); });
    }
    if (!seats_.empty()) rows_.read();
    if (reports_) collect_routes(step);
  } catch (...) {
    // Pages that this step was to fill are kept already, and were perhaps not filled.
    scheduler_.forget_prefixes();
    throw;
  }
  Scheduler::complete(step);
  collect(step);
}

void Engine::sit(Sequence& sequence, size_t seat) {
  sequence.seat = static_cast<int64_t>(seat);
  sequence.preempted = false;
  rows_.set(sequence.seat, {.tokens = sequence.tokens,
                            .prompt = sequence.request.prompt.size(),
                            .cache_row = sequence.cache_row,
                            .options = &sequence.request.options});
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
  const auto count = static_cast<int64_t>(seats_.size());
  for (int64_t row = count; row < device_seats_; ++row) rows_.clear(row);
  device_seats_ = count;
}

void Engine::fill_masks() {
  for (const Sequence* sequence : seats_) {
    if (!sequence->request.allow) continue;
    TokenMask mask(static_cast<size_t>(ops::allowed_words(vocabulary())), ~uint32_t{0});
    sequence->request.allow(mask);
    rows_.set_mask(sequence->seat, mask);
  }
}

void Engine::decode(int64_t rows) {
  const ArenaScope scope(arena_);
  Batch batch;
  batch.tokens = rows_.tokens(rows);
  batch.sequences = {.positions = rows_.positions(rows),
                     .starts = rows_.starts(rows),
                     .longest = 1,
                     .rows = rows_.cache_rows(rows),
                     .decode_rows = rows};
  model_.logits(ctx_, model_.forward(ctx_, batch, &cache_, nullptr, reports_), rows_.logits(rows));
  rows_.draw(rows);
}

void Engine::prefill(const Scheduler::Step& step) {
  const ArenaScope scope(arena_);
  HostBatch host;
  std::vector<int32_t>& drawn = drawn_from_;
  drawn.clear();
  host.decode_rows = static_cast<int64_t>(step.decode.size());
  host.sequence_starts.push_back(0);
  const auto append = [&](const Sequence& sequence, int64_t count) {
    for (int64_t p = sequence.cached; p < sequence.cached + count; ++p) {
      host.tokens.push_back(sequence.tokens[static_cast<size_t>(p)]);
      host.positions.push_back(static_cast<int32_t>(p));
      host.rows.push_back(sequence.cache_row);
    }
    host.sequence_starts.push_back(static_cast<int32_t>(host.tokens.size()));
  };
  for (size_t i = 0; i < step.decode.size(); ++i) {
    append(*seats_[i], 1);
    drawn.push_back(static_cast<int32_t>(i));
  }
  for (const Scheduler::Slice& slice : step.prefill) {
    append(*slice.sequence, slice.count);
    if (slice.sequence->seat >= 0) drawn.push_back(host.sequence_starts.back() - 1);
  }
  CHECK(drawn.size() == seats_.size());
  const Batch batch = upload_batch(ctx_, host);
  const Tensor hidden = model_.forward(ctx_, batch, &cache_, nullptr, reports_);
  for (size_t i = 0; i < step.prefill.size(); ++i) {
    const auto run = step.decode.size() + i;
    if (step.prefill[i].sequence->wants_logits())
      report_prompt_logits(step.prefill[i],
                           hidden.slice(host.sequence_starts[run], host.sequence_starts[run + 1]));
  }
  if (drawn.empty()) return;
  const auto count = static_cast<int64_t>(drawn.size());
  Tensor last = hidden.slice(0, count);
  if (drawn.back() + 1 != count) {
    const Tensor source = ctx_.allocate({count}, Dtype::i32);
    backend_.upload(Tensor(std::span(drawn)), source);
    last = ctx_.allocate({count, hidden.dim(1)});
    // Each row is the hidden state of one token: a gather, as an embedding is.
    ctx_.run(ops::Embedding{.table = hidden, .tokens = source, .x = last});
  }
  model_.logits(ctx_, last, rows_.logits(count));
  rows_.draw(count);
}

void Engine::report_prompt_logits(const Scheduler::Slice& slice, const Tensor& hidden) {
  const ArenaScope scope(arena_);
  Sequence& sequence = *slice.sequence;
  const int64_t first = std::max(sequence.cached, sequence.reported);
  const int64_t end =
      std::min(sequence.cached + slice.count, static_cast<int64_t>(sequence.request.prompt.size()));
  if (first >= end) return;
  const Tensor logits = ctx_.allocate({end - first, vocabulary()}, ctx_.statistics());
  model_.logits(ctx_, hidden.slice(first - sequence.cached, end - sequence.cached), logits);
  Event event{.id = sequence.id, .first = first};
  event.logits_buffer = Buffer(host_memory(), logits.bytes());
  event.logits = event.logits_buffer.tensor(logits.shape(), logits.dtype());
  backend_.download(logits, event.logits);
  events_.push_back(std::move(event));
  sequence.reported = end;
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
  auto token = static_cast<int64_t>(step.decode.size());
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
    const GenerationOptions& options = sequence->request.options;
    Event event{.id = sequence->id};
    const int32_t id = rows_.drawn(sequence->seat);
    if (std::ranges::find(options.stop_ids, id) != options.stop_ids.end()) {
      event.finish = FinishReason::stop;
    } else {
      event.token = {.id = id, .log_probability = rows_.log_probability(sequence->seat)};
      if (sequence->request.best > 0) {
        TokenScores scores = score_drawn(sequence->seat, id, sequence->request.best);
        event.token->log_probability = scores.log_probability;
        event.token->best = std::move(scores.best);
      }
      if (sequence->request.routes)
        event.token->routes =
            routes_->of(step.prefill.empty() ? sequence->seat
                                             : drawn_from_[static_cast<size_t>(sequence->seat)]);
      sequence->tokens.push_back(id);
      rows_.penalise(sequence->seat, {.tokens = sequence->tokens,
                                      .prompt = sequence->request.prompt.size(),
                                      .options = &options});
      if (sequence->drawn() >= options.max_tokens)
        event.finish = FinishReason::length;
      else if (sequence->length() > context())
        event.finish = FinishReason::context;
    }
    events_.push_back(std::move(event));
  }
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
    for (size_t i = 0; i < event.routes.size() && sequences_.contains(event.id); ++i)
      request.on_prompt_routes(event.first + static_cast<int64_t>(i), event.routes[i]);
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
          .preemptions = scheduler_.preemptions(),
          .reused_tokens = scheduler_.reused_tokens()};
}

}  // namespace mixtral
