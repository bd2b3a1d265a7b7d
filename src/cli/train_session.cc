#include "cli/train_session.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "backends/registry.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/train_progress.h"
#include "infer/methods.h"
#include "train/stop_signal.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

/// Whether a record has a row of its own, and loses what is longer than that.
bool whole_records(const TrainOptions& o) {
  return o.pairs || (o.pack == "off" && o.windows == "documents");
}

std::string longer_rows(const TrainOptions& o, int64_t context) {
  return fmt::format("--context {} --batch-size {}", context,
                     std::max<int64_t>(1, o.batch_size * *o.context / context));
}

/// Says what is cut off records that have a row of their own, and which rows would hold it.
std::string note_on_cut_records(const TrainOptions& o, const TrainingSetup& setup) {
  int64_t records = 0, tokens = 0, cut = 0, dropped = 0, longest = 0;
  const auto count = [&](const Corpus& corpus) {
    records += corpus.documents();
    tokens += corpus.tokens();
    for (int64_t d = 0; d < corpus.documents(); ++d) {
      longest = std::max(longest, corpus.length(d));
      cut += corpus.length(d) > *o.context;
      dropped += std::max<int64_t>(0, corpus.length(d) - *o.context);
    }
  };
  count(setup.data.train);
  for (const auto* split : {&setup.data.validation, &setup.data.test})
    if (*split) count(**split);
  if (cut == 0) return {};
  // A model that is pretrained takes as many positions as it is given.
  const int64_t most =
      std::max(setup.model.config().max_positions, setup.command == "pretrain" ? 2 * longest : 0);
  const int64_t whole =
      std::min(most, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(longest))));
  std::string way_out = fmt::format("the model has no more than {} positions", most);
  if (longest <= most)
    way_out = longer_rows(o, whole) + " reads all of them whole";
  else if (*o.context < most)
    way_out = fmt::format("{} is the most that {} positions allow", longer_rows(o, most), most);
  return fmt::format(
      "note: {} of {} {} are longer than --context {} and are cut off there, which leaves out {} "
      "of {} tokens; {}",
      cut, records, o.pairs ? "answers with their prompts" : "records", *o.context, dropped, tokens,
      way_out);
}

/// Says when rows are too short for many records although longer ones would do, or cut any off;
/// otherwise nothing.
std::string note_on_long_records(const TrainOptions& o, const TrainingSetup& setup) {
  if (whole_records(o)) return note_on_cut_records(o, setup);
  const Corpus& corpus = setup.data.train;
  const Batches& batches = setup.train.batches();
  const auto share =
      static_cast<double>(batches.long_records()) / static_cast<double>(corpus.documents());
  const auto whole =
      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(setup.data.longest())));
  const int64_t most = std::min(setup.model.config().max_positions, 8 * *o.context);
  if (share < 0.02 || whole > most || o.windows != "documents") return {};
  return fmt::format(
      "note: {:.0f}% of the training records are longer than --context {} and are cut into windows "
      "that do not see each other; {} reads all of them whole",
      100 * share, *o.context, longer_rows(o, whole));
}

/// Says how many records are left out because no label of theirs is within --context.
std::string note_on_unlabelled(const TrainOptions& o, const CorpusSource& train,
                               const std::optional<CorpusSource>& validation,
                               const std::optional<CorpusSource>& test) {
  std::string counts;
  const auto add = [&](std::string_view split, const CorpusSource& source, const Corpus& corpus) {
    const int64_t left_out = source.batches().unlabelled_records();
    if (left_out == 0) return;
    counts += fmt::format("{}{} of {} in {}", counts.empty() ? "" : ", ", left_out,
                          corpus.documents() / (corpus.is_paired() ? 2 : 1), split);
  };
  add("train", train, train.batches().corpus());
  if (validation) add("val", *validation, validation->batches().corpus());
  if (test) add("test", *test, test->batches().corpus());
  if (counts.empty()) return {};
  return fmt::format(
      "note: {} have no label within --context {} (the prompt fills the row, or there is one token "
      "alone) and are left out: {}",
      o.pairs ? "pairs" : "records", *o.context, counts);
}

int64_t resident_bytes() {
  long pages = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return int64_t{resident} * ::sysconf(_SC_PAGESIZE);
}

void print_sample(const TrainOptions& o, const TrainingSetup& setup, ordered_json& json) {
  if (!setup.tokenizer || o.sample_tokens == 0) return;
  Engine engine(setup.backend, setup.model);
  const auto prompt = prompt_tokens(*setup.tokenizer, o.sample_prompt);
  const int64_t room = engine.context() - static_cast<int64_t>(prompt.size());
  if (prompt.empty() || room < 1) return;
  if (!o.common.json) fmt::print("sample:\n{}", o.sample_prompt);
  const auto text = generate_after_training(engine, *setup.tokenizer, o.sample_prompt,
                                            std::min(o.sample_tokens, room), o.common.seed,
                                            [&](std::string_view piece) {
                                              if (!o.common.json)
                                                std::fwrite(piece.data(), 1, piece.size(), stdout);
                                            });
  json["sample"] = o.sample_prompt + text.text;
}

ordered_json result_json(const TrainOptions& o, const TrainingSetup& setup,
                         const TrainResult& result) {
  ordered_json json;
  json["run"] = o.out;
  json["stopped"] = result.reason == TrainResult::Reason::finished         ? "finished"
                    : result.reason == TrainResult::Reason::no_improvement ? "no improvement"
                                                                           : "signal";
  json["step"] = result.step;
  json["tokens"] = result.tokens;
  json["skipped"] = result.skipped;
  json["train_loss"] = result.train_loss;
  if (result.val_loss) json["val_loss"] = *result.val_loss;
  if (result.best)
    json["best"] = {{"step", result.best->step}, {"val_loss", result.best->val_loss}};
  if (result.test_loss) {
    json["test_loss"] = *result.test_loss;
    if (setup.perplexity) json["test_perplexity"] = std::exp(*result.test_loss);
    for (const auto& [name, value] : result.test_more) json["test_" + name] = value;
  }
  if (result.checkpoint) json["checkpoint"] = result.checkpoint->path.string();
  json["planned_bytes"] = setup.planned_bytes;
  json["peak_bytes"] = result.peak_bytes;
  json["seconds"] = result.seconds;
  return json;
}

void print_result(const TrainingSetup& setup, const TrainResult& result) {
  auto loss_text = [&](double loss) {
    return setup.perplexity ? fmt::format("{:.4f}, perplexity {:.3f}", loss, std::exp(loss))
                            : fmt::format("{:.4f}", loss);
  };
  fmt::print("{} steps, {} tokens in {}\n", result.step, result.tokens,
             format_duration(result.seconds));
  fmt::print("training loss {:.4f}\n", result.train_loss);
  if (result.best)
    fmt::print("best validation loss {}, at step {}\n", loss_text(result.best->val_loss),
               result.best->step);
  if (result.test_loss) fmt::print("test loss {}\n", loss_text(*result.test_loss));
  for (const auto& [name, value] : result.test_more) fmt::print("test {} {:.4f}\n", name, value);
  fmt::print("memory {} at most, {} planned\n", format_bytes(result.peak_bytes),
             format_bytes(setup.planned_bytes));
  if (result.checkpoint) fmt::print("{}: {}\n", setup.result, result.checkpoint->path.string());
}

}  // namespace

void choose_context(TrainOptions& o, const ModelConfig& config) {
  if (o.context) return;
  o.context =
      whole_records(o) ? config.max_positions : std::min(config.max_positions, defaults::kContext);
}

int64_t planned_context(const TrainOptions& o, const TrainingData& data) {
  return whole_records(o) ? std::min(*o.context, data.longest()) : *o.context;
}

RunDirectory::Open open_mode(const TrainOptions& o) {
  return o.resuming    ? RunDirectory::Open::continued
         : o.overwrite ? RunDirectory::Open::replace
                       : RunDirectory::Open::fresh;
}

int64_t fixed_training_bytes() {
  // As measured on x86-64: safetensors, plots and the kernels take 19 MB, each thread's stack and
  // heap 2 MB.
  std::error_code error;
  const auto threads = std::distance(std::filesystem::directory_iterator("/proc/self/task", error),
                                     std::filesystem::directory_iterator());
  return 19'000'000 + 2'000'000 * int64_t{std::max<std::ptrdiff_t>(threads, 1)};
}

TrainingMemory require_training_memory(const Backend& backend, const TrainingShape& shape) {
  const auto planner = make_planning_backend(&backend);
  MemoryPlan plan = plan_training(*planner, shape);
  const int64_t arena = plan.arena();
  Backend::MemoryInfo memory = backend.memory();
  if (backend.kind() != DeviceKind::gpu) {
    const int64_t resident = resident_bytes();
    plan.items.push_back({"program and data", resident});
    memory.opened += resident;  // what is available is so beside it
    plan.items.push_back({"kernels, threads and plots", fixed_training_bytes()});
  }
  require_memory(*planner, shape, plan, memory);
  return {.arena = arena, .planned = plan.total()};
}

void train_and_report(const TrainOptions& o, const TrainSettings& wanted,
                      const TrainingSetup& setup) {
  TrainSettings settings = wanted;
  settings.record_steps = records_steps(o.graph, setup.backend);
  settings.read_late = setup.backend.runs_behind();
  std::optional<CorpusSource> validation, test;
  if (setup.data.validation)
    validation.emplace(*setup.data.validation, o.batch_options(Split::val));
  if (setup.data.test) test.emplace(*setup.data.test, o.batch_options(Split::test));

  TrainResult result;
  {
    TrainProgress progress(o.common, setup.run.path());
    const StopSignal stop;
    Trainer trainer({.ctx = setup.ctx,
                     .criterion = setup.criterion,
                     .model = setup.trained,
                     .train = setup.train,
                     .validation = validation ? &*validation : nullptr,
                     .test = test ? &*test : nullptr,
                     .run = setup.run,
                     .observer = progress,
                     .stop_signal = [&] { return stop.arrived(); }},
                    settings);
    for (const auto& path : setup.run.removed())
      progress.say(fmt::format("removed {}, which an interrupted run had left", path.string()));
    if (o.resuming) trainer.resume();
    if (o.tensorboard) progress.log_to_tensorboard(trainer.state().step);
    write_file(setup.run.config_path(),
               setup.config_text +
                   run_info_text(setup.backend, setup.data, setup.tokenizer, setup.models));
    progress.say(fmt::format(
        "{}; {} steps of {} x {} x {} tokens; lr {:.2e} {}; about {} of "
        "memory; {}",
        setup.subject, *o.iterations, o.accumulation, o.batch_size, planned_context(o, setup.data),
        *o.lr, o.schedule, format_bytes(setup.planned_bytes), setup.backend.description()));
    const std::string note = note_on_long_records(o, setup);
    if (!note.empty()) progress.say(note);
    const std::string left_out = note_on_unlabelled(o, setup.train, validation, test);
    if (!left_out.empty()) progress.say(left_out);
    result = trainer.run();
    progress.draw();
    if (result.signal != 0) {
      progress.say(
          fmt::format("stopped by signal {} after step {}; continue with: mixtral {} --resume {}",
                      result.signal, result.step, setup.command, o.out));
      throw ExitStatus{128 + result.signal};
    }
  }
  ordered_json json = result_json(o, setup, result);
  if (!o.common.json) print_result(setup, result);
  print_sample(o, setup, json);
  if (o.common.json)
    fmt::print("{}\n", json.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
}

}  // namespace mixtral
