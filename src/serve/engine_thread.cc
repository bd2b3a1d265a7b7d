#include "serve/engine_thread.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <future>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "base/messages.h"
#include "serve/answer_run.h"

namespace mixtral::serve {
namespace {

/// The requests that one client made at once.
struct Job {
  JobId id = 0;
  std::string client;
  std::vector<GenerationRequest> requests;
  std::shared_ptr<GenerationListener> listener;
  size_t next_request = 0;  // which answer begins next
  int64_t next_answer = 0;
  std::set<RequestId> running;
  bool begun = false;
  std::optional<ApiError> error;

  bool all_begun() const { return next_request == requests.size(); }
  int64_t answers_to_begin() const {
    int64_t count = -next_answer;
    for (size_t i = next_request; i < requests.size(); ++i) count += requests[i].answers;
    return count;
  }
};

constexpr std::chrono::milliseconds kPublishEvery{50};  // the engine's counts, while it is busy

}  // namespace

struct EngineThread::State {
  State(Engine& engine_, const Tokenizer& tokenizer_, Options options_)
      : engine(engine_), tokenizer(tokenizer_), options(std::move(options_)) {}

  void loop();
  void take_messages(std::unique_lock<std::mutex>& lock);
  void begin_answers();
  Job* next_job();
  void begin_answer(Job& job);
  void step();
  void end_jobs();
  void fail_all(const ApiError& error);
  void erase(JobId id);
  void publish();

  Engine& engine;
  const Tokenizer& tokenizer;
  const Options options;

  // Of the engine's thread.
  std::map<JobId, std::unique_ptr<Job>> jobs;  // the oldest first
  int64_t running = 0;                         // answers
  std::map<std::string, uint64_t> last_turn;   // of a client that has jobs
  uint64_t turn = 0;
  std::vector<JobId> ended;  // jobs to be looked at after the step
  std::chrono::steady_clock::time_point published;

  // What the threads share.
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::unique_ptr<Job>> inbox;
  std::vector<JobId> cancelled;
  std::deque<std::packaged_task<void()>> works;
  std::optional<ApiError> end_error;
  std::optional<ApiError> refusal;  // of every new job
  bool stopping = false;
  JobId last_id = 0;
  int64_t waiting = 0;   // jobs of which no answer has begun
  int64_t to_begin = 0;  // answers of jobs that have begun
  size_t open_jobs = 0;
  EngineCounts counts;

  std::thread thread;
};

EngineThread::EngineThread(Engine& engine, const Tokenizer& tokenizer, const Options& options)
    : state_(std::make_unique<State>(engine, tokenizer, options)) {
  state_->thread = std::thread([state = state_.get()] { state->loop(); });
}

EngineThread::~EngineThread() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->changed.notify_one();
  state_->thread.join();
}

JobId EngineThread::submit(std::vector<GenerationRequest> requests, std::string client,
                           std::shared_ptr<GenerationListener> listener) {
  auto job = std::make_unique<Job>();
  job->client = std::move(client);
  job->requests = std::move(requests);
  job->listener = std::move(listener);
  CHECK(!job->requests.empty());
  for (const GenerationRequest& request : job->requests) CHECK(request.answers > 0);
  State& s = *state_;
  JobId id = 0;
  {
    const std::lock_guard lock(s.mutex);
    if (s.refusal) throw ApiError(*s.refusal);
    if (s.stopping) throw unavailable("the server is shutting down");
    const int64_t free = std::max<int64_t>(0, s.engine.sequences() - s.counts.running - s.to_begin);
    if (s.waiting >= s.options.queue + free) {
      ++s.counts.refused_jobs;
      throw too_many(s.waiting);
    }
    id = job->id = ++s.last_id;
    ++s.waiting;
    ++s.open_jobs;
    ++s.counts.jobs;
    s.inbox.push_back(std::move(job));
  }
  s.changed.notify_one();
  return id;
}

void EngineThread::cancel(JobId id) {
  {
    const std::lock_guard lock(state_->mutex);
    state_->cancelled.push_back(id);
  }
  state_->changed.notify_one();
}

void EngineThread::refuse(const ApiError& error) {
  const std::lock_guard lock(state_->mutex);
  state_->refusal = error;
}

bool EngineThread::idle() const {
  const std::lock_guard lock(state_->mutex);
  return state_->open_jobs == 0;
}

void EngineThread::end_all(const ApiError& error) {
  {
    const std::lock_guard lock(state_->mutex);
    state_->end_error = error;
  }
  state_->changed.notify_one();
}

EngineCounts EngineThread::counts() const {
  const std::lock_guard lock(state_->mutex);
  EngineCounts counts = state_->counts;
  counts.waiting = state_->waiting;
  return counts;
}

void EngineThread::with_engine(const std::function<void(Engine&)>& work) {
  std::packaged_task<void()> task([&] { work(state_->engine); });
  std::future<void> done = task.get_future();
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->stopping) throw unavailable("the server is shutting down");
    state_->works.push_back(std::move(task));
  }
  state_->changed.notify_one();
  done.get();
}

void EngineThread::State::loop() {
  while (true) {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] {
        return stopping || end_error || !inbox.empty() || !cancelled.empty() || !works.empty() ||
               !jobs.empty();
      });
      if (stopping) break;
      take_messages(lock);
    }
    begin_answers();
    step();
    end_jobs();
    // Counting looks at every page that is kept: not after each of many short steps.
    if (jobs.empty() || std::chrono::steady_clock::now() - published >= kPublishEvery) publish();
  }
  fail_all(unavailable("the server is shutting down"));
  const std::lock_guard lock(mutex);
  works.clear();  // whoever waits hears that the promise is broken
}

/// Does what other threads asked for. The lock is held before and after.
void EngineThread::State::take_messages(std::unique_lock<std::mutex>& lock) {
  for (std::unique_ptr<Job>& job : inbox) {
    const JobId id = job->id;
    jobs.emplace(id, std::move(job));
  }
  inbox.clear();
  const std::vector<JobId> gone = std::exchange(cancelled, {});
  const std::optional<ApiError> error = std::exchange(end_error, std::nullopt);
  std::deque<std::packaged_task<void()>> tasks = std::exchange(works, {});
  for (const JobId id : gone)
    if (jobs.contains(id)) ++counts.cancelled_jobs;
  lock.unlock();
  for (const JobId id : gone) erase(id);
  if (error) fail_all(*error);
  for (std::packaged_task<void()>& task : tasks) task();
  lock.lock();
}

/// The job whose next answer begins: of the client with the fewest running answers, then of the one
/// that waits longest for its turn.
Job* EngineThread::State::next_job() {
  std::map<std::string_view, size_t> load;
  for (const auto& [id, job] : jobs) load[job->client] += job->running.size();
  Job* best = nullptr;
  std::pair<size_t, uint64_t> least{std::numeric_limits<size_t>::max(), 0};
  for (const auto& [id, job] : jobs) {
    if (job->all_begun() || job->error) continue;
    const std::pair<size_t, uint64_t> rank{load[job->client], last_turn[job->client]};
    if (best != nullptr && rank >= least) continue;
    best = job.get();
    least = rank;
  }
  return best;
}

void EngineThread::State::begin_answers() {
  while (running < engine.sequences()) {
    Job* job = next_job();
    if (job == nullptr) return;
    begin_answer(*job);
  }
}

void EngineThread::State::begin_answer(Job& job) {
  const GenerationRequest& wanted = job.requests[job.next_request];
  const JobId id = job.id;
  last_turn[job.client] = ++turn;
  {
    const std::lock_guard lock(mutex);
    if (!std::exchange(job.begun, true)) {
      --waiting;
      to_begin += job.answers_to_begin();
    }
    --to_begin;
    ++counts.running;
  }
  ++running;
  const int64_t index = job.next_answer++;
  if (job.next_answer == wanted.answers) {
    ++job.next_request;
    job.next_answer = 0;
  }
  const auto begun = std::make_shared<RequestId>(0);
  const auto tokens = static_cast<int64_t>(wanted.prompt.size());
  try {
    if (wanted.adapter_is_there && !*wanted.adapter_is_there)
      throw ApiError(404, "the adapter was unloaded while the request waited", "model",
                     "model_not_found");
    const auto run = std::make_shared<AnswerRun>(wanted, index, tokenizer, *job.listener);
    *begun = engine.submit(
        run->request([this, id, begun, tokens, weak = std::weak_ptr(run)](const ApiError* error) {
          Job& owner = *jobs.at(id);
          owner.running.erase(*begun);
          if (error != nullptr && !owner.error) owner.error = *error;
          ended.push_back(id);
          --running;
          const std::lock_guard lock(mutex);
          --counts.running;
          counts.prompt_tokens += tokens;
          if (const auto answer = weak.lock()) {
            counts.generated_tokens += answer->finish().tokens;
            counts.cached_prompt_tokens += answer->finish().cached_tokens;
          }
        }));
    job.running.insert(*begun);
  } catch (...) {
    job.error = current_error();
    ended.push_back(id);
    --running;
    const std::lock_guard lock(mutex);
    --counts.running;
  }
}

void EngineThread::State::step() {
  if (running == 0) return;
  const auto start = std::chrono::steady_clock::now();
  try {
    engine.step();
    if (options.after_step) options.after_step(engine);
  } catch (const std::exception& error) {
    messages::print("serve: a step failed: {}", error.what());
    fail_all(ApiError(500, "the engine failed; the server's log says why"));
  }
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  const std::lock_guard lock(mutex);
  counts.busy_seconds += time.count();
}

/// Ends the jobs that are complete, or have failed.
void EngineThread::State::end_jobs() {
  for (const JobId id : std::exchange(ended, {})) {
    const auto found = jobs.find(id);
    if (found == jobs.end()) continue;
    Job& job = *found->second;
    if (!job.error && !(job.all_begun() && job.running.empty())) continue;
    const std::shared_ptr<GenerationListener> listener = job.listener;
    const std::optional<ApiError> error = job.error;
    erase(id);
    {
      const std::lock_guard lock(mutex);
      ++(error ? counts.failed_jobs : counts.finished_jobs);
    }
    if (error)
      listener->on_error(*error);
    else
      listener->on_done();
  }
}

void EngineThread::State::fail_all(const ApiError& error) {
  {
    const std::lock_guard lock(mutex);
    for (std::unique_ptr<Job>& job : inbox) {
      const JobId id = job->id;
      jobs.emplace(id, std::move(job));
    }
    inbox.clear();
  }
  while (!jobs.empty()) {
    const JobId id = jobs.begin()->first;
    const std::shared_ptr<GenerationListener> listener = jobs.begin()->second->listener;
    erase(id);
    {
      const std::lock_guard lock(mutex);
      ++counts.failed_jobs;
    }
    listener->on_error(error);
  }
}

void EngineThread::State::erase(JobId id) {
  const auto found = jobs.find(id);
  if (found == jobs.end()) return;
  Job& job = *found->second;
  for (const RequestId request : job.running) engine.cancel(request);
  running -= static_cast<int64_t>(job.running.size());
  {
    const std::lock_guard lock(mutex);
    counts.running -= static_cast<int64_t>(job.running.size());
    if (job.begun)
      to_begin -= job.answers_to_begin();
    else
      --waiting;
    --open_jobs;
  }
  const std::string client = job.client;
  jobs.erase(found);
  if (std::ranges::none_of(jobs, [&](const auto& item) { return item.second->client == client; }))
    last_turn.erase(client);
}

void EngineThread::State::publish() {
  published = std::chrono::steady_clock::now();
  const Engine::Usage usage = engine.usage();
  const std::lock_guard lock(mutex);
  counts.cache = usage;
}

}  // namespace mixtral::serve
