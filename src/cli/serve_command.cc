#include "cli/serve_command.h"

#if __has_include(<malloc.h>)
#include <malloc.h>
#endif

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <thread>

#include "cli/common.h"
#include "cli/run_config.h"
#include "cli/speculation_options.h"
#include "serve/application.h"
#include "train/stop_signal.h"

namespace mixtral {
namespace {

constexpr int64_t kContext = 8192;  // at most, unless --context says otherwise
constexpr auto kGrace = std::chrono::seconds(8);
constexpr auto kLook = std::chrono::milliseconds(50);  // how often it looks for a signal

struct ServeOptions {
  CommonOptions common;
  SpeculationFlags speculation;
  std::string model, tokenizer, name, host = "127.0.0.1";
  int32_t port = 8080;
  std::string folder, states;
  std::vector<std::string> keys, administrator_keys, adapters, origins;
  int64_t context = 0, parallel = 4, queue = 64;
  std::optional<int64_t> budget;
  double idle_minutes = 0;
  bool metrics = false;
};

/// "NAME=DIR" of --adapter.
std::pair<std::string, std::string> parse_adapter(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == 0 || equals == std::string::npos || equals + 1 == text.size())
    throw UsageError(fmt::format("--adapter {}: expected NAME=DIR", text));
  return {text.substr(0, equals), text.substr(equals + 1)};
}

void check_origin(const std::string& origin) {
  const bool page = origin.starts_with("http://") || origin.starts_with("https://");
  if (origin != "*" && (!page || origin.ends_with('/')))
    throw UsageError(fmt::format(
        "--allow-origin {}: expected an origin such as https://app.example, or *", origin));
}

serve::Application::Options application_options(const ServeOptions& o) {
  serve::Application::Options options;
  options.http.host = o.host;
  options.http.port = static_cast<uint16_t>(o.port);
  options.access.keys = o.keys;
  if (options.access.keys.empty())
    if (const char* key = std::getenv("MIXTRAL_API_KEY"); key != nullptr && *key != '\0')
      options.access.keys.emplace_back(key);
  options.access.administrator_keys = o.administrator_keys;
  if (options.access.administrator_keys.empty())
    if (const char* key = std::getenv("MIXTRAL_ADMIN_KEY"); key != nullptr && *key != '\0')
      options.access.administrator_keys.emplace_back(key);
  for (const std::string& key : options.access.keys)
    if (key.empty()) throw UsageError("--api-key: expected a key, found an empty text");
  for (const std::string& key : options.access.administrator_keys)
    if (key.empty()) throw UsageError("--admin-key: expected a key, found an empty text");
  for (const std::string& origin : o.origins) check_origin(origin);
  options.access.allowed_origins = o.origins;
  options.metrics = o.metrics;
  serve::Models::Options& models = options.models;
  models.service.name = o.name;
  models.service.parallel = o.parallel;
  models.service.queue = o.queue;
  for (const std::string& adapter : o.adapters)
    models.service.adapters.push_back(parse_adapter(adapter));
  std::error_code ignored;
  if (!o.folder.empty() && !std::filesystem::is_directory(o.folder, ignored))
    throw UsageError(fmt::format("--models-dir {}: there is no such folder", o.folder));
  models.folder = o.folder;
  if (!o.states.empty() && !std::filesystem::is_directory(o.states, ignored))
    throw UsageError(fmt::format("--slot-save-path {}: there is no such folder", o.states));
  models.states = o.states;
  models.budget = o.budget;
  models.waiting = o.queue;
  constexpr double kMillisecondsOfAMinute = 60e3;
  models.idle = std::chrono::milliseconds(std::llround(o.idle_minutes * kMillisecondsOfAMinute));
  return options;
}

/// Lets the bodies of requests leave no trace. Once one large block was freed, glibc keeps all like
/// it for each thread, unless a limit is set: 16 MiB in each of several threads.
void return_large_blocks() {
#ifdef __GLIBC__
  constexpr int kLargest = 1 << 20;
  (void)::mallopt(M_MMAP_THRESHOLD, kLargest);
#endif
}

/// Ends the process while a model is being loaded. That cannot be stopped and may take minutes;
/// nothing of it would last.
[[noreturn]] void leave_loading() {
  (void)std::fflush(nullptr);
  std::_Exit(EXIT_SUCCESS);
}

/// Opens the first model on another thread, so that a signal is heard meanwhile.
void open_application(serve::Application& application, const ModelSource& source,
                      const ServeOptions& o, int64_t context, const StopSignal& stop) {
  OpenOptions options = o.common.open_options(context, o.parallel);
  o.speculation.apply(options);
  std::future<void> opened = std::async(std::launch::async, [&] {
    application.open(source, options, [&](const std::string& note) { say(o.common, note); });
  });
  while (opened.wait_for(kLook) != std::future_status::ready) {
    if (stop.arrived() == 0) continue;
    say(o.common, "stopped while the model was being loaded");
    leave_loading();
  }
  opened.get();
}

void run_serve(const ServeOptions& o) {
  return_large_blocks();
  serve::Application::Options options = application_options(o);
  const ModelSource source = open_source(o.common, {o.model, "", o.tokenizer});
  const int64_t context =
      o.context > 0 ? o.context : std::min(source.config().max_positions, kContext);
  options.models.service.context = context;
  options.models.most_context = o.context > 0 ? o.context : kContext;
  const bool open_to_all = options.access.keys.empty();
  const StopSignal stop;
  serve::Application application(std::move(options));
  if (!application.http().loopback() && open_to_all)
    say(o.common, fmt::format("note: everybody who reaches {} can use this model; --api-key asks "
                              "for a key",
                              application.http().address()));
  open_application(application, source, o, context, stop);
  say(o.common,
      fmt::format("serving {} at http://{}: {} tokens a request, {} at once, {} more may wait",
                  application.models().first(), application.http().address(), context, o.parallel,
                  o.queue));
  while (stop.arrived() == 0) std::this_thread::sleep_for(kLook);
  say(o.common, "shutting down: what is under way may end; a second signal ends it now");
  application.finish(kGrace);
  if (application.models().loading()) leave_loading();
}

}  // namespace

void add_serve_command(cli::App& app) {
  auto o = std::make_shared<ServeOptions>();
  cli::App* command =
      app.add_subcommand("serve", "Serve a model to OpenAI's and Anthropic's clients");
  command->footer(
      "Routes: / (a page to talk to the model), /v1/chat/completions, /v1/completions,\n"
      "/v1/responses, /v1/messages (Anthropic's), /v1/models, /tokenize, /detokenize,\n"
      "/apply-template, /experts, /health, /metrics; /openapi.json describes them.\n"
      "With the administrator's key: /models/load, /models/unload, /v1/load_lora_adapter,\n"
      "/v1/unload_lora_adapter, /slots/0.\n\n"
      "Example: mixtral serve --model runs/qa --port 8080 --api-key secret\n");
  command->add_option("-m,--model", o->model, "A model directory, a .gguf file or a run")
      ->required();
  command->add_option("--tokenizer", o->tokenizer, "Another tokenizer than the model's own");
  command->add_option("--name", o->name,
                      "What requests call the model; default: its folder's name");
  command->add_option("--host", o->host, "The address to listen at")->capture_default_str();
  command->add_option("--port", o->port, "The port to listen at; 0: any free one")
      ->capture_default_str()
      ->check(cli::Range(0, 65535));
  command->add_option("--api-key", o->keys,
                      "A key that requests have to send (may be repeated); the environment's "
                      "MIXTRAL_API_KEY does the same, out of sight of other users");
  command
      ->add_option("-c,--context", o->context,
                   "Tokens of a request, prompt and answer; 0: the model's, at most 8192")
      ->check(count_between(0, kMostContext));
  command->add_option("--parallel", o->parallel, "Answers that are made at once; each needs memory")
      ->capture_default_str()
      ->check(cli::Range(1, 4096));
  command->add_option("--queue", o->queue, "Requests that may wait; more are told to try again")
      ->capture_default_str()
      ->check(cli::Range(0, 1'000'000));
  command->add_option("--adapter", o->adapters,
                      "NAME=DIR (may be repeated): a LoRA adapter, served as the model MODEL:NAME");
  command->add_option("--models-dir", o->folder,
                      "A folder whose models and adapters may be loaded and unloaded by requests "
                      "with the administrator's key");
  command->add_option("--slot-save-path", o->states,
                      "A folder in which requests with the administrator's key may keep states of "
                      "the cache (POST /slots/0?action=save)");
  command->add_option("--admin-key", o->administrator_keys,
                      "The key of requests that load and unload (may be repeated); default: "
                      "--api-key's, or the environment's MIXTRAL_ADMIN_KEY");
  command
      ->add_option("--memory-budget", o->budget,
                   "Memory that all models may take, as planned (20GB); default: what is free")
      ->transform(cli::AsSizeValue(false))
      ->check(count_between(1, int64_t{1} << 50));
  command
      ->add_option("--idle-unload", o->idle_minutes,
                   "Minutes after which a model that nobody asks is unloaded, until it is asked "
                   "again; 0: none is")
      ->check(cli::Range(0.0, 1e6));
  command->add_option("--allow-origin", o->origins,
                      "An origin whose pages may call this server (may be repeated)");
  command->add_flag("--metrics", o->metrics, "Serve /metrics in Prometheus's format");
  o->speculation.add_to(*command);
  o->common.add_model_flags(*command);
  o->common.add_expert_memory(*command);
  o->common.add_cache_dtype(*command);
  o->common.add_to(*command);
  command->remove_option(command->get_option("--json"));
  command->callback([o] { run_serve(*o); });
}

}  // namespace mixtral
