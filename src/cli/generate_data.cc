#include "cli/generate_data.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "base/messages.h"
#include "cli/commands.h"
#include "infer/prompt_file.h"
#include "infer/result_file.h"
#include "train/stop_signal.h"

namespace mixtral {
namespace {

/// Tokens of context for the longest row. Throws Error naming a row that leaves no room for a new
/// token in what --context or the model allows.
int64_t context_for(const std::vector<PromptRow>& rows, int64_t given, const ModelConfig& config) {
  const int64_t most = given > 0 ? given : config.max_positions;
  int64_t needed = 1;
  for (const PromptRow& row : rows) {
    const auto length = static_cast<int64_t>(row.prompt.size());
    if (length >= most)
      throw Error(
          fmt::format("{}: a prompt of {} tokens leaves no room for a new one in a context of {}; "
                      "shorten it, or raise --context where the model has more positions",
                      row.source, length, most));
    needed = std::max(needed, length + row.how.tokens.max_tokens);
  }
  return std::min(needed, most);
}

/// The adapters that rows name, each once. Throws Error naming the first row with a bad one.
std::map<std::string, AdapterFile> read_adapters(const ModelSource& source,
                                                 const std::vector<PromptRow>& rows) {
  std::map<std::string, AdapterFile> files;
  for (const PromptRow& row : rows) {
    if (!row.adapter || files.contains(*row.adapter)) continue;
    try {
      files.emplace(*row.adapter, source.load_adapter(*row.adapter));
    } catch (const Error& error) {
      throw Error(fmt::format("{}: adapter {}: {}", row.source, *row.adapter, error.what()));
    }
  }
  return files;
}

/// Puts them on the model, and their indices into the rows.
void add_adapters(const std::map<std::string, AdapterFile>& files, AdapterSet& adapters,
                  std::vector<PromptRow>& rows) {
  std::map<std::string, int32_t> indices;
  for (const auto& [name, file] : files) indices[name] = adapters.add(file);
  for (PromptRow& row : rows)
    if (row.adapter) row.how.adapter = indices.at(*row.adapter);
}

}  // namespace

void generate_data(GenerateDataOptions o) {
  const ModelSource source =
      open_source(o.common, {.model = o.model, .adapter = o.adapter, .tokenizer = o.tokenizer});
  const auto tokenizer = source.tokenizer();
  const ModelConfig& config = source.config();
  require_positions(o.context, config);
  PromptRules rules{.tokenizer = tokenizer.get(),
                    .vocab_size = config.vocab_size,
                    .defaults = o.sampling.text_options(o.common.seed, source.stop_ids())};
  if (!o.chat_template.empty())
    rules.chat_template = parse_chat_template(o.chat_template);
  else if (const auto noted = source.chat_template())
    rules.chat_template = *noted;
  std::vector<PromptRow> rows = read_prompts(o.data, rules);
  const int64_t context = context_for(rows, o.context, config);
  const std::map<std::string, AdapterFile> adapters = read_adapters(source, rows);
  ResultFile results(o.out, rows,
                     o.resume ? ResultFile::Existing::resume : ResultFile::Existing::replace);
  const int64_t first = results.done(), count = static_cast<int64_t>(rows.size());
  if (first == count) return say(o.common, fmt::format("all {} results are there already", count));
  if (first > 0) say(o.common, fmt::format("going on after {} of {} results", first, count));

  OpenOptions options = o.common.open_options(context, o.parallel);
  options.chunk = kPatientStepTokens;
  o.speculation.apply(options);
  const OpenedModel open = open_model(o.common, source, options);
  add_adapters(adapters, *open.adapters, rows);
  Engine::Options engine_options = open.engine_options();
  engine_options.context = context;
  engine_options.sequences = o.parallel;
  Engine engine(*open.backend, *open.model, engine_options);
  const bool terminal = !o.common.quiet && ::isatty(STDERR_FILENO) != 0;
  const auto start = std::chrono::steady_clock::now();
  int64_t done = first, tokens = 0, full = 0;
  const StopSignal stop;
  generate_rows(
      engine, tokenizer.get(), rows, first,
      [&](int64_t row, const GeneratedText& text) {
        results.add(row, result_line(row, rows[static_cast<size_t>(row)], text, tokenizer.get(),
                                     o.log_probabilities ? LogProbabilities::include
                                                         : LogProbabilities::leave_out));
        tokens += static_cast<int64_t>(text.tokens.size());
        full += text.reason == FinishReason::context;
        ++done;
        if (terminal) messages::redraw(fmt::format("{} of {} rows", done, count));
      },
      [&] { return stop.arrived() != 0; });
  if (terminal) messages::clear();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  say(o.common, fmt::format("{} rows, {} new tokens in {:.2f} s: {:.1f} tok/s", done - first,
                            tokens, seconds, static_cast<double>(tokens) / seconds));
  if (const std::string line = in_words(engine.usage().speculation); !line.empty())
    say(o.common, line);
  if (full > 0)
    say(o.common, fmt::format("note: the context of {} tokens ended {} of them", context, full));
  if (stop.arrived() != 0) {
    say(o.common,
        fmt::format("stopped after {} of {} results; --resume goes on", results.done(), count));
    throw ExitStatus{128 + stop.arrived()};
  }
}

}  // namespace mixtral
