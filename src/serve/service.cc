#include "serve/service.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <random>
#include <ranges>
#include <vector>

#include "base/printable.h"
#include "open/open_within.h"
#include "serve/model_identity.h"

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

/// Writes to all of an empty cache. A CPU backs memory no sooner: so it is there from the start on,
/// and neither grows with use nor is missing later.
void claim_memory(KvCache& cache) {
  const int64_t bytes = cache.page_shape().numel() * size_of(cache.dtype());
  const Buffer zeros(host_memory(), bytes);
  std::memset(zeros.data(), 0, static_cast<size_t>(bytes));
  const Tensor page = zeros.tensor(cache.page_shape(), cache.dtype());
  std::vector<int32_t> taken;
  while (cache.free_pages() > 0) {
    taken.push_back(cache.take_page());
    cache.write_page(taken.back(), page);
  }
  for (const int32_t each : std::views::reverse(taken)) cache.release(each);
}

/// Passes the text of answers through their readers.
class ChatListening : public GenerationListener {
 public:
  ChatListening(std::shared_ptr<ChatListener> listener, ChatPlan plan)
      : listener_(std::move(listener)), plan_(std::move(plan)) {}

  void on_prompt_routes(size_t choice, const std::vector<TokenRoutes>& routes) override {
    listener_->on_prompt_routes(choice, routes);
  }
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
    : source_(source), tokenizer_(source.require_tokenizer()), experts_(source.config()) {
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
  PlannedModel planned = open_within(source, open, options.most_memory, note);
  opened_ = std::move(planned.opened);
  planned_ = planned.bytes;
  stop_ids_ = source.stop_ids();
  created_ = std::chrono::duration_cast<std::chrono::seconds>(
                 std::chrono::system_clock::now().time_since_epoch())
                 .count();
  identity_ = model_identity(source, open, opened_.precision);
  id_ = options.name.empty() ? name_of(source) : options.name;
  for (const auto& [name, file] : adapters) (void)add_adapter(name, file);
  format_ = std::make_unique<ChatFormat>(source);
  Engine::Options engine_options = opened_.engine_options();
  engine_options.context = context_;
  engine_options.sequences = options.parallel;
  engine_options.count_experts = true;
  engine_ = std::make_unique<Engine>(*opened_.backend, *opened_.model, engine_options);
  if (opened_.backend->kind() != DeviceKind::gpu) claim_memory(engine_->cache());
  engine_thread_ = std::make_unique<EngineThread>(
      *engine_, *tokenizer_,
      EngineThread::Options{.queue = options.queue, .after_step = [this](const Engine& engine) {
                              experts_.note(*engine.expert_load());
                            }});
}

Service::~Service() = default;

int64_t Service::layers() const { return opened_.model->config().num_layers; }

int64_t Service::vocabulary() const { return opened_.model->config().vocab_size; }

std::vector<ServedModel> Service::models() const {
  std::vector<ServedModel> all{{.id = id_}};
  const std::lock_guard lock(mutex_);
  all.insert(all.end(), adapters_.begin(), adapters_.end());
  return all;
}

ServedModel Service::model(std::string_view name) const {
  if (name.empty() || name == id_) return {.id = id_};
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(adapters_, name, &ServedModel::id);
  if (found == adapters_.end()) throw unknown_model(name);
  return *found;
}

/// On the engine's thread, or before it runs.
ServedModel Service::add_adapter(const std::string& name, const AdapterFile& file) {
  const int64_t before = opened_.adapters->bytes();
  ServedModel served{.id = fmt::format("{}:{}", id_, name),
                     .parent = id_,
                     .adapter = opened_.adapters->add(file),
                     .is_there = std::make_shared<std::atomic<bool>>(true)};
  adapter_bytes_ += opened_.adapters->bytes() - before;
  const std::lock_guard lock(mutex_);
  adapters_.push_back(served);
  return served;
}

ServedModel Service::load_adapter(const std::string& name, const std::string& folder,
                                  std::optional<int64_t> most) {
  const std::lock_guard one(changing_);
  const std::string id = fmt::format("{}:{}", id_, name);
  {
    const std::lock_guard lock(mutex_);
    if (std::ranges::find(adapters_, id, &ServedModel::id) != adapters_.end())
      throw ApiError(400, fmt::format("there is an adapter {} already; unload it first, or take "
                                      "another name",
                                      printable(id)));
  }
  const AdapterFile file = source_.load_adapter(folder);
  ServedModel served;
  engine_thread_->with_engine([&](Engine& engine) {
    const int64_t before = adapter_bytes_ = opened_.adapters->bytes();
    served = add_adapter(name, file);
    if (const int64_t bytes = adapter_bytes_ - before; most && bytes > *most) {
      take_out(engine, served);
      throw Error(
          fmt::format("the adapter takes {} of memory, and {} are left of what the server "
                      "may take; unload something else first",
                      format_bytes(bytes), format_bytes(*most)));
    }
  });
  return served;
}

void Service::unload_adapter(const std::string& name) {
  const std::lock_guard one(changing_);
  const std::string id = fmt::format("{}:{}", id_, name);
  const ServedModel served = model(id);
  engine_thread_->with_engine([&](Engine& engine) { take_out(engine, served); });
}

/// On the engine's thread.
void Service::take_out(Engine& engine, const ServedModel& served) {
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(adapters_, [&](const ServedModel& each) { return each.id == served.id; });
  }
  *served.is_there = false;
  engine.prefixes().forget(opened_.adapters->serial(served.adapter));
  opened_.adapters->remove(served.adapter);
  adapter_bytes_ = opened_.adapters->bytes();
}

void Service::end_with_client(JobId job, Reply& reply) {
  reply.on_gone([weak = weak_from_this(), job] {
    if (const auto service = weak.lock()) service->engine().cancel(job);
  });
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
                            .adapter_is_there = model.is_there,
                            .logprobs = answer.logprobs,
                            .experts = answer.experts,
                            .prompt_experts = answer.prompt_experts};
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
  const ServedModel served = model(request.model);
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
