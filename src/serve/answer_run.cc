#include "serve/answer_run.h"

#include <algorithm>

#include "infer/token_scores.h"

namespace mixtral::serve {

void GenerationListener::on_prompt(size_t, std::vector<TokenInfo>&&) {}
void GenerationListener::on_prompt_routes(size_t, const std::vector<TokenRoutes>&) {}

std::string token_bytes(const Tokenizer& tokenizer, int32_t id) {
  return id >= 0 && id < tokenizer.vocab_size() ? tokenizer.piece(id) : std::string();
}

AnswerRun::AnswerRun(const GenerationRequest& request, int64_t index, const Tokenizer& tokenizer,
                     GenerationListener& listener)
    : request_(request),
      choice_(request.first_choice + static_cast<size_t>(index)),
      index_(index),
      tokenizer_(tokenizer),
      listener_(listener),
      filter_(request.filter ? request.filter() : nullptr),
      text_(&tokenizer, request.stop, [this](std::string_view text) { ready_ += text; }) {
  finish_.prompt_tokens = static_cast<int64_t>(request.prompt.size());
}

Request AnswerRun::request(Done done) {
  done_ = std::move(done);
  Request request{.prompt = request_.prompt,
                  .options = request_.options,
                  .adapter = request_.adapter,
                  .best = request_.logprobs ? std::max<int64_t>(1, *request_.logprobs) : 0,
                  .routes = request_.experts};
  request.options.sampling.seed += static_cast<uint64_t>(index_);
  // Whoever asks for the log-probabilities of a whole text gets the token that ended it, too.
  if (request_.prompt_logprobs) request.options.stop_ids.clear();
  const auto self = shared_from_this();
  request.on_begin = [self](int64_t cached) { self->finish_.cached_tokens = cached; };
  request.on_token = [self](const GeneratedToken& token) { return self->on_token(token); };
  request.on_finish = [self](FinishReason reason) { self->on_finish(reason); };
  if (filter_) request.allow = [self](TokenMask& mask) { self->allow(mask); };
  if (request_.prompt_experts && index_ == 0)
    request.on_prompt_routes = [self](int64_t, const std::vector<TokenRoutes>& routes) {
      self->on_prompt_routes(routes);
    };
  if (request_.prompt_logprobs)
    request.on_prompt_logits = [self](int64_t first, const Tensor& logits) {
      self->on_prompt_logits(first, logits);
    };
  return request;
}

void AnswerRun::fail() {
  if (!error_) error_ = current_error();
}

TokenInfo AnswerRun::info(int32_t id) const {
  return {.id = id, .bytes = token_bytes(tokenizer_, id)};
}

std::string AnswerRun::take_text() { return std::exchange(ready_, {}); }

void AnswerRun::allow(TokenMask& mask) {
  try {
    filter_->allow(mask);
    const bool can_end = filter_->can_end();
    for (const int64_t id : request_.options.stop_ids) {
      uint32_t& word = mask[static_cast<size_t>(id / 32)];
      const uint32_t bit = uint32_t{1} << (id % 32);
      word = can_end ? word | bit : word & ~bit;
    }
    if (std::ranges::any_of(mask, [](uint32_t word) { return word != 0; })) return;
    must_end_ = true;
    if (!can_end)
      throw ApiError(500, "no token of this model's vocabulary goes on with what was asked for");
  } catch (...) {
    fail();
  }
  // Something has to be drawn; it is dropped.
  mask.assign(mask.size(), ~uint32_t{0});
}

Next AnswerRun::on_token(const GeneratedToken& token) {
  if (error_) return Next::cancel;
  if (must_end_) return Next::stop;
  try {
    ++finish_.tokens;
    const bool ends =
        std::ranges::find(request_.options.stop_ids, token.id) != request_.options.stop_ids.end();
    if (filter_ && !ends) filter_->accept(token.id);
    const bool stopped = ends || text_.push(token.id);
    if (stopped) finish_.stop_text = text_.stop_text();
    TextPiece piece{.text = take_text()};
    if (reports_tokens()) {
      piece.tokens.push_back(info(token.id));
      TokenInfo& made = piece.tokens.back();
      made.logprob = token.log_probability;
      made.best = token.best;
      made.best.resize(
          std::min(made.best.size(), static_cast<size_t>(request_.logprobs.value_or(0))));
      made.routes = token.routes;
    }
    if (!piece.text.empty() || !piece.tokens.empty()) listener_.on_piece(choice_, piece);
    return stopped ? Next::stop : Next::go_on;
  } catch (...) {
    fail();
    return Next::cancel;
  }
}

void AnswerRun::on_finish(FinishReason reason) {
  try {
    if (!error_) {
      text_.finish();
      if (finish_.stop_text.empty()) finish_.stop_text = text_.stop_text();
      if (TextPiece piece{.text = take_text()}; !piece.text.empty())
        listener_.on_piece(choice_, piece);
      finish_.reason = finish_.stop_text.empty() ? reason : FinishReason::stop;
      listener_.on_finish(choice_, finish_);
    }
  } catch (...) {
    fail();
  }
  done_(error_ ? &*error_ : nullptr);
}

void AnswerRun::on_prompt_routes(const std::vector<TokenRoutes>& routes) {
  if (error_) return;
  try {
    listener_.on_prompt_routes(choice_, routes);
  } catch (...) {
    fail();
  }
}

void AnswerRun::on_prompt_logits(int64_t first, const Tensor& logits) {
  if (error_) return;
  try {
    const std::vector<int32_t>& prompt = request_.prompt;
    if (prompt_.empty()) prompt_.push_back(info(prompt.front()));
    for (int64_t row = 0; row < logits.dim(0); ++row) {
      const auto next = static_cast<size_t>(first + row + 1);
      if (next >= prompt.size()) break;
      TokenScores scores = score_token(logits[row], prompt[next], *request_.prompt_logprobs);
      prompt_.push_back(info(prompt[next]));
      prompt_.back().logprob = scores.log_probability;
      prompt_.back().best = std::move(scores.best);
    }
    if (first + logits.dim(0) >= static_cast<int64_t>(prompt.size()))
      listener_.on_prompt(choice_, std::exchange(prompt_, {}));
  } catch (...) {
    fail();
  }
}

}  // namespace mixtral::serve
