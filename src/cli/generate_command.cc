#include "cli/generate_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>

#include "base/file.h"
#include "cli/common.h"
#include "cli/generate_data.h"
#include "cli/run_config.h"
#include "cli/sampling_options.h"
#include "cli/speculation_options.h"
#include "data/control_text.h"
#include "infer/methods.h"
#include "io/safetensors_writer.h"
#include "open/expert_streaming.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

struct GenerateOptions {
  CommonOptions common;
  std::string model, adapter, tokenizer, method = "generate", prompt, prompt_file, ids, out;
  SamplingOptions sampling;
  SpeculationFlags speculation;
  int64_t context = 0, top = 5, samples = 1;
  bool log_probabilities = false, chat = false, parse_special = false;
  std::string chat_template, system;
  GenerateDataOptions data;  // only what is not above
};

constexpr uint64_t kMostPromptBytes = uint64_t{64} << 20;

/// All of standard input.
std::string read_standard_input() {
  std::string text;
  char part[65536];
  while (const size_t n = std::fread(part, 1, sizeof part, stdin)) {
    text.append(part, n);
    if (text.size() > kMostPromptBytes)
      throw Error(
          fmt::format("--prompt -: standard input has more than {} bytes", kMostPromptBytes));
  }
  return text;
}

/// Reads the prompt from where --prompt and --file say. The line end that editors and `echo` put
/// behind a text is no part of it.
void read_prompt(GenerateOptions& o) {
  if (!o.prompt_file.empty() && !o.prompt.empty())
    throw UsageError("give --prompt or --file, not both");
  if (o.prompt_file.empty() && o.prompt != "-") return;
  o.prompt = o.prompt_file.empty() || o.prompt_file == "-"
                 ? read_standard_input()
                 : read_file(o.prompt_file, kMostPromptBytes);
  if (o.prompt.ends_with('\n')) o.prompt.pop_back();
  if (o.prompt.ends_with('\r')) o.prompt.pop_back();
}

/// Says that control tokens spelled out in a prompt are ordinary text there.
void note_spelled_controls(const GenerateOptions& o, const Tokenizer& tokenizer) {
  const auto spelled = spelled_controls(tokenizer, o.prompt);
  if (spelled.empty()) return;
  say(o.common,
      fmt::format("note: the prompt spells out {}, which is read as ordinary text, not as "
                  "the control token; BOS is added by itself, and --chat applies the "
                  "model's template",
                  fmt::join(spelled, ", ")));
}

/// Everything a method needs, opened.
struct Session {
  std::shared_ptr<const Tokenizer> tokenizer;  // may be null
  OpenedModel open;
  std::unique_ptr<Engine> engine;
  std::vector<int32_t> prompt;
  std::vector<int64_t> ends;  // any of these ids ends the text
  double load_seconds = 0;    // until the engine was ready
};

/// --prompt as plain text; with --parse-special, with the control tokens that it spells out.
std::vector<int32_t> plain_prompt(const GenerateOptions& o, const Tokenizer& tokenizer) {
  if (!o.parse_special) return prompt_tokens(tokenizer, o.prompt);
  std::vector<int32_t> ids = tokenizer.encode_prompt(o.prompt);
  const int32_t bos = tokenizer.bos_id();
  if (bos >= 0 && (ids.empty() || ids.front() != bos)) ids.insert(ids.begin(), bos);
  return ids;
}

bool is_chat(const GenerateOptions& o) {
  return o.chat || !o.system.empty() || !o.chat_template.empty();
}

/// --prompt as the user's turn of a conversation, ready for the reply.
std::vector<int32_t> chat_prompt(const GenerateOptions& o, const ModelSource& source,
                                 const Tokenizer& tokenizer) {
  const auto noted = source.chat_template();
  const ChatTemplate chat = o.chat_template.empty() ? noted.value_or(ChatTemplate::mistral_v1)
                                                    : parse_chat_template(o.chat_template);
  std::vector<Message> messages;
  if (!o.system.empty()) messages.push_back({"system", o.system});
  messages.push_back({"user", o.prompt});
  if (o.chat_template.empty() && !noted)
    if (const auto own = source.own_chat_template()) return own->encode(messages);
  return encode_chat(tokenizer, chat, messages, "--prompt").ids;
}

Session open_session(const GenerateOptions& o) {
  const ModelSource source = open_source(o.common, {o.model, o.adapter, o.tokenizer});
  Session s;
  s.tokenizer = source.tokenizer();
  if (!o.ids.empty()) {
    if (!o.prompt.empty()) throw UsageError("give --prompt or --ids, not both");
    if (is_chat(o))
      throw UsageError(
          "--ids is the whole prompt; --chat, --chat-template and --system are about --prompt");
    s.prompt = parse_ids("--ids", o.ids);
  } else {
    s.tokenizer = source.require_tokenizer({{{"ids", {}}}});
    if (!o.parse_special) note_spelled_controls(o, *s.tokenizer);
    s.prompt = is_chat(o) ? chat_prompt(o, source, *s.tokenizer) : plain_prompt(o, *s.tokenizer);
    if (s.prompt.empty())
      throw UsageError("the prompt is empty and this tokenizer has no begin token; give --prompt");
  }
  source.check_tokenizer();
  s.ends = source.stop_ids();
  const auto needed = static_cast<int64_t>(s.prompt.size()) + o.sampling.max_tokens;
  const int64_t context =
      o.context > 0 ? o.context : std::min(source.config().max_positions, needed);
  const auto start = std::chrono::steady_clock::now();
  OpenOptions options = o.common.open_options(context);
  o.speculation.apply(options);
  s.open = open_model(o.common, source, options);
  s.engine = std::make_unique<Engine>(*s.open.backend, *s.open.model, s.open.engine_options());
  s.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return s;
}

TextOptions text_options(const GenerateOptions& o, const Session& s) {
  return o.sampling.text_options(o.common.seed, s.ends);
}

std::string readable(const Tokenizer* tokenizer, int32_t id) {
  return tokenizer && id < tokenizer->vocab_size() ? tokenizer->label(id) : std::to_string(id);
}

/// Refuses flags that --data or, without it, a method has no use for.
void refuse_flags_of_others(const cli::App& command, const std::string& method) {
  if (command.count("--data") > 0)
    return refuse_unused(
        command, "generate --data",
        {"--method", "--prompt", "--ids", "--chat", "--system", "--top", "--json"});
  const auto refuse = [&](const std::vector<std::string>& flags) {
    refuse_unused(command, "--method " + method, flags);
  };
  const bool raw = method == "generate_raw", one = method == "generate_one_token",
             best = method == "just_generate_one_god_damn_token",
             sample = method == "generate_after_training";
  if (!raw) refuse({"--out"});
  refuse({"--parallel", "--resume"});
  if (!raw && !best) refuse({"--top"});
  if (raw || best || one) refuse({"--max-tokens", "--speculate", "--draft-model"});
  if (raw || best || one || sample) refuse({"--stop", "--ignore-eos"});
  if (raw || best || sample)
    refuse({"--temp", "--top-k", "--top-p", "--min-p", "--repeat-penalty", "--repeat-last-n",
            "--logprobs"});
  if (method != "generate") refuse({"--num-samples"});
  if (sample) refuse({"--ids", "--chat", "--chat-template", "--system", "--parse-special"});
}

void print_json(const ordered_json& json) {
  fmt::print("{}\n", json.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
}

ordered_json generated_json(const GenerateOptions& o, const Session& s,
                            const GeneratedText& result) {
  ordered_json json;
  json["ids"] = s.prompt;
  for (const auto& token : result.tokens) json["ids"].push_back(token.id);
  if (s.tokenizer) json["text"] = result.text;
  json["finish_reason"] = result.reason == FinishReason::stop ? "stop" : "length";
  if (o.log_probabilities) {
    json["logprobs"] = ordered_json::array();
    for (const auto& token : result.tokens) json["logprobs"].push_back(token.log_probability);
  }
  json["prompt_tokens"] = s.prompt.size();
  json["new_tokens"] = result.tokens.size();
  return json;
}

/// One continuation, streamed where people read it.
GeneratedText generate_sample(const GenerateOptions& o, Session& s, const TextOptions& options) {
  const bool stream = !o.common.json && s.tokenizer;
  if (stream && !is_chat(o) && !o.prompt.empty()) fmt::print("{}", o.prompt);
  GeneratedText result =
      generate(*s.engine, s.tokenizer.get(), s.prompt, options, [&](std::string_view text) {
        if (!stream) return;
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
      });
  if (stream) {
    fmt::print("\n");
    std::fflush(stdout);  // before what is said on stderr
  }
  if (o.common.json) return result;
  if (!s.tokenizer) {
    std::vector<int32_t> ids = s.prompt;
    for (const auto& token : result.tokens) ids.push_back(token.id);
    fmt::print("{}\n", fmt::join(ids, ","));
  }
  if (o.log_probabilities)
    for (const auto& token : result.tokens)
      fmt::print("{:>7}  {:>9.4f}  {}\n", token.id, token.log_probability,
                 readable(s.tokenizer.get(), token.id));
  return result;
}

void run_generate(const GenerateOptions& o) {
  Session s = open_session(o);
  ordered_json samples = ordered_json::array();
  for (int64_t i = 0; i < o.samples; ++i) {
    TextOptions options = text_options(o, s);
    options.tokens.sampling.seed += static_cast<uint64_t>(i);
    if (o.samples > 1 && !o.common.json)
      fmt::print("{}--- sample {} of {}, --seed {}\n", i > 0 ? "\n" : "", i + 1, o.samples,
                 options.tokens.sampling.seed);
    const ExpertCache::Figures before =
        s.open.experts ? s.open.experts->figures() : ExpertCache::Figures();
    const GeneratedText result = generate_sample(o, s, options);
    const auto computed = static_cast<double>(s.prompt.size() + result.tokens.size()) - 1;
    if (o.common.json) samples.push_back(generated_json(o, s, result));
    const auto decoded = static_cast<double>(result.tokens.size()) - 1;
    std::string times = fmt::format("loaded in {:.2f} s, {} prompt tokens in {:.2f} s",
                                    s.load_seconds, s.prompt.size(), result.prompt_seconds);
    if (result.tokens.size() > 1 && result.decode_seconds > 0)
      times += fmt::format(", {} new at {:.1f} tok/s", result.tokens.size(),
                           decoded / result.decode_seconds);
    say(o.common, times);
    if (s.open.experts) say(o.common, describe(s.open.experts->figures() - before, computed));
    if (result.reason == FinishReason::context)
      say(o.common,
          fmt::format("ended because the context of {} tokens is full, before --max-tokens {}",
                      s.engine->context(), o.sampling.max_tokens));
  }
  if (const std::string line = in_words(s.engine->usage().speculation); !line.empty())
    say(o.common, line);
  if (!o.common.json) return;
  if (o.samples == 1)
    print_json(samples.front());
  else
    print_json({{"samples", samples}});
}

void run_raw(const GenerateOptions& o) {
  Session s = open_session(o);
  const int64_t vocabulary = s.open.model->config().vocab_size;
  std::vector<float> logits = generate_raw(*s.engine, s.prompt, vocabulary);
  const auto rows = static_cast<int64_t>(s.prompt.size());
  if (!o.out.empty()) {
    write_safetensors(o.out, {{"logits", Tensor(logits.data(), {rows, vocabulary}, Dtype::f32)}});
    if (o.common.json)
      print_json({{"out", o.out}, {"shape", {rows, vocabulary}}});
    else
      say(o.common, fmt::format("wrote logits [{}, {}] to {}", rows, vocabulary, o.out));
    return;
  }
  ordered_json json = ordered_json::array();
  // A table: for each position its token, and the tokens that the model ranks highest after it.
  for (int64_t row = 0; row < rows; ++row) {
    const float* values = logits.data() + row * vocabulary;
    std::vector<int32_t> order(static_cast<size_t>(vocabulary));
    for (int32_t v = 0; v < vocabulary; ++v) order[static_cast<size_t>(v)] = v;
    const auto count = std::min<int64_t>(o.top, vocabulary);
    std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
      return values[a] != values[b] ? values[a] > values[b] : a < b;
    });
    const int32_t at = s.prompt[static_cast<size_t>(row)];
    if (o.common.json) {
      json.push_back({{"id", at}, {"token", readable(s.tokenizer.get(), at)}});
      auto& best = json.back()["best"] = ordered_json::array();
      for (const int32_t id : std::span(order).first(static_cast<size_t>(count)))
        best.push_back(
            {{"id", id}, {"token", readable(s.tokenizer.get(), id)}, {"logit", values[id]}});
      continue;
    }
    fmt::print("{:>4}  {:<14}", row, readable(s.tokenizer.get(), at));
    for (int64_t i = 0; i < count; ++i) {
      const int32_t id = order[static_cast<size_t>(i)];
      fmt::print("  {} {:.3f}", readable(s.tokenizer.get(), id), values[id]);
    }
    fmt::print("\n");
  }
  if (o.common.json) print_json({{"positions", json}});
}

void run_one_token(const GenerateOptions& o) {
  Session s = open_session(o);
  const GeneratedToken token = generate_one_token(*s.engine, s.prompt, text_options(o, s).tokens);
  if (o.common.json) {
    ordered_json json{{"id", token.id}, {"logprob", token.log_probability}};
    if (s.tokenizer) json["token"] = readable(s.tokenizer.get(), token.id);
    print_json(json);
  } else {
    fmt::print("{}  {}  (log-probability {:.4f})\n", token.id,
               readable(s.tokenizer.get(), token.id), token.log_probability);
  }
}

void run_one_god_damn_token(const GenerateOptions& o) {
  Session s = open_session(o);
  const auto ranked = just_generate_one_god_damn_token(*s.engine, s.prompt,
                                                       s.open.model->config().vocab_size, o.top);
  if (o.common.json) {
    ordered_json json;
    json["prompt_ids"] = s.prompt;
    json["id"] = ranked.front().id;
    json["best"] = ordered_json::array();
    for (const auto& token : ranked) {
      json["best"].push_back({{"id", token.id},
                              {"token", readable(s.tokenizer.get(), token.id)},
                              {"probability", token.probability}});
    }
    print_json(json);
    return;
  }
  fmt::print("prompt:");
  for (const int32_t id : s.prompt) fmt::print(" {}:{}", id, readable(s.tokenizer.get(), id));
  fmt::print("\nnext:   {}:{}\n", ranked.front().id,
             readable(s.tokenizer.get(), ranked.front().id));
  for (const auto& token : ranked) {
    fmt::print("  {:>6.2f}%  {:>6}  {}\n", 100 * token.probability, token.id,
               readable(s.tokenizer.get(), token.id));
  }
}

void run_after_training(const GenerateOptions& o) {
  Session s = open_session(o);
  if (!s.tokenizer) throw UsageError("--method generate_after_training needs a tokenizer");
  const TextSink print = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  };
  const GeneratedText result =
      generate_after_training(*s.engine, *s.tokenizer, o.prompt, o.sampling.max_tokens,
                              o.common.seed, o.common.json ? TextSink() : print);
  if (o.common.json) print_json(generated_json(o, s, result));
}

void run_data(const GenerateOptions& o) {
  GenerateDataOptions data = o.data;
  data.common = o.common;
  data.sampling = o.sampling;
  data.speculation = o.speculation;
  data.model = o.model;
  data.adapter = o.adapter;
  data.tokenizer = o.tokenizer;
  data.chat_template = o.chat_template;
  data.out = o.out;
  data.context = o.context;
  data.log_probabilities = o.log_probabilities;
  generate_data(std::move(data));
}

}  // namespace

void add_generate_command(cli::App& app) {
  auto o = std::make_shared<GenerateOptions>();
  cli::App* command = app.add_subcommand("generate", "Continue a prompt with a model");
  command->footer(
      "Methods:\n"
      "  generate                          text from a prompt, streamed as it comes\n"
      "  generate_raw                      the logits of every prompt token: to --out, or a table\n"
      "  generate_one_token                one sampled token and its log-probability\n"
      "  just_generate_one_god_damn_token  one token, the most probable, and the next best\n"
      "  generate_after_training           the sample that a training run ends with\n\n"
      "A row of --data is a JSON object with \"prompt\" (text), \"ids\" (token ids) or "
      "\"messages\"\n"
      "(a conversation to reply to). It may have \"max_tokens\", \"temp\", \"top_k\", \"top_p\",\n"
      "\"min_p\", \"repeat_penalty\", \"repeat_last_n\", \"seed\", \"stop\" (a text or a list) "
      "and\n"
      "\"adapter\" (a directory or a run, as --adapter); the flags are the defaults. A row's\n"
      "result is the same whatever --parallel is (in fp32 on a CPU, to the bit).\n\n"
      "Examples:\n"
      "  mixtral generate --model runs/first -p \"Once upon a time\" -n 200 --temp 0.8\n"
      "  mixtral generate --model runs/first --data rows.jsonl --out results.jsonl --temp 0\n");
  command->add_option("-m,--model", o->model, "A model directory, a run, or a built-in name")
      ->required();
  command->add_option("--adapter,--lora", o->adapter, "A LoRA adapter directory (PEFT or mlx-lm)");
  command->add_option("--tokenizer", o->tokenizer, "Another tokenizer than the model's own");
  command->add_option("--method", o->method, "How to generate (see below)")
      ->capture_default_str()
      ->check(cli::IsMember({"generate", "generate_raw", "generate_one_token",
                             "just_generate_one_god_damn_token", "generate_after_training"}));
  command->add_option("-p,--prompt", o->prompt, "The text to continue; -: from standard input");
  command->add_option("-f,--file", o->prompt_file, "A file with the text to continue");
  command
      ->add_option("--num-samples", o->samples,
                   "So many continuations, each drawn with the next seed (--method generate)")
      ->capture_default_str()
      ->check(cli::Range(1, 10'000));
  command->add_flag(
      "--parse-special", o->parse_special,
      "Take control tokens that the prompt spells out (<s>, [INST]) for these tokens");
  command->add_flag("--chat", o->chat,
                    "Take the prompt as the user's turn of a conversation, and print the reply");
  command
      ->add_option("--chat-template", o->chat_template,
                   "The same by this template: mistral-v1, mistral-hf-old or seed (default: what "
                   "the model was trained with, or mistral-v1)")
      ->check(cli::IsMember({"mistral-v1", "mistral-hf-old", "seed"}));
  command->add_option("--system", o->system, "The same with this text before the turn");
  command->add_option("--ids", o->ids, "The prompt as token ids: 5,7,9 (no BOS is added)");
  o->sampling.add_to(*command);
  o->speculation.add_to(*command);
  command->add_option("-c,--context", o->context, "Tokens of context; 0: what is needed")
      ->check(count_between(0, kMostContext));
  command->add_flag("--logprobs", o->log_probabilities, "Show each new token's log-probability");
  command->add_option("--top", o->top, "How many tokens tables show")
      ->capture_default_str()
      ->check(cli::Range(1, 1000));
  command->add_option("--out", o->out,
                      "With --data: write the results to this .jsonl file (default: standard "
                      "output). generate_raw: write the logits to this .safetensors file");
  command
      ->add_option("--data", o->data.data,
                   "Continue each row of this .jsonl file (see below); a JSON object a row: index, "
                   "ids (prompt and new), text (new) and finish_reason")
      ->group("Many prompts");
  command
      ->add_option("--parallel", o->data.parallel,
                   "Rows that are generated at once; more of them need more memory")
      ->capture_default_str()
      ->check(cli::Range(1, 4096))
      ->group("Many prompts");
  command
      ->add_flag("--resume", o->data.resume,
                 "Keep the results that --out holds already, and go on after them")
      ->group("Many prompts");
  o->common.add_model_flags(*command);
  o->common.add_expert_memory(*command);
  o->common.add_cache_dtype(*command);
  o->common.add_to(*command);
  command->callback([o, command] {
    refuse_flags_of_others(*command, o->method);
    read_prompt(*o);
    if (!o->data.data.empty()) return run_data(*o);
    if (o->method == "generate_raw") return run_raw(*o);
    if (o->method == "generate_one_token") return run_one_token(*o);
    if (o->method == "just_generate_one_god_damn_token") return run_one_god_damn_token(*o);
    if (o->method == "generate_after_training") return run_after_training(*o);
    run_generate(*o);
  });
}

}  // namespace mixtral
