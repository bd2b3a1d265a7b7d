#include "serve/service.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <random>

#include "base/printable.h"

namespace mixtral::serve {
namespace {

std::string name_of(const ModelSource& source) {
  if (source.is_builtin()) return source.name();
  std::filesystem::path path = std::filesystem::path(source.name()).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  std::string name = path.filename().string();
  if (name.empty() || name == "." || name == "..") name = "mixtral";
  return name;
}

uint64_t random_seed() {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return generator();
}

/// Passes the text of answers through their readers.
class ChatListening : public GenerationListener {
 public:
  ChatListening(std::shared_ptr<ChatListener> listener, ChatPlan plan)
      : listener_(std::move(listener)), plan_(std::move(plan)) {}

  void on_piece(size_t choice, const TextPiece& piece) override {
    ReplyReader* reader = reader_of(choice);
    ChatDelta delta;
    if (reader == nullptr)
      delta.content = piece.text;
    else if (!piece.text.empty())
      delta = reader->push(piece.text);
    delta.tokens = piece.tokens;
    tell(choice, delta);
  }
  void on_finish(size_t choice, const Finish& finish) override {
    ReplyReader* reader = reader_of(choice);
    if (reader != nullptr) tell(choice, reader->finish());
    ChatFinish end{.stop_text = finish.stop_text,
                   .tokens = finish.tokens,
                   .prompt_tokens = finish.prompt_tokens,
                   .cached_tokens = finish.cached_tokens};
    end.reason = finish.reason != FinishReason::stop          ? ChatFinish::Reason::length
                 : reader != nullptr && reader->calls_tools() ? ChatFinish::Reason::tool_calls
                                                              : ChatFinish::Reason::stop;
    listener_->on_finish(choice, end);
  }
  void on_done() override { listener_->on_done(); }
  void on_error(const ApiError& error) override { listener_->on_error(error); }

 private:
  ReplyReader* reader_of(size_t choice) {
    if (!plan_.reader) return nullptr;
    if (readers_.size() <= choice) readers_.resize(choice + 1);
    if (!readers_[choice]) readers_[choice] = plan_.reader();
    return readers_[choice].get();
  }
  void tell(size_t choice, const ChatDelta& delta) {
    if (!delta.content.empty() || !delta.tool_calls.empty() || !delta.tokens.empty())
      listener_->on_delta(choice, delta);
  }

  std::shared_ptr<ChatListener> listener_;
  ChatPlan plan_;
  std::vector<std::unique_ptr<ReplyReader>> readers_;
};

}  // namespace

Service::Service(const ModelSource& source, OpenOptions open, const Options& options,
                 const ModelSource::Note& note)
    : tokenizer_(source.require_tokenizer()) {
  source.check_tokenizer();
  context_ = options.context > 0 ? options.context : source.config().max_positions;
  open.context = context_;
  open.sequences = options.parallel;
  std::map<std::string, AdapterFile> adapters;
  for (const auto& [name, folder] : options.adapters) {
    if (adapters.contains(name))
      throw Error(fmt::format("two adapters have the name {}", printable(name)));
    adapters.emplace(name, source.load_adapter(folder));
  }
  opened_ = open_model(source, open, note);
  stop_ids_ = source.stop_ids();
  created_ = std::chrono::duration_cast<std::chrono::seconds>(
                 std::chrono::system_clock::now().time_since_epoch())
                 .count();
  models_.push_back({.id = options.name.empty() ? name_of(source) : options.name});
  for (const auto& [name, file] : adapters) {
    const std::string& base = models_.front().id;
    models_.push_back({.id = fmt::format("{}:{}", base, name),
                       .parent = base,
                       .adapter = opened_.adapters->add(file)});
  }
  format_ = std::make_unique<ChatFormat>(source);
  engine_ = std::make_unique<Engine>(*opened_.backend, *opened_.model,
                                     Engine::Options{.context = context_,
                                                     .sequences = options.parallel,
                                                     .count_experts = options.after_step != nullptr,
                                                     .adapters = opened_.adapters.get()});
  engine_thread_ = std::make_unique<EngineThread>(
      *engine_, *tokenizer_,
      EngineThread::Options{.queue = options.queue, .after_step = options.after_step});
}

Service::~Service() = default;

int64_t Service::layers() const { return opened_.model->config().num_layers; }

int64_t Service::vocabulary() const { return opened_.model->config().vocab_size; }

const ServedModel& Service::model(std::string_view name) const {
  if (name.empty()) return models_.front();
  const auto found = std::ranges::find(models_, name, &ServedModel::id);
  if (found == models_.end()) throw unknown_model(name);
  return *found;
}

GenerationRequest Service::generation(std::vector<int32_t> prompt, const AnswerOptions& answer,
                                      const ServedModel& model, const std::string& field) const {
  if (prompt.empty())
    throw bad_field(field, "has no tokens, and this model has no token that begins a text");
  for (const int32_t id : prompt)
    if (id < 0 || id >= vocabulary())
      throw bad_field(field,
                      fmt::format("token id {} is not one of the model's {}", id, vocabulary()));
  const auto length = static_cast<int64_t>(prompt.size());
  const int64_t room = context_ - length;
  const bool writes = answer.max_tokens.value_or(1) > 0;
  if (room < (writes ? 1 : 0)) throw too_long(length, context_, field);
  for (const auto& [id, bias] : answer.logit_bias)
    if (id < 0 || id >= vocabulary())
      throw bad_field("logit_bias",
                      fmt::format("token id {} is not one of the model's {}", id, vocabulary()));
  GenerationRequest request{.prompt = std::move(prompt),
                            .stop = answer.stop,
                            .answers = answer.n,
                            .adapter = model.adapter,
                            .logprobs = answer.logprobs,
                            .experts = answer.experts};
  GenerationOptions& options = request.options;
  options.sampling = {.temperature = answer.temperature,
                      .top_k = answer.top_k,
                      .top_p = answer.top_p,
                      .min_p = answer.min_p,
                      .repeat_penalty = answer.repeat_penalty,
                      .seed = answer.seed ? *answer.seed : random_seed()};
  options.max_tokens = std::min(answer.max_tokens.value_or(room), room);
  if (!answer.ignore_eos) options.stop_ids = stop_ids_;
  options.logit_bias = answer.logit_bias;
  options.presence_penalty = answer.presence_penalty;
  options.frequency_penalty = answer.frequency_penalty;
  return request;
}

Started Service::chat(const ChatRequest& request, std::shared_ptr<ChatListener> listener) {
  const ServedModel& served = model(request.model);
  ChatPlan plan = format_->plan(request);
  GenerationRequest generation_request =
      generation(plan.prompt, request.answer, served, "messages");
  generation_request.filter = plan.filter;
  Started started{.prompt_tokens = static_cast<int64_t>(plan.prompt.size())};
  std::vector<GenerationRequest> all;
  all.push_back(std::move(generation_request));
  started.job =
      engine_thread_->submit(std::move(all), request.client,
                             std::make_shared<ChatListening>(std::move(listener), std::move(plan)));
  return started;
}

int64_t Service::count_tokens(const ChatRequest& request) const {
  (void)model(request.model);
  return static_cast<int64_t>(format_->plan(request).prompt.size());
}

}  // namespace mixtral::serve
